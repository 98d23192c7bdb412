"""The server of sparse training: partial replies, the denominator over all images, and what it does not work with."""

import numpy as np
import pytest

from fedbayes import build
from fedbayes.comm.messages import ClientUpdate
from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError
from fedbayes.optim.sparse import BlockChoice
from fedbayes.server.validation import form_problem
from strategies.averaging import Averaging
from strategies.sparse import SparseTraining

B0, B1 = "w.blocks.0.x", "w.blocks.1.x"


def server(choice=None, aggregate="mean", **arrays):
    strategy = SparseTraining(Averaging(aggregate), choice or BlockChoice(0, 0.5))
    strategy.shared = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    return strategy


def update(partition, images, metrics=(), **arrays):
    return ClientUpdate(partition, {n: np.asarray(a, np.float64) for n, a in arrays.items()}, images, dict(metrics))


def test_a_block_is_averaged_over_all_images_of_the_round():
    strategy = server(**{B0: [1.0], B1: [1.0]})
    strategy.aggregate([update(0, 3, **{B0: [2.0]}), update(1, 1, **{B0: [6.0], B1: [5.0]})])
    assert strategy.shared[B0] == pytest.approx(3)
    assert strategy.shared[B1] == pytest.approx(2)  # 5 over the images of those alone that trained it


def test_clients_that_each_fit_the_residual_with_two_of_four_blocks_do_not_overshoot():
    pairs = [(i, j) for i in range(4) for j in range(i)]
    strategy = server(**{f"w.blocks.{b}": [0.0] for b in range(4)})
    # f is the sum of four weights; each client reaches f = 1 by half of it on each of its two blocks.
    replies = [update(c, 5, **{f"w.blocks.{b}": [0.5] for b in pair}) for c, pair in enumerate(pairs)]
    strategy.aggregate(replies)
    assert sum(float(array[0]) for array in strategy.shared.values()) == pytest.approx(1)


def asked(choice, partitions=(0, 1, 2, 3)):
    strategy = server(choice, **{f"w.blocks.{b}": [0.0] for b in range(4)}, head=[0.0])
    return strategy, strategy.requests(1, partitions, "train")


def test_a_reply_with_a_block_too_many_too_few_or_of_another_client_is_rejected_by_name():
    choice = BlockChoice(0, 0.5)
    strategy, _ = asked(choice)
    sets = [choice.selected(range(4), np.zeros(4), 1, partition) for partition in range(4)]
    mine, other = next((i, j) for i in range(4) for j in range(4) if sets[i] != sets[j])
    reply = {"head": [1.0], **{f"w.blocks.{b}": [1.0] for b in sets[mine]}}
    expected = strategy.expected_from(mine, strategy.expected_reply(strategy.shared))
    assert form_problem(update(mine, 3, **reply), expected) is None
    block = f"w.blocks.{min(set(range(4)) - sets[mine])}"
    assert block in form_problem(update(mine, 3, **reply, **{block: [1.0]}), expected)
    lacking = f"w.blocks.{min(sets[mine])}"
    assert lacking in form_problem(update(mine, 3, **{n: a for n, a in reply.items() if n != lacking}), expected)
    assert lacking in form_problem(update(mine, 3, **{**reply, lacking: [1.0, 2.0]}), expected)
    foreign = strategy.expected_from(other, strategy.expected_reply(strategy.shared))
    differing = {f"w.blocks.{b}" for b in sets[mine] ^ sets[other]}
    assert any(name in form_problem(update(mine, 3, **reply), foreign) for name in differing)


IST = BlockChoice(0, 0.5, candidates=2, rate=1.0, normalise=False)


def test_importance_is_sent_for_training_alone_as_one_object_for_all():
    strategy, requests = asked(IST)
    assert requests[0] is requests[3]
    np.testing.assert_array_equal(requests[0]["sparse.importance"], np.zeros(4))
    assert set(strategy.requests(1, [0], "evaluate")[0]) == set(strategy.shared)
    assert set(asked(BlockChoice(0, 0.5))[1][0]) == set(strategy.shared)


def test_importance_is_learnt_from_losses_and_restored_beside_the_state_of_the_strategy():
    strategy, _ = asked(IST)
    sets = IST.suppressed_sets(range(4), np.zeros(4), 1)
    losses = {"suppressed_loss_0": 0.2, "suppressed_loss_1": 0.4}
    strategy.aggregate([update(p, 3, losses, head=[1.0]) for p in range(4)])
    reward = (np.exp(-0.2) - np.exp(-0.4)) / 2
    expected = [-0.25 * reward * ((b in sets[0]) - (b in sets[1])) for b in range(4)]
    np.testing.assert_allclose(strategy.importance, expected)
    assert np.abs(strategy.importance).max() > 0
    again, _ = asked(IST)
    again.restore(strategy.state())
    np.testing.assert_array_equal(again.requests(2, [0], "train")[0]["sparse.importance"], strategy.importance)


@pytest.mark.parametrize("losses", [[], [0.1], [0.1, -1]])
def test_a_reply_without_losses_is_rejected(losses):
    strategy, _ = asked(IST)
    metrics = {f"suppressed_loss_{j}": loss for j, loss in enumerate(losses)}
    assert "suppressed_loss_" in strategy.rejection_reason(update(0, 3, metrics, head=[1.0]))


def made(*overrides):
    cfg = compose(["experiment=smoke", "method=fedlora", *overrides])
    return build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["method=pfpt", "sparse=random"], "PFPT"),
        (["method=afl", "sparse=random"], "AFL"),
        (["sparse=random", "sparse.fraction=0.25", "method.strategy.aggregate=median"], r"sparse\.fraction"),
        (["sparse.fraction=0.5"], r"sparse\.fraction"),
        (["sparse=ist", "privacy.noise=1"], r"privacy\.noise"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_rejected_by_name(overrides, place):
    with pytest.raises(ConfigError, match=place):
        made(*overrides)


@pytest.mark.parametrize("aggregate", ["median", "krum", "exact"])
def test_other_aggregates_of_half_the_blocks_are_accepted(aggregate):
    assert not made("sparse=random", f"method.strategy.aggregate={aggregate}").plain_mean
    assert made("sparse=random").plain_mean

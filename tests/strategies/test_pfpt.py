"""PFPT's server: matchings against brute force and by hand, and a set that grows, shrinks and forgets no client."""

import itertools
import math

import numpy as np
import pytest
from smoke import play_rounds, smoke

from fedbayes.comm.messages import ClientUpdate, from_record, to_record
from fedbayes.errors import ConfigError
from strategies.pfpt import PFPT, log_likelihood, match, most_activated, summarise

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_draws_in_whatever_order_tests_run():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def update(partition, prompts, images=1, **others):
    base = np.asarray(prompts, np.float32)
    return ClientUpdate(partition, {"generator.base": base, **others}, images, {})


def serve(strategy, *updates):
    strategy.aggregate(updates)
    return strategy.shared


def make(noise=0.5, mass=1.0, sweeps=10):
    return PFPT(noise=noise, mass=mass, sweeps=sweeps)


def test_permuted_copies_of_a_set_are_matched_back_to_it():
    plain = RNG.normal(size=(6, 8)).astype(np.float32)
    orders = [RNG.permutation(6) for _ in range(5)]
    orders[0] = np.arange(6)
    strategy = make()
    shared = serve(strategy, *(update(p, plain[None, order], images=1 + p) for p, order in enumerate(orders)))
    np.testing.assert_array_equal(shared["generator.base"][0], plain)
    np.testing.assert_array_equal(shared["server.set.0"], plain)
    for partition, order in enumerate(orders):
        np.testing.assert_array_equal(strategy.outgoing(2, partition)["generator.base"][0], plain[order])


def test_the_result_does_not_depend_on_the_order_of_a_clients_prompts():
    prompts = RNG.normal(size=(4, 5, 3)) * 0.4
    shuffled = prompts.copy()
    order = RNG.permutation(5)
    shuffled[2] = prompts[2][order]
    summary, other = (summarise(each, 0.5, 1.0, 10) for each in (prompts, shuffled))
    np.testing.assert_array_equal(other.activated[2], summary.activated[2][order])
    np.testing.assert_allclose(other.prompts, summary.prompts)


def test_a_tiny_aggregate_by_hand():
    """Two clients, two prompts of one entry. Joining costs `1/2 * d^2 / (2 sigma^2)`, being alone `log 2` more.

    With n = 1 of M = 2, `log n / (M - n)` is 0 and `log gamma / M` is -log 2. At sigma = 1, 1.0 and 1.4 join for .04,
    while 5.0 and 9.0 would for 4, so each stays alone.
    """
    shared = serve(make(noise=1.0), update(0, [[[1.0], [5.0]]]), update(1, [[[9.0], [1.4]]]))
    np.testing.assert_allclose(shared["server.set.0"], [[1.2], [5.0], [9.0]], rtol=1e-6)
    assert shared["server.activated"].tolist() == [[[0, 1]], [[2, 0]]]
    np.testing.assert_allclose(shared["generator.base"], [[[1.2], [5.0]]], rtol=1e-6)
    prompts, labels = np.array([[[1.0], [5.0]], [[9.0], [1.4]]]), np.array([[0, 1], [2, 0]])
    # 0! 1! / 2! of the shared one, 1! 0! / 2! of each of the others
    assert log_likelihood(prompts, labels, 1.0, 1.0) == pytest.approx(3 * math.log(1 / 2) - 0.04)


def test_at_the_threshold_between_joining_and_standing_alone():
    """Two clients of one prompt join as long as `d^2 / 4 sigma^2 < log 2 - log gamma`."""
    for mass in (1.0, 0.25):
        edge = 2 * math.sqrt(math.log(2 / mass))
        for factor, size in ((0.99, 1), (1.01, 2)):
            result = summarise(np.array([[[0.0]], [[factor * edge]]]), 1.0, mass, 5)
            assert len(result.prompts) == size, (mass, factor)


def test_a_match_is_the_likeliest_of_all_matchings_given_the_others():
    prompts = RNG.normal(size=(4, 3, 2))
    labels = np.array([[0, 1, 2], [2, 0, 3], [4, 1, 0], [9, 9, 9]])
    known, fresh = (0, 1, 2, 3, 4), (5, 6, 7)
    result = match(prompts, labels, 3, 0.6, 0.8, among=4)

    def score(matching):
        return log_likelihood(prompts, np.vstack([labels[:3], matching]), 0.6, 0.8)

    best = max(score(matching) for matching in itertools.permutations(known + fresh, 3))
    assert score(result) == pytest.approx(best)
    assert score((0, 1, 2)) < best
    assert len(set(result)) == 3


def test_every_sweep_makes_it_likelier():
    prompts = RNG.normal(size=(6, 4, 2)) * 0.7
    result = [log_likelihood(prompts, summarise(prompts, 0.4, 1.0, sweeps).activated, 0.4, 1.0) for sweeps in range(5)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(result))
    assert result[-1] > result[0]


def test_the_set_grows_where_clients_disagree_and_shrinks_where_they_agree_again():
    plain = RNG.normal(size=(1, 4, 8))
    apart = plain.copy()
    apart[0, 3] += 5
    strategy = make()
    sizes = []
    for prompts in ((plain, plain), (plain, apart), (plain, plain)):
        shared = serve(strategy, *(update(p, prompts) for p, prompts in enumerate(prompts)))
        sizes.append(len(shared["server.set.0"]))
        assert shared["generator.base"].shape == (1, 4, 8)
    assert sizes == [4, 5, 4]


def test_a_client_is_sent_what_it_activated_and_a_stranger_what_most_did():
    plain, odd = RNG.normal(size=(1, 3, 8)), RNG.normal(size=(1, 3, 8)) + 9
    strategy = make()
    serve(strategy, *(update(p, odd if p == 4 else plain, head=np.ones(2)) for p in (1, 4, 6)))
    prompts = {p: strategy.outgoing(2, p)["generator.base"] for p in (1, 4, 6, 0)}
    for partition in (0, 1, 6):
        np.testing.assert_allclose(prompts[partition], plain, rtol=1e-6)
    np.testing.assert_allclose(prompts[4], odd, rtol=1e-6)
    assert set(strategy.outgoing(2, 0)) == {"generator.base", "head"}


def test_deep_prompts_have_a_set_for_each_block():
    first, second = RNG.normal(size=(2, 3, 8))
    turned = np.stack([first[[2, 0, 1]], second])
    shared = serve(make(), update(0, np.stack([first, second])), update(1, turned))
    np.testing.assert_allclose(shared["generator.base"], np.stack([first, second]), rtol=1e-6)
    assert shared["server.activated"].tolist() == [[[0, 1, 2]] * 2, [[2, 0, 1], [0, 1, 2]]]


def test_equal_prompts_of_a_client_stay_as_many_and_a_client_alone_gets_back_what_it_returned():
    twice, plain = np.repeat(RNG.normal(size=(1, 1, 8)), 3, axis=1), RNG.normal(size=(1, 3, 8))
    np.testing.assert_allclose(serve(make(), update(0, twice), update(1, twice))["server.set.0"], twice[0], rtol=1e-6)
    np.testing.assert_allclose(serve(make(), update(2, plain))["generator.base"], plain, rtol=1e-6)


def test_no_prompts_leave_the_average_of_the_heads():
    shared = serve(make(), *(update(p, np.zeros((1, 0, 8)), images=1 + p, head=np.full(2, float(p))) for p in (0, 1)))
    assert shared["generator.base"].shape == (1, 0, 8)
    np.testing.assert_allclose(shared["head"], 2 / 3)


def test_heads_are_weighted_by_images_and_prompts_are_not():
    replies = [update(0, [[[0.0]]], 1, head=np.array([0.0])), update(1, [[[0.2]]], 3, head=np.array([1.0]))]
    shared = serve(make(), *replies)
    assert shared["head"].item() == 0.75
    assert shared["generator.base"].item() == pytest.approx(0.1)


def test_all_that_is_remembered_is_in_what_a_checkpoint_keeps():
    strategy, resumed = make(), make()
    shared = serve(strategy, *(update(p, RNG.normal(size=(2, 3, 8))) for p in range(3)))
    resumed.shared = from_record(to_record(shared))
    assert strategy.state() == {}
    for partition in range(4):
        before, after = (each.outgoing(2, partition)["generator.base"] for each in (strategy, resumed))
        assert before.tobytes() == after.tobytes()


def test_the_most_activated_are_taken_and_the_earlier_of_equals():
    assert most_activated(np.array([[0, 1], [2, 3], [3, 1], [4, 3]]), 2).tolist() == [1, 3]
    assert most_activated(np.array([[0, 1], [2, 3]]), 2).tolist() == [0, 1]


def test_on_clients_of_equal_size_the_noise_of_its_file_gives_fedvpt_and_a_smaller_one_does_not():
    """As the README says: what is matched to where it began is averaged as FedVPT does."""
    fedvpt, pfpt, parted = (
        play_rounds(*smoke(*overrides)).final.pooled.probabilities
        for overrides in (["method=fedvpt"], ["method=pfpt"], ["method=pfpt", "method.strategy.noise=0.05"])
    )
    np.testing.assert_allclose(pfpt, fedvpt, atol=1e-5)
    assert not np.allclose(parted, fedvpt, rtol=0, atol=1e-4)


def test_a_federation_of_two_rounds():
    cfg, client = smoke("method=pfpt", "prompts.depth=deep")
    shared = play_rounds(cfg, client).arrays
    assert {n: (shared[n].shape, shared[n].dtype) for n in client.initial()} == {
        name: (array.shape, array.dtype) for name, array in client.initial().items()
    }
    assert all(np.isfinite(array).all() for array in shared.values())
    assert shared["server.partitions"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("shared", "names"),
    [({"head.bias": 1}, "no prompts"), ({"generator.base": 1, "generator.hidden.bias": 1}, "generator.hidden")],
)
def test_anything_but_one_plain_set_of_prompts_is_refused(shared, names):
    strategy = make()
    strategy.shared = shared
    with pytest.raises(ConfigError, match=f"clients share .*{names}"):
        strategy.outgoing(1, 0)

"""pFedPG's server: the attention by hand, the gradient by finite differences, and that prompts move the right way."""

import numpy as np
import pytest
from journal import Journal
from smoke import play_rounds, smoke

from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError
from strategies.pfedpg import BASIS, DESCRIPTORS, LEARNT, PROMPTS, TRAINED, PFedPG, descend, generate

RNG = np.random.default_rng(0)
K, L, WIDTH = 3, 5, 4
SHAPES = [(K, L), (L, WIDTH), (L, WIDTH), (L, WIDTH), (WIDTH, L)]
BASE = RNG.normal(size=(1, K, L))


@pytest.fixture(autouse=True)
def _same_draws_in_whatever_order_tests_run():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def parameters():
    rng = np.random.default_rng(1)
    learnt = {name: rng.normal(size=shape) for name, shape in zip(LEARNT, SHAPES, strict=True)}
    return learnt, rng.normal(size=(2, K, L))


def by_hand(learnt, descriptor):
    basis, query, key, value, out = (learnt[name] for name in LEARNT)
    scores = (descriptor @ query) @ (basis @ key).T / np.sqrt(WIDTH)
    attention = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return basis + attention @ (basis @ value) @ out


def started(clients=4, **settings):
    strategy = PFedPG(**{"clients": clients, "seed": 0, "lr": 0.1, "steps": 1, "width": WIDTH, **settings})
    strategy.shared = {PROMPTS: BASE}
    return strategy


def reply(partition, prompts, **others):
    return ClientUpdate(partition, {PROMPTS: prompts, **others}, 10, {})


def prompts_of(strategy, partition):
    return strategy.outgoing(1, partition)[PROMPTS]


def test_the_prompts_are_those_of_the_formula():
    learnt, descriptors = parameters()
    prompts = generate(learnt, descriptors)
    for n in range(2):
        np.testing.assert_allclose(prompts[n], by_hand(learnt, descriptors[n]), rtol=1e-12)


def test_a_step_is_the_chain_rule_applied_to_the_change_of_the_prompts():
    learnt, descriptors = parameters()
    change = np.random.default_rng(2).normal(size=(2, K, L))
    lr = 1e-3
    new, new_descriptors = descend(learnt, descriptors, generate(learnt, descriptors) + change, lr, 1)

    def agreement(name, index, by):
        """sum_n <P_n(phi moved by a little), P'_n - P_n>, whose slope is the chain rule's."""
        moved = {key: array.copy() for key, array in {**learnt, DESCRIPTORS: descriptors}.items()}
        moved[name][index] += by
        return (generate(moved, moved[DESCRIPTORS]) * change).sum()

    before, after = {**learnt, DESCRIPTORS: descriptors}, {**new, DESCRIPTORS: new_descriptors}
    for name, array in before.items():
        rate = lr if name == DESCRIPTORS else lr / 2  # of two clients
        for index in np.ndindex(array.shape):
            slope = (agreement(name, index, 1e-5) - agreement(name, index, -1e-5)) / 2e-5
            np.testing.assert_allclose((after[name] - array)[index], rate * slope, rtol=1e-5, atol=1e-11)


def test_the_first_step_by_hand():
    # W_O starts at zero, so P_n = P_base: the basis moves by lr times the mean of P'_n - P_n, and no descriptor moves.
    strategy = started(lr=0.01)
    change = RNG.normal(size=(2, 1, K, L))
    for partition in (1, 3):
        np.testing.assert_array_equal(prompts_of(strategy, partition), BASE)
    descriptors = strategy.shared[DESCRIPTORS]
    strategy.aggregate([reply(1, BASE + change[0]), reply(3, BASE + change[1])])
    np.testing.assert_allclose(strategy.shared[BASIS], (BASE + 0.01 * change.mean(0))[0], rtol=1e-12)
    assert strategy.shared[LEARNT[4]].any()
    np.testing.assert_array_equal(strategy.shared[DESCRIPTORS], descriptors)


def test_a_rate_that_is_too_high_is_halved_until_prompts_come_closer():
    learnt, descriptors = parameters()
    goal = np.random.default_rng(2).normal(size=(2, K, L))
    before = np.square(generate(learnt, descriptors) - goal).sum()
    new, new_descriptors = descend(learnt, descriptors, goal, 1e6, 50)
    assert np.square(generate(new, new_descriptors) - goal).sum() < 0.2 * before


def test_with_one_client_its_prompts_move_towards_what_it_returned():
    strategy = started(clients=1)
    goal = BASE + RNG.normal(size=BASE.shape)
    distances = []
    for _ in range(60):
        distances.append(np.square(prompts_of(strategy, 0) - goal).sum())
        strategy.aggregate([reply(0, goal)])
    assert distances[0] > distances[1] > distances[2]
    assert distances[-1] < 1e-3 * distances[0]


def test_two_clients_that_disagree_come_to_have_prompts_of_their_own():
    strategy = started(clients=2, steps=100)
    apart = np.random.default_rng(0).normal(size=BASE.shape)
    goals = [BASE + apart, BASE - apart]
    for _ in range(8):
        strategy.aggregate([reply(p, goal) for p, goal in enumerate(goals)])
    for p, goal in enumerate(goals):
        assert np.square(prompts_of(strategy, p) - goal).sum() < 0.1 * np.square(apart).sum()


def test_only_descriptors_of_clients_that_answered_move():
    strategy = started()
    for _ in range(3):
        strategy.aggregate([reply(1, BASE + 1.0), reply(2, BASE - 1.0)])
    before = strategy.shared[DESCRIPTORS].copy()
    strategy.aggregate([reply(1, BASE + 2.0)])
    changed = (strategy.shared[DESCRIPTORS] != before).any((1, 2))
    assert changed.tolist() == [False, True, False, False]


def test_who_was_never_trained_has_the_mean_descriptor_of_those_who_were():
    strategy = started(steps=50)
    for _ in range(3):
        strategy.aggregate([reply(0, BASE + RNG.normal(size=BASE.shape)), reply(2, BASE - 1.0)])
    descriptors = strategy.shared[DESCRIPTORS]
    assert np.abs(descriptors[0] - descriptors[2]).max() > 1e-3
    expected = by_hand(strategy.shared, (descriptors[0] + descriptors[2]) / 2)
    for prompts in (prompts_of(strategy, 1), prompts_of(strategy, 3), strategy.shared[PROMPTS]):
        np.testing.assert_allclose(prompts[0], expected, rtol=1e-9)


def test_nothing_of_the_generator_is_sent_and_what_else_is_shared_is_averaged():
    strategy = started()
    strategy.shared["head.bias"] = np.zeros(2)
    strategy.aggregate(
        [reply(0, BASE, **{"head.bias": np.ones(2)}), reply(1, BASE, **{"head.bias": np.array([3.0, 5.0])})]
    )
    arrays = strategy.outgoing(2, 0)
    assert set(arrays) == {PROMPTS, "head.bias"}
    assert arrays["head.bias"].tolist() == [2.0, 3.0]


def test_everything_goes_on_from_the_record_of_an_earlier_process():
    def round_of(strategy, shared, partitions):
        strategy.shared = shared
        for arrays in strategy.requests(1, partitions, "train").values():
            assert set(arrays) == {PROMPTS}
        strategy.aggregate([reply(p, BASE.astype(np.float32) + p) for p in partitions])
        return strategy.shared

    start = {PROMPTS: BASE.astype(np.float32)}
    first, second = started(), started()
    middle = round_of(first, start, [0, 2])
    resumed, onwards = round_of(second, middle, [1, 2]), round_of(first, middle, [1, 2])
    for name, array in onwards.items():
        assert array.tobytes() == resumed[name].tobytes(), name
        assert array.dtype == (bool if name == TRAINED else np.float32), name


def test_deep_prompts_are_one_set_for_the_attention():
    strategy = started()
    deep = RNG.normal(size=(2, K, L))
    strategy.shared = {PROMPTS: deep}
    strategy.aggregate([reply(0, deep + 1.0)])
    assert strategy.shared[BASIS].shape == (2 * K, L)
    assert prompts_of(strategy, 0).shape == deep.shape


@pytest.mark.parametrize("shared", [{PROMPTS: np.zeros((1, 0, L))}, {"head.bias": np.zeros(3)}])
def test_without_prompts_there_is_nothing_to_generate(shared):
    strategy = started()
    strategy.shared = shared
    with pytest.raises(ConfigError, match=r"generator\.base, but clients share none"):
        strategy.outgoing(1, 0)


def test_two_rounds_of_the_method_as_configured_with_absent_and_new_clients():
    cfg, client = smoke("method=pfedpg", "participation=0.5", "evaluate.new_clients=1", "clients=4")
    journal = Journal()
    progress = play_rounds(cfg, client, journal)
    assert journal.notes == []
    learnt = progress.arrays
    assert np.flatnonzero(learnt[TRAINED]).tolist() == sorted(progress.accepted)
    assert progress.new_clients
    assert all(set(arrays) == {"head.weight", "head.bias"} for arrays in progress.personal.values())
    for name, array in client.initial().items():  # what reading a run back relies on
        assert learnt[name].shape == array.shape
        assert not np.array_equal(learnt[name], array)

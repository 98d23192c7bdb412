"""The choice of blocks: frequencies against enumeration, importance by hand, and which block matters."""

from itertools import permutations

import numpy as np
import pytest

from fedbayes.errors import ConfigError
from fedbayes.optim.sparse import BlockChoice, size, suppressed

BLOCKS = [0, 1, 2, 3]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, dtype=float)))


def inclusion(weights, number):
    """Probability of each block in samples without replacement, from all orders."""
    result = np.zeros(len(weights))
    for order in permutations(range(len(weights)), number):
        probability, left = 1.0, sum(weights)
        for b in order:
            probability, left = probability * weights[b] / left, left - weights[b]
        result[list(order)] += probability
    return result


def test_blocks_are_selected_as_often_as_sampling_without_replacement_says():
    choice, importance, draws = BlockChoice(3, 0.5), np.array([2.0, 0, 0, -2]), 2000
    counts = np.zeros(4)
    for server_round in range(draws):
        counts[list(choice.selected(BLOCKS, importance, server_round, 1))] += 1
    np.testing.assert_allclose(counts / draws, inclusion(sigmoid(importance), 2), atol=0.04)  # 3.5 standard errors


def test_important_blocks_are_suppressed_less_often():
    choice, importance = BlockChoice(3, 0.5, candidates=2, suppressed=0.25), np.array([2.0, 0, 0, -2])
    first = [choice.suppressed_sets(BLOCKS, importance, r)[0] for r in range(500)]
    counts = np.array([sum(b in blocks for blocks in first) for b in BLOCKS]) / 500
    np.testing.assert_allclose(counts, sigmoid(-importance) / sigmoid(-importance).sum(), atol=0.08)


def test_selections_are_keyed_by_round_and_client_or_by_round_alone():
    each, common = (BlockChoice(0, 0.5, per) for per in ("client", "round"))
    zero = np.zeros(8)
    sets = [each.selected(range(8), zero, 1, partition) for partition in range(6)]
    assert len(set(sets)) > 1
    assert sets == [each.selected(range(8), zero, 1, partition) for partition in range(6)]
    assert len({common.selected(range(8), zero, 1, partition) for partition in range(6)}) == 1
    assert common.selected(range(8), zero, 1, 0) != common.selected(range(8), zero, 2, 0)


def test_candidates_differ_and_are_fewer_where_there_are_no_more():
    choice = BlockChoice(0, 0.5, candidates=3)
    assert len(set(choice.suppressed_sets(BLOCKS, np.zeros(4), 1))) == 3
    assert len(choice.suppressed_sets([2, 3], np.zeros(2), 1)) == 2
    with pytest.raises(ConfigError, match=r"sparse\.suppressed"):
        choice.suppressed_sets([3], np.zeros(1), 1)


def test_importance_moves_as_worked_out_by_hand():
    choice = BlockChoice(0, 0.5, candidates=3, rate=10.0, normalise=False)
    sets = [{0, 1}, {1, 2}, {2, 3}]
    losses = -np.log([[0.5, 0.6, 0.7], [0.9, 0.6, 0.3]])
    # Over 3 and 1 images the rewards are .6, .6, .6; with equal ones .7, .6, .5, less their mean .1, 0, -.1.
    np.testing.assert_allclose(choice.updated(BLOCKS, np.zeros(4), sets, losses, np.array([3, 1])), 0, atol=1e-12)
    after = choice.updated(BLOCKS, np.zeros(4), sets, losses, np.array([1, 1]))
    np.testing.assert_allclose(after, -10 * 0.25 * np.array([0.1, 0.1, -0.1, -0.1]))
    normal = BlockChoice(0, 0.5, candidates=3, rate=1.0).updated(BLOCKS, np.zeros(4), sets, losses, np.array([1, 1]))
    np.testing.assert_allclose(normal, -0.25 * 1.5**0.5 * np.array([1, 1, -1, -1]))
    moved = choice.updated(BLOCKS, np.array([1.0, 0, 0, 0]), sets, losses, np.array([1, 1]))
    p = sigmoid(1)
    assert moved[0] == pytest.approx(1 - 10 * p * (1 - p) * 0.1)


@pytest.mark.parametrize("normalise", [False, True])
def test_equal_losses_leave_the_importance_exactly_as_it_is(normalise):
    choice = BlockChoice(0, 0.5, candidates=3, normalise=normalise)
    losses = np.tile([[0.3], [1.7], [2.2]], (1, 3))
    after = choice.updated(BLOCKS, np.zeros(4), [{0}, {1}, {2}], losses, np.array([3, 7, 5]))
    assert not after.any()


def test_a_malicious_client_moves_a_block_by_a_bounded_step():
    choice, sets = BlockChoice(0, 0.5, candidates=3, rate=10.0, normalise=False), [{0, 1}, {1, 2}, {1, 3}]
    images, honest = np.full(10, 5), np.full((10, 3), 0.7)
    before = choice.updated(BLOCKS, np.zeros(4), sets, honest, images)
    for lie in ([0, 1e3, 1e3], [1e3, 0, 0], [0, 0, 0]):
        losses = honest.copy()
        losses[4] = lie
        after = choice.updated(BLOCKS, np.zeros(4), sets, losses, images)
        assert np.abs(after - before).max() <= 10 * 3 / (4 * 10)


def matters(j, labels, seed, normalise):
    """Importance after ten rounds in which only suppression of block j costs, a tenth of a nat, among noise of .01."""
    choice = BlockChoice(seed, 0.5, candidates=3, normalise=normalise, rate=1.0 if normalise else 10.0)
    importance, rng = np.zeros(len(labels)), np.random.default_rng(seed)
    for server_round in range(10):
        sets = choice.suppressed_sets(labels, importance, server_round)
        losses = np.array([[0.5 + 0.1 * (j in blocks) + 0.01 * rng.standard_normal() for blocks in sets]] * 4)
        importance = choice.updated(labels, importance, sets, losses, np.ones(4))
    return importance


@pytest.mark.parametrize("normalise", [False, True])
def test_the_one_block_that_matters_becomes_the_most_important(normalise):
    wins = sum(int(np.argmax(matters(seed % 4, BLOCKS, seed, normalise))) == seed % 4 for seed in range(20))
    assert wins == 20


def test_other_numbers_of_the_blocks_change_no_importance():
    importance, renumbered = matters(1, BLOCKS, 5, normalise=True), matters(21, [20, 21, 22, 23], 5, normalise=True)
    np.testing.assert_array_equal(importance, renumbered)


def test_a_response_is_scaled_from_the_initial_value_and_exactly_at_one():
    rng = np.random.default_rng(0)
    names = ["weights.a.blocks.1.attn.qkv", "weights.b.blocks.1.attn.qkv", "generator.base.blocks.2", "head.weight"]
    state, initial = ({name: rng.standard_normal(5).astype(np.float32) for name in names} for _ in range(2))
    scaled = suppressed(state, initial, {1}, 0.25)
    for name in (names[0], *names[2:]):
        assert scaled[name] is state[name]
    expected = initial[names[1]] + 0.25 * (state[names[1]] - initial[names[1]])
    np.testing.assert_allclose(scaled[names[1]], expected, rtol=1e-5)
    for name, array in suppressed(state, initial, {1, 2}, 1.0).items():
        assert array.tobytes() == state[name].tobytes()
    for name, array in suppressed(initial, initial, {1, 2}, 0.25).items():
        assert array.tobytes() == initial[name].tobytes()


def test_a_fraction_of_blocks_rounds_halves_up_and_is_at_least_one():
    assert [size(f, 12) for f in (0.01, 0.25, 0.5, 0.96, 1)] == [1, 3, 6, 12, 12]
    assert size(0.5, 3) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("fraction", 0), ("fraction", 1.1), ("per", "block"), ("candidates", 1), ("candidates", -1)),
        *(("suppressed", 0), ("suppression", 2), ("rate", -1), ("normalise", 1)),
    ],
)
def test_values_out_of_range_are_rejected_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"sparse\.{key}"):
        BlockChoice(**{"seed": 0, "fraction": 0.5, key: value})

"""Robust aggregates against hand-computed values, Flower's own and an optimiser's, and under attack."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedbayes.comm.messages import ClientUpdate
from strategies.averaging import Averaging
from strategies.robust import ROBUST, combined, geometric_median, krum


def vectors(seed=0, count=9, size=5):
    return np.random.default_rng(seed).normal(size=(count, size))


def test_median_and_trimmed_mean_by_hand():
    rows = np.array([[1.0], [2.0], [3.0], [4.0], [100.0]])
    assert ROBUST["median"](rows, 0.2) == pytest.approx([3.0])
    assert ROBUST["trimmed_mean"](rows, 0.2) == pytest.approx([3.0])  # (2 + 3 + 4) / 3
    assert ROBUST["trimmed_mean"](rows, 0.21) == pytest.approx([3.0])  # ceil(.21 * 5) = 2: the median
    assert ROBUST["trimmed_mean"](rows, 0.0) == pytest.approx([22.0])
    assert "mean" not in ROBUST


def test_krum_by_hand():
    rows = np.array([[0.0], [1.0], [2.5], [10.0], [11.0]])
    # One malicious of five: the two nearest. Sums of squares: 0: 1 + 6.25, 1: 1 + 2.25, 2.5: 2.25 + 6.25, 10: 1 + 56.25
    assert krum(rows, 0.2, several=False) == pytest.approx([1.0])
    # The two best are 1 and 0.
    assert krum(rows, 0.2, several=True) == pytest.approx([0.5])


@pytest.mark.parametrize("several", [False, True])
def test_krum_equals_flowers_where_that_is_exact(several):
    rows = vectors(1, 11, 4)
    contents = [
        RecordDict({"a": ArrayRecord([row]), "m": MetricRecord({"num-examples": 1, "i": i})})
        for i, row in enumerate(rows)
    ]
    malicious = 3  # ceil(.2 * 11)
    picked = select_multikrum(contents, malicious, 11 - malicious - 2 if several else 1)
    expected = rows[[content["m"]["i"] for content in picked]].mean(0)
    np.testing.assert_allclose(krum(rows, 0.2, several=several), expected, rtol=1e-12)


def test_the_malicious_share_is_the_settings():
    def mean(malicious):
        strategy = Averaging("trimmed_mean", malicious_fraction=malicious)
        strategy.aggregate([ClientUpdate(p, {"w": np.array([v])}, 1, {}) for p, v in enumerate([0.0, 1, 2, 10, 100])])
        return strategy.shared["w"].item()

    assert mean(0.4) == pytest.approx(2.0)
    assert mean(0.2) == pytest.approx(13 / 3)


def test_krum_is_exact_where_flowers_cancels():
    """Updates that lie a hundred-thousandth apart, far from 0, in float32."""
    rows = np.array([[30.0], [3.0], [0.0], [1.0]]) * 1e-5 + 1e3  # in float32 all differences but the first are lost
    assert krum(rows, 0.25, several=False)[0] == rows[2, 0]


ON_A_CLIENT = np.array([[0.0, 0], [1, 10], [2, 10], [-10, -1], [-10, -1]])
"""The median, from which Weiszfeld's steps start, is the first client, which is not the best place."""


@pytest.mark.parametrize("rows", [*(vectors(seed, 8, 3) for seed in range(4)), ON_A_CLIENT])
def test_the_geometric_median_is_where_an_optimiser_finds_it(rows):
    best = minimize(lambda z: np.linalg.norm(rows - z, axis=1).sum(), rows.mean(0) + 0.1, tol=1e-12)
    np.testing.assert_allclose(geometric_median(rows), best.x, atol=1e-4)


def test_the_geometric_median_of_one_dimension_is_the_median_and_may_lie_on_a_client():
    assert geometric_median(np.array([[0.0], [1.0], [50.0]])) == pytest.approx([1.0], abs=1e-6)
    assert geometric_median(np.array([[2.0, 3.0]] * 4)).tolist() == [2.0, 3.0]
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    assert geometric_median(rows) == pytest.approx([0.0, 0.0], abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(ROBUST)), st.integers(0, 1000), st.floats(1e3, 1e9))
def test_a_fifth_of_malicious_clients_moves_them_by_no_more_than_the_honest_lie_apart(name, seed, far):
    honest = vectors(seed, 8, 4)
    lies = np.random.default_rng(seed + 1).normal(size=(2, 4)) * far
    result = ROBUST[name](np.concatenate([honest, lies]), 0.2)
    spread = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    assert np.linalg.norm(result - honest.mean(0)) < 3 * spread
    assert np.linalg.norm(np.concatenate([honest, lies]).mean(0) - honest.mean(0)) > 10 * spread or far < 1e4


@pytest.mark.parametrize("name", ROBUST)
def test_the_order_of_clients_and_a_shift_change_nothing_else(name):
    rows = vectors(3)
    result = ROBUST[name](rows, 0.2)
    np.testing.assert_allclose(ROBUST[name](rows[::-1], 0.2), result, atol=1e-8)
    np.testing.assert_allclose(ROBUST[name](rows + 7.0, 0.2), result + 7.0, atol=1e-8)


@pytest.mark.parametrize("name", ROBUST)
def test_whole_updates_keep_names_shapes_and_types(name):
    updates = [
        ClientUpdate(i, {"w": np.full((2, 3), i, np.float32), "s": np.float64(i), "e": np.zeros((0, 2))}, 1 + i, {})
        for i in range(5)
    ]
    strategy = Averaging(name)
    strategy.aggregate(updates)
    assert {key: (a.shape, a.dtype) for key, a in strategy.shared.items()} == {
        "w": ((2, 3), np.float32), "s": ((), np.float64), "e": ((0, 2), np.float64)
    }  # fmt: skip
    assert strategy.shared["s"] == strategy.shared["w"][0, 0]


def test_one_client_and_no_parameters():
    for name in ROBUST:
        alone = [ClientUpdate(0, {"w": np.array([1.5])}, 3, {})]
        assert combined(alone, name, 0.2)["w"].tolist() == [1.5]
        assert combined([ClientUpdate(0, {}, 3, {})], name, 0.2) == {}

"""FedNCM's server: each client's sums count once, and the result is that of the pooled images."""

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from fedbayes.messages import ClientUpdate
from strategies.fedncm import FedNCM

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(60, 5)) + 3 * RNG.normal(size=(4, 5))[np.arange(60) % 4]
LABELS = np.arange(60) % 4
OWNER = RNG.integers(0, 6, 60)


def sums_of(partition):
    mine = partition == OWNER
    hits = np.eye(4)[LABELS[mine]]
    z = FEATURES[mine]
    arrays = {"sums": hits.T @ z, "counts": hits.sum(0), "squares": np.array([np.square(z).sum()])}
    return ClientUpdate(partition, arrays, int(mine.sum()), {})


def after(*rounds):
    strategy = FedNCM()
    for partitions in rounds:
        strategy.aggregate([sums_of(partition) for partition in partitions])
    return strategy.shared


def test_means_are_those_of_the_pooled_images():
    centroids = NearestCentroid().fit(FEATURES, LABELS).centroids_
    np.testing.assert_allclose(after(range(6))["means"], centroids, rtol=1e-12)


def test_the_variance_is_the_mean_square_distance_to_the_own_mean():
    shared = after(range(6))
    within = np.square(FEATURES - shared["means"][LABELS]).sum() / FEATURES.size
    assert shared["variance"].item() == pytest.approx(within, rel=1e-9)


@pytest.mark.parametrize("rounds", [[(0, 1, 2), (2, 3), (0, 4, 5)], [(4, 5), (3,), (0, 1, 2), (0, 1, 2)]])
def test_each_clients_sums_count_once_however_often_it_is_sampled(rounds):
    shared, expected = after(*rounds), after(range(6))
    for name, array in expected.items():
        assert shared[name].tobytes() == array.tobytes(), name


def test_a_class_that_nobody_has_shown_yet_has_no_images():
    only_first = OWNER.min()
    shared = after([only_first])
    assert shared["counts"].sum() == (only_first == OWNER).sum()
    assert np.isfinite(shared["means"]).all()

"""What FedNCM's and FedCOF's servers share: each client's sums count once, and survive a restart."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from clients.class_sums import class_sums
from fedbayes.comm.messages import ClientUpdate
from strategies.fedcof import FedCOF
from strategies.fedncm import FedNCM

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(60, 5)) + 3 * RNG.normal(size=(4, 5))[np.arange(60) % 4]
LABELS = np.arange(60) % 4
OWNER = RNG.integers(0, 6, 60)
BOTH = pytest.mark.parametrize("make", [FedNCM, FedCOF])


def sums_of(partition):
    images = partition == OWNER
    hits = np.eye(4)[LABELS[images]]
    z = FEATURES[images]
    arrays = {"sums": hits.T @ z, "counts": hits.sum(0), "squares": np.array([np.square(z).sum()])}
    return ClientUpdate(partition, arrays, int(images.sum()), {})


def after(make, *rounds):
    strategy = make()
    for partitions in rounds:
        strategy.aggregate([sums_of(partition) for partition in partitions])
    return strategy


def test_fedncm_is_the_nearest_mean_of_the_pooled_images():
    shared = after(FedNCM, range(6)).shared
    scores = FEATURES @ shared["weights"].T + shared["bias"]
    expected = NearestCentroid().fit(FEATURES, LABELS).predict(FEATURES)
    np.testing.assert_array_equal(scores.argmax(1), expected)


def test_fedncms_scores_are_gaussian_log_densities_with_the_pooled_variance():
    shared = after(FedNCM, range(6)).shared
    means = np.stack([FEATURES[c == LABELS].mean(0) for c in range(4)])
    variance = np.square(FEATURES - means[LABELS]).mean()
    expected = -np.square(FEATURES[:, None] - means).sum(-1) / (2 * variance)
    scores = FEATURES @ shared["weights"].T + shared["bias"]
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], rtol=1e-9, atol=1e-9)


def test_fedncms_temperature_divides_the_scores_and_nothing_else():
    strategy = FedNCM(temperature=4.0)
    strategy.aggregate([sums_of(partition) for partition in range(6)])
    plain = after(FedNCM, range(6)).shared
    for name in ("weights", "bias"):
        np.testing.assert_allclose(strategy.shared[name], plain[name] / 4, rtol=1e-12)


@BOTH
@pytest.mark.parametrize("rounds", [[(0, 1, 2), (2, 3), (0, 4, 5)], [(4, 5), (3,), (0, 1, 2), (0, 1, 2)]])
def test_each_clients_sums_count_once_however_often_it_is_sampled(make, rounds):
    shared, expected = after(make, *rounds).shared, after(make, range(6)).shared
    for name, array in expected.items():
        assert shared[name].tobytes() == array.tobytes(), name


@BOTH
def test_the_sums_of_earlier_rounds_survive_a_restart(make):
    first = after(make, (0, 3, 5))
    second = make()
    second.restore(first.state())
    second.aggregate([sums_of(partition) for partition in (1, 2, 4)])
    for name, array in after(make, range(6)).shared.items():
        assert second.shared[name].tobytes() == array.tobytes(), name


@BOTH
def test_a_single_client_that_lacks_a_class_is_enough(make):
    strategy, update = make(), sums_of(0)
    update.arrays["sums"][2], update.arrays["counts"][2] = 0.0, 0.0
    strategy.aggregate([update])
    assert strategy.shared["counts"].tolist() == update.arrays["counts"].tolist()
    assert all(np.isfinite(array).all() for array in strategy.shared.values())


@BOTH
def test_counts_and_lengths_that_no_images_can_have_are_impossible(make):
    strategy = make()
    assert [strategy.rejection_reason(sums_of(partition)) for partition in range(6)] == [None] * 6
    for counts in (-1.0, 1e-300, 1e6):
        malicious = sums_of(2)
        malicious.arrays["counts"] = np.full(4, counts)
        assert "counts " in strategy.rejection_reason(malicious)
    single = ClientUpdate(0, class_sums(torch.ones(1, 5).double() / 3, torch.tensor([1]), 4), 1, {})
    single.arrays["squares"] = np.array([5 / 9])
    assert strategy.rejection_reason(single) is None, "a single image has no spread"


def test_squares_that_no_images_can_have_are_impossible():
    malicious = sums_of(2)
    malicious.arrays["squares"] *= 0.1
    assert "by its sums at least" in FedNCM().rejection_reason(malicious)
    assert FedCOF().rejection_reason(malicious) is None, "it does not use them"

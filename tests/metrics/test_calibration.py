"""Calibration errors, their floors and temperature scaling against closed forms, simulation and torchmetrics."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.distributions import Binomial, Categorical, Dirichlet
from torchmetrics.classification import MulticlassCalibrationError

from fedbayes.metrics.calibration import (
    BINS,
    TEMPERATURES,
    Reliability,
    adaptive_reliability,
    by_confidence,
    fit_temperature,
    reliability,
    scale,
)
from fedbayes.metrics.predictive import negative_log_likelihood

# Confidence (2 classes) on a coarse grid, so that ties are common, and the labels.
FEW = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=1, max_size=40)
ERRORS = (lambda p, y: adaptive_reliability(p, y).ece, lambda p, y: reliability(p, y).ece)


def calibrated(count: int, alpha: float = 0.3):
    """Predictions of ten classes whose labels are drawn from them."""
    probabilities = Dirichlet(torch.full((10,), alpha, dtype=torch.float64)).sample((count,))
    return probabilities, Categorical(probabilities).sample()


def of(few):
    confidence = torch.tensor([grid / 12 for grid, _ in few], dtype=torch.float64)
    return torch.stack([1 - confidence, confidence], 1), torch.tensor([label for _, label in few])


def test_bins_of_equal_width_by_hand():
    constant = torch.tensor([0.9, 0.1]).expand(10, 2), torch.tensor([0] * 7 + [1] * 3)
    assert [error(*constant) for error in ERRORS] == pytest.approx([0.2, 0.2], abs=1e-6)
    bins = reliability(*constant)
    assert bins.count.tolist() == [0] * 13 + [10, 0]
    assert bins.accuracy[13].item() == pytest.approx(0.7)
    assert bins.confidence[13].item() == pytest.approx(0.9)
    assert bins.accuracy[0].isnan()
    # A confidence on an edge belongs to the bin below.
    probabilities = torch.tensor([[1.0, 0.0], [0.6, 0.4]], dtype=torch.float64)
    bins = reliability(probabilities, torch.tensor([0, 0]))
    assert bins.count[BINS - 1] == 1
    assert bins.count[8] == 1  # 0.6 = 9 / 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ece_is_torchmetrics(dtype):
    probabilities = torch.randn(500, 10, dtype=dtype).mul(2).softmax(-1)
    labels = torch.randint(10, (500,))
    expected = MulticlassCalibrationError(num_classes=10, n_bins=BINS, norm="l1")(probabilities, labels)
    assert reliability(probabilities, labels).ece == pytest.approx(expected.item(), abs=1e-6)


def test_bins_of_equal_size_by_hand():
    # 30 confidences all different, two in each bin: right on the upper of the two.
    confidence = torch.linspace(0.55, 0.99, 30, dtype=torch.float64)
    probabilities, labels = torch.stack([confidence, 1 - confidence], 1), torch.tensor([1, 0] * 15)
    pairs = (0.5 - confidence.view(15, 2).mean(1)).abs()
    assert adaptive_reliability(probabilities, labels).ece == pytest.approx(pairs.mean().item())
    bins = adaptive_reliability(probabilities[:29], labels[:29])
    assert sorted(bins.count.tolist()) == [1] + [2] * 14


def test_fewer_images_than_bins_are_a_bin_each():
    probabilities = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])
    three = adaptive_reliability(probabilities, torch.tensor([0, 1, 1]))
    assert three.ece == pytest.approx((0.3 + 0.2 + 0.9) / 3, abs=1e-6)
    assert adaptive_reliability(probabilities[:1], torch.tensor([0])).ece == pytest.approx(0.3, abs=1e-6)


def test_images_of_equal_confidence_count_as_their_mean():
    confidence, right = by_confidence(torch.tensor([0.5, 0.25, 0.5, 0.5]), torch.tensor([True, False, False, True]))
    assert confidence.tolist() == [0.25, 0.5, 0.5, 0.5]
    assert right.tolist() == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])


@given(few=FEW, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_the_order_of_images_does_not_matter_and_errors_stay_in_range(few, seed):
    probabilities, labels = of(few)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for error in ERRORS:
        found = error(probabilities, labels)
        assert 0 <= found <= 1
        assert error(probabilities[order], labels[order]) == pytest.approx(found, abs=1e-12)
    assert 0 <= reliability(probabilities, labels).ece_floor <= 0.5
    temperature = fit_temperature(probabilities, labels)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    assert fit_temperature(probabilities[order], labels[order]) == pytest.approx(temperature, rel=1e-4)


@pytest.mark.parametrize(("count", "p"), [(1, 0.3), (4, 0.5), (10, 0.97), (60, 0.8), (10, 0.3), (20_000, 0.6)])
def test_the_floor_of_a_bin_is_the_binomials_mean_deviation(count, p):
    p = torch.tensor(p, dtype=torch.float64)
    k = torch.arange(count + 1, dtype=torch.float64)
    exact = (Binomial(count, p).log_prob(k).exp() * (k / count - p).abs()).sum()
    # A second bin without images, and two that are always right and always wrong, add nothing but images.
    confidence = torch.stack([p, torch.tensor(math.nan).double(), torch.ones_like(p), torch.zeros_like(p)])
    bins = Reliability(confidence, confidence, torch.tensor([count, 0, count, count]))
    assert bins.ece_floor == pytest.approx(exact.item() / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("count", "floor", "adaptive_floor"),
    [(50, 0.155, 0.217), (100, 0.113, 0.149), (200, 0.078, 0.103), (500, 0.052, 0.067), (1000, 0.037, 0.048)],
)
def test_floors_of_a_calibrated_model_are_those_of_a_simulation(count, floor, adaptive_floor):
    # Ten classes, predictions from Dirichlet(0.3), labels drawn from them.
    errors, floors = [], []
    for _ in range(60):
        sample = calibrated(count)
        bins = reliability(*sample), adaptive_reliability(*sample)
        errors.append([one.ece for one in bins])
        floors.append([one.ece_floor for one in bins])
    errors, floors = torch.tensor(errors), torch.tensor(floors)
    noise = 4 * errors.std(0) / math.sqrt(len(errors))
    assert (errors.mean(0) - torch.tensor([floor, adaptive_floor])).abs().le(noise + 0.004).all()
    # The floor takes the confidences in a bin for equal, so it may be a few per cent too high.
    assert (errors.mean(0) - floors.mean(0)).le(noise).all()
    assert (floors.mean(0) / errors.mean(0)).le(1.1 + noise / errors.mean(0)).all()


def test_the_error_of_a_calibrated_model_vanishes_on_many_images():
    assert max(error(*calibrated(100_000)) for error in ERRORS) < 0.01


def test_a_temperature_that_was_put_on_is_found():
    probabilities, labels = calibrated(20_000, alpha=1.0)
    for put_on in (0.3, 1.0, 3.0):
        given_out = scale(probabilities, 1 / put_on)  # put_on > 1: too confident
        assert fit_temperature(given_out, labels) == pytest.approx(put_on, rel=0.05)
        torch.testing.assert_close(scale(given_out, put_on), probabilities, rtol=1e-6, atol=1e-9)


def test_the_temperature_is_where_the_nll_is_least():
    probabilities = (torch.randn(300, 5) * 3).softmax(-1)
    labels = Categorical(scale(probabilities, 2.0)).sample()
    best = fit_temperature(probabilities, labels)
    assert TEMPERATURES[0] < best < TEMPERATURES[1]

    def nll(temperature):
        return negative_log_likelihood(scale(probabilities.double(), temperature), labels).mean().item()

    assert all(nll(best) <= nll(best * factor) for factor in (0.5, 0.99, 0.9999, 1.0001, 1.01, 2))


def test_the_temperature_of_one_binary_confidence_is_in_closed_form():
    # softmax([log .9, log .1] / T) = .7 at T = log 9 / log(7/3).
    probabilities = torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(10, 2)
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert fit_temperature(probabilities, labels) == pytest.approx(math.log(9) / math.log(7 / 3), rel=1e-9)


def test_extremes_of_the_temperature():
    certain = torch.eye(3)
    labels = torch.arange(3)
    assert fit_temperature(certain * 0.4 + 0.2, labels) == TEMPERATURES[0]  # always right
    assert fit_temperature(certain * 0.4 + 0.2, (labels + 1) % 3) == TEMPERATURES[1]  # always wrong
    assert fit_temperature(torch.full((4, 2), 0.5), torch.tensor([0, 1, 1, 1])) == 1.0  # no matter
    # Certain and wrong on one of four: log(1e-38) / T = log(1/6), and what was impossible is no longer.
    half = certain[[0, 0, 0, 0]], torch.tensor([0, 0, 0, 1])
    scaled = scale(half[0].double(), fit_temperature(*half))
    assert negative_log_likelihood(scaled, half[1]).isfinite().all()
    tiny = torch.finfo(torch.float32).tiny
    assert fit_temperature(*half) == pytest.approx(math.log(tiny) / math.log(1 / 6), rel=1e-6)


def test_temperature_one_changes_nothing_and_others_keep_the_class():
    probabilities = torch.randn(50, 6).mul(2).softmax(-1)
    torch.testing.assert_close(scale(probabilities, 1.0), probabilities)
    assert all(torch.equal(scale(probabilities, t).argmax(1), probabilities.argmax(1)) for t in (0.2, 7.0))


def test_nothing_is_measured_without_images():
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    for function in (adaptive_reliability, fit_temperature):
        with pytest.raises(ValueError, match="0 images"):
            function(*nothing)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        scale(torch.ones(1, 1), 0.0)

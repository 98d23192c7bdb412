r"""Calibration errors, what chance alone makes of them, and temperature scaling.

An expected calibration error [1] is a mean of absolute deviations, so it is not zero for a model that is perfectly
calibrated: on N images a ten-class one shows 0.16, 0.11, 0.08, 0.05, 0.04 at N = 50, 100, 200, 500, 1000. Every error
here therefore has its floor beside it (`Reliability.ece_floor`). Nothing depends on the order of the images.

[1] Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (arXiv 1706.04599).
[2] Nguyen and O'Connor, Posterior Calibration and Exploratory Analysis for NLP Models, EMNLP 2015 (arXiv 1508.05154).
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedbayes.metrics.predictive import floored

BINS = 15
"""Confidence bins of both calibration errors."""

TEMPERATURES = (0.05, 100.0)
"""Smallest and largest temperature; an optimum outside, e.g. where every image was right, becomes the nearer one."""

_STEPS = 45  # halvings of log(100 / 0.05): to 2e-13


@final
@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy, means over the images of each bin."""

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]

    @property
    def ece(self) -> float:
        """Expected calibration error `sum_b n_b/N |acc_b - conf_b|` [1]; biased up where images are few."""
        weights = self.count / self.count.sum()
        return float((weights * (self.accuracy - self.confidence).abs())[self.count > 0].sum())

    @property
    def ece_floor(self) -> float:
        """Return the ECE to expect of a perfectly calibrated model with these confidences; NaN without images.

        `sum_b n_b/N E|X_b / n_b - p_b|` with `X_b ~ Binomial(n_b, p_b)` and p_b the bin's mean confidence, whose mean
        deviation has de Moivre's closed form `2 k C(n, k) p^k (1 - p)^(n - k + 1)`, `k = floor(n p) + 1`. It takes the
        confidences in a bin for equal: their variance v makes the truth smaller, about by a share v / (2 p (1 - p)).
        """
        filled = self.count > 0
        n, p = self.count[filled].double(), self.confidence[filled].double()
        k = torch.minimum((n * p).floor() + 1, n)  # at p = 1, or n p just below n and rounded up to it
        choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        deviation = 2 * k * torch.exp(choose + k * p.log() + (n - k + 1) * torch.log1p(-p))  # (filled,), images
        return float(deviation.sum() / n.sum())


def reliability(probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Reliability:
    """Bin the predictions by confidence, bin b holding `(b/BINS, (b+1)/BINS]`; empty bins have NaN means, count 0."""
    confidence, predicted = probabilities.double().max(1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(confidence, edges)
    count = torch.bincount(place, minlength=BINS)
    hits = torch.bincount(place, weights=(predicted == labels).double(), minlength=BINS)
    sums = torch.bincount(place, weights=confidence, minlength=BINS)
    return Reliability(sums / count, hits / count, count)


def by_confidence(
    confidence: Float[Tensor, " images"], correct: Bool[Tensor, " images"]
) -> tuple[Float[Tensor, " images"], Float[Tensor, " images"]]:
    """Return confidences, ascending, and for each the accuracy of all images of that confidence; float64.

    That is what is expected of an image in a random order, so results do not depend on the order of ties.
    """
    levels, place, count = confidence.double().unique(return_inverse=True, return_counts=True)
    right = torch.bincount(place, weights=correct.double(), minlength=len(levels)) / count
    return levels.repeat_interleave(count), right.repeat_interleave(count)


def adaptive_reliability(probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Reliability:
    """Cut the images, in ascending confidence, into 15 bins of equally many [2], give or take one.

    Fewer than 15 images make a bin each. Images of equal confidence that a cut separates each count as their mean.

    Raises:
        ValueError: if there is no image.
    """
    _require_images(len(labels))
    highest, predicted = probabilities.max(1)
    parts = torch.stack(by_confidence(highest, predicted == labels)).tensor_split(min(BINS, len(labels)), dim=1)
    confidence, accuracy = torch.stack([part.mean(1) for part in parts], dim=1)
    return Reliability(confidence, accuracy, torch.tensor([part.shape[1] for part in parts]))


def fit_temperature(probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """Fit the temperature T that minimises the mean of `-log softmax(log p / T)_label` [1] on validation images.

    The objective is convex in 1/T, so its derivative `mean(E_softmax[log p] - log p_label)` changes sign once, and the
    interval in log T is halved until nothing is left.

    Returns:
        Between the two `TEMPERATURES`; above 1 for predictions that are too confident, 1 where all are uniform.

    Raises:
        ValueError: if there is no image.
    """
    _require_images(len(labels))
    logs = floored(probabilities.double()).log()
    log_likelihood = logs.gather(1, labels[:, None])[:, 0]
    if torch.equal(logs.amax(1), logs.amin(1)):
        return 1.0
    low, high = TEMPERATURES
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        slope = ((logs / middle).softmax(1) * logs).sum(1) - log_likelihood
        if slope.mean() > 0:  # less is better than 1/T
            low = middle
        else:
            high = middle
    # The side that has not moved is a bound, and then the optimum lies beyond it.
    return low if low == TEMPERATURES[0] else high if high == TEMPERATURES[1] else math.sqrt(low * high)


def scale(probabilities: Float[Tensor, "images classes"], temperature: float) -> Float[Tensor, "images classes"]:
    """`softmax(log p / T)`: flatter for T above 1, the same for T = 1.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}: log p / T would turn predictions around.")
    return (floored(probabilities).log() / temperature).softmax(1)


def _require_images(count: int) -> None:
    if count == 0:
        raise ValueError("there are 0 images; calibration needs at least one.")

"""How well a score tells images that the model should not trust itself on: foreign ones, and its own mistakes.

[1] Hendrycks et al., Deep Anomaly Detection with Outlier Exposure, ICLR 2019 (arXiv 1812.04606).
[2] Geifman et al., Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019 (arXiv 1805.08206).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedbayes.metrics.calibration import by_confidence

DETECTED = 0.95
"""Share of the outside images that `fpr95` asks a threshold to detect."""


def auroc(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> float:
    """Area under the ROC curve: `P(outside score > inside score) + P(equal) / 2` over pairs of images.

    Args:
        inside: scores of images like those trained on.
        outside: scores of other images; higher means more outside.

    Returns:
        0 to 1; 1/2 for a score that tells nothing.

    Raises:
        ValueError: if either has no image.
    """
    from torchmetrics.functional.classification import binary_auroc  # takes seconds to import

    return float(binary_auroc(*_ranked(inside, outside)))


def fpr95(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> float:
    """False positive rate at 95 % true positive rate; the positive class is *outside*, as in [1].

    The share of inside images that are taken for outside by the strictest threshold `score >= t` that still detects at
    least 95 % of the outside images. (ODIN and others call inside positive, which gives another number.)

    Args:
        inside: scores of images like those trained on.
        outside: scores of other images; higher means more outside.

    Returns:
        0 to 1, smaller is better.

    Raises:
        ValueError: if either has no image.
    """
    from torchmetrics.functional.classification import binary_specificity_at_sensitivity

    specificity, _ = binary_specificity_at_sensitivity(*_ranked(inside, outside), min_sensitivity=DETECTED)
    return 1 - float(specificity)


def aurc(confidence: Float[Tensor, " images"], correct: Bool[Tensor, " images"]) -> float:
    """Area under the risk-coverage curve [2]: `1/N sum_k r_k`, r_k the error rate of the k most confident images.

    Among images of equal confidence the errors count as spread evenly: the mean over all orders they could be in.

    Args:
        confidence: of each image's prediction; any increasing function of it gives the same area.
        correct: whether that was right.

    Returns:
        0 to 1, smaller is better; the error rate for a constant confidence. Even the best order of a model with error
        rate e has about `e + (1 - e) log(1 - e)`.

    Raises:
        ValueError: if there is no image.
    """
    if len(confidence) == 0:
        raise ValueError("there are 0 images; a risk needs at least one.")
    _, right = by_confidence(confidence, correct)
    covered = torch.arange(1, len(right) + 1, dtype=torch.float64)
    risks = (1 - right).flip(0).cumsum(0) / covered  # (images,), from the most confident on
    return float(risks.mean())


def _ranked(
    inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]
) -> tuple[Float[Tensor, " images"], Int[Tensor, " images"]]:
    """Ranks in [0, 1] and 1 for outside; torchmetrics would squash other scores, which makes large ones tie."""
    if len(inside) == 0 or len(outside) == 0:
        raise ValueError(f"there are {len(inside)} inside and {len(outside)} outside scores; give at least one each.")
    scores = torch.cat([inside, outside]).double()
    levels, rank = scores.unique(return_inverse=True)
    target = torch.zeros(len(scores), dtype=torch.long)
    target[len(inside) :] = 1
    return rank.double() / max(1, len(levels) - 1), target

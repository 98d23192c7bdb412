"""How well a score tells images that the model should not be trusted on: those of other domains, and mistakes.

Scores are of *inside* images, like those trained on, and of *outside* images, where they should be higher. Functions
raise a ValueError where there is no image.

[1] Hendrycks et al., Deep Anomaly Detection with Outlier Exposure, ICLR 2019 (arXiv 1812.04606).
[2] Geifman et al., Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019 (arXiv 1805.08206).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedbayes.metrics.calibration import by_confidence


def auroc(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> float:
    """Area under the ROC curve: `P(outside score > inside score) + P(equal) / 2`; 1/2 if the score tells nothing."""
    from torchmetrics.functional.classification import binary_auroc  # takes seconds to import

    return float(binary_auroc(*_ranked(inside, outside)))


def fpr95(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> float:
    """False positive rate at 95 % true positive rate, 0 to 1; the positive class is *outside*, as in [1].

    The fraction of inside images that are taken for outside by the strictest threshold `score >= t` that still detects
    at least 95 % of the outside images. (ODIN and others call inside positive, which gives another number.)
    """
    from torchmetrics.functional.classification import binary_specificity_at_sensitivity

    specificity, _ = binary_specificity_at_sensitivity(*_ranked(inside, outside), min_sensitivity=0.95)
    return 1 - float(specificity)


def aurc(confidence: Float[Tensor, " images"], correct: Bool[Tensor, " images"]) -> float:
    """Area under the risk-coverage curve [2]: `1/N sum_k r_k`, r_k the error rate of the k most confident images.

    Among images of equal confidence the errors count as spread evenly: the mean over all orders they could be in.

    Any increasing function of the confidence gives the same area, a constant one the error rate e; the best order has
    about `e + (1 - e) log(1 - e)`.
    """
    if len(confidence) == 0:
        raise ValueError("there are 0 images; a risk needs at least one.")
    _, accuracy = by_confidence(confidence, correct)
    covered = torch.arange(1, len(accuracy) + 1, dtype=torch.float64)
    risks = (1 - accuracy).flip(0).cumsum(0) / covered  # (images,), from the most confident on
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

r"""Class priors of clients by Bayes' rule: under label skew, a shared head need not learn each client's classes.

With `n_my` training images of class y at client m, C classes and a pseudo-images of each class:

    pi_m(y) = (n_my + a) / (n_m + a C)

A client trains its head on `CE(f + log pi_m)` and predicts with `softmax(f + log pi_m)`: for each client the balanced
softmax of Ren et al. (NeurIPS 2020, arXiv 2007.10740), or the logit adjustment of Menon et al. (ICLR 2021, arXiv
2007.07314). Then `exp f(x)` stands for `p(x | y)`, which clients share. The prior never leaves the client.

In training a is 0, so that classes that a client lacks take no part. With a > 0 the gradient of their scores is small
but always of one sign, and Adam, which divides by its size, makes full steps of it: after 15 rounds of FedVPT under
label skew, validation NLL was .26 and .17 with a = .5, and .17 and .15 with a = 0 (seeds 0 and 1).

Where the classes of test images differ from those of training images, the prior is estimated anew from predictions
`p_n(y)` of unlabelled test images, by EM from pi on (Saerens et al., Neural Computation 2002):

    r_n(y) = pi'(y) p_n(y) / pi(y), normalised over y,    pi'(y) <- (sum_n r_n(y) + s N pi(y)) / (N + s N)

The s N pseudo-images with the classes of pi, which are not in the paper, hold the estimate of few images near pi. With
s = 1/2, validation images of three label-skewed partitions (FedVPT and pFedBayesPT) had accuracy and NLL of .936 / .184
without a shift (.946 / .157 by pi) and .824 / .616 where all classes came equally often (.694 / .902 by pi).
"""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Num
from torch import Tensor

from fedbayes.errors import require_choice, require_number

TOLERANCE, MOST_STEPS = 1e-8, 1000
NO_COUNT = 1e-30
"""As good as 0, and its logarithm is finite."""


@final
@dataclass(frozen=True)
class ClassPriors:
    """Whether and how clients use their class priors.

    Args:
        kind: `none`, `client` or `estimated`, which also estimates the prior of the images that are predicted together.
        pseudo_count: a of predictions.

    Raises:
        ConfigError: if a value is out of range.
    """

    kind: str = "none"
    pseudo_count: float = 0.5

    def __post_init__(self) -> None:
        """Check the values."""
        require_choice("head.prior", self.kind, ("none", "client", "estimated"))
        require_number("head.prior_count", self.pseudo_count, 0, open_low=True)

    def of_counts(
        self, counts: Num[Tensor, "clients classes"], *, training: bool
    ) -> Float[Tensor, "clients 1 classes"] | None:
        """Return the log priors of clients, to be added to the class scores of their images; None where none is."""
        if self.kind == "none":
            return None
        return class_prior(counts, NO_COUNT if training else self.pseudo_count).log().float().unsqueeze(1)


def class_prior(counts: Num[Tensor, "*clients classes"], pseudo_count: float) -> Float[Tensor, "*clients classes"]:
    """Return pi of counts of training images; uniform where there is no image. `pseudo_count` is a > 0."""
    smoothed = counts.double() + pseudo_count
    return smoothed / smoothed.sum(-1, keepdim=True)


def estimate_prior(
    predictions: Float[Tensor, "images classes"], prior: Float[Tensor, " classes"], strength: float = 0.5
) -> Float[Tensor, " classes"]:
    """Return the prior of unlabelled images by EM, see the module.

    Args:
        predictions: class probabilities of each image under `prior`.
        prior: pi, above 0.
        strength: s; 0 is the paper's estimate.
    """
    pseudo_images = strength * len(predictions) * prior
    ratios, estimate = predictions.double() / prior, prior
    for _ in range(MOST_STEPS):
        weighted = estimate * ratios
        expected = (weighted / weighted.sum(1, keepdim=True)).sum(0) + pseudo_images
        before, estimate = estimate, expected / expected.sum()
        if (estimate - before).abs().max() < TOLERANCE:
            break
    return estimate

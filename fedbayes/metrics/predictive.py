r"""Predictions from S draws of prompts, and the numbers that judge them.

The predictive is `p(y | x) = 1/S sum_s p(y | x, P_s)`. Its entropy splits into the expected entropy of the draws and
their mutual information with the label, called *prompt uncertainty*: prompts are drawn per image, so it does not shrink
with data and is no uncertainty about weights.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Predictive:
    """Predictions for N images: mean probabilities over samples, and their mean entropy in nats."""

    probabilities: Float[Tensor, "images classes"]
    expected_entropy: Float[Tensor, " images"]

    @property
    def entropy(self) -> Float[Tensor, " images"]:
        """Of the mean prediction, nats."""
        entropy: Tensor = torch.special.entr(self.probabilities).sum(-1)
        return entropy

    @property
    def prompt_uncertainty(self) -> Float[Tensor, " images"]:
        """Mutual information between prompts and label, nats; biased low for small S."""
        return (self.entropy - self.expected_entropy).clamp(min=0)

    @property
    def confidence(self) -> Float[Tensor, " images"]:
        """Largest probability."""
        return self.probabilities.amax(-1)

    @property
    def predicted(self) -> Int[Tensor, " images"]:
        """Most probable class."""
        return self.probabilities.argmax(-1)


def predictive(logits: Float[Tensor, "draws *batch classes"]) -> tuple[Tensor, Tensor]:
    """Mean softmax over draws `(*batch, classes)`, and expected entropy `(*batch)` in nats."""
    draws = logits.softmax(-1)
    return draws.mean(0), torch.special.entr(draws).sum(-1).mean(0)


def floored(probabilities: Float[Tensor, "images classes"]) -> Float[Tensor, "images classes"]:
    """Raise what is below float32's smallest normal number to it, so that logarithms are finite."""
    # One floor for every dtype: clients predict in float32, and pooling in float64 must not make an image cost more.
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny)


def negative_log_likelihood(
    probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]
) -> Float[Tensor, " images"]:
    """`-log p(label)`, nats, at most 87.3."""
    return -floored(probabilities).gather(1, labels[:, None])[:, 0].log()


def brier(probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Float[Tensor, " images"]:
    """`sum_c (p_c - 1[label = c])^2`, 0 to 2."""
    hits = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - hits).square().sum(1)

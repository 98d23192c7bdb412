"""Prompts with a Gaussian posterior over their code, whose covariance is diagonal or low rank plus diagonal."""

from abc import abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fedbayes.models.prompts.base import ClientLinear, Sizes
from fedbayes.models.prompts.coded import AbstractPosteriorPrompts, GeneratorSettings


class AbstractGaussianPrompts(AbstractPosteriorPrompts):
    """`c ~ N(f_phi(z), diag sigma_phi(z)^2 + F F^T)`: an explicit, amortised posterior."""

    def __init__(self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings) -> None:
        super().__init__(sizes, rng, settings)
        self.spread = ClientLinear(settings.hidden, self.code_dim, std=0.0, rng=rng)

    def scale(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images code"]:
        """`sigma_phi(z)`."""
        log_scale: Tensor = self.log_scale + self.spread(F.gelu(self.hidden(z)))
        return log_scale.exp()

    def mixing(
        self, z: Float[Tensor, "clients images dim"], eps: Float[Tensor, "*samples clients images m"] | None
    ) -> Float[Tensor, "*samples clients images code"]:
        """`f_phi(z) + F eps`."""
        factor = self.factor(z)
        return self.mean(z) if factor is None or eps is None else self.mean(z) + (factor @ eps[..., None]).squeeze(-1)

    @abstractmethod
    def factor(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images code m"] | None:
        """F; None where the covariance is diagonal."""


@final
class GaussianPrompts(AbstractGaussianPrompts):
    """The diagonal kind."""

    kind = "gaussian"

    def factor(self, z: Float[Tensor, "clients images dim"]) -> None:
        """None."""


@final
class LowRankPrompts(AbstractGaussianPrompts):
    """The kind with `F = A + F_phi(z)`, r x m."""

    kind = "low_rank"

    def __init__(self, sizes: Sizes, rng: torch.Generator, settings: GeneratorSettings) -> None:
        super().__init__(sizes, rng, settings)
        self.noise_dim = settings.noise_dim
        self.skip = self.mixing_layer(rng, settings)
        self.directions = ClientLinear(settings.hidden, self.code_dim * self.noise_dim, std=0.0, rng=rng)

    def factor(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images code m"]:
        """`A + F_phi(z)`."""
        change: Tensor = self.directions(F.gelu(self.hidden(z))).unflatten(-1, (self.code_dim, self.noise_dim))
        return change + self.skip.weight.mT.unsqueeze(1)

"""The mixture h_K at a value: its density and how its components share it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Mixture:
    """Weights `w_k` are the components' densities, unnormalised. Nats, one per batch element.

    Attributes:
        log_sum: `log sum_k w_k`.
        log_squares: `log sum_k w_k^2`, without a gradient.
        components: how many.
        log_origin: the generating component's `log w_0`; None for a value drawn elsewhere.
    """

    log_sum: Tensor
    log_squares: Tensor
    components: int
    log_origin: Tensor | None = None

    @classmethod
    def of(cls, log_weights: Float[Tensor, "components *batch"], log_origin: Tensor | None = None) -> "Mixture":
        """From the weights of all components."""
        squares = (2 * log_weights.detach()).logsumexp(0)
        return cls(log_weights.logsumexp(0), squares, len(log_weights), log_origin)

    @classmethod
    def joined(cls, parts: Sequence["Mixture"], log_origin: Tensor | None = None) -> "Mixture":
        """Of the components of several mixtures together."""
        return cls(
            torch.stack([part.log_sum for part in parts]).logsumexp(0),
            torch.stack([part.log_squares for part in parts]).logsumexp(0),
            sum(part.components for part in parts),
            log_origin,
        )

    @property
    def log_density(self) -> Tensor:
        """`log h_K = log 1/n sum_k w_k`."""
        return self.log_sum - math.log(self.components)

    @property
    def effective_components(self) -> Tensor:
        """`(sum_k w_k)^2 / sum_k w_k^2`, 1 to n: how many components matter. Near 1 the implicit part buys nothing."""
        return (2 * self.log_sum.detach() - self.log_squares).exp()

    @property
    def bound_saturation(self) -> Tensor | None:
        """`(log w_0 - log h_K) / log n`, at most 1, where K limits the bound; None at K = 0 or without log w_0."""
        if self.log_origin is None or self.components == 1:
            return None
        return (self.log_origin - self.log_density).detach() / math.log(self.components)

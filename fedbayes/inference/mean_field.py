r"""Independent Gaussians over weights, and products of posteriors.

    q(theta) = N(mu, diag sigma^2),   sigma = softplus(rho)

Posteriors of clients m with one prior p_0 combine as `p(theta | D) ~ p_0 prod_m q_m / p_0`; in natural parameters, the
precision Lambda and the shift eta = Lambda mu, products are sums and quotients differences, diagonal or not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RHO = ".rho"
"""What the name of rho adds to that of the mean, which keeps the weight's own."""

PRIOR = "prior."
"""Leads the names of a Gaussian that a client is sent as its prior, where that is not the one it starts from."""


def std_of(rho: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`sigma = softplus(rho)`."""
    return F.softplus(rho)


def rho_of(std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`rho = log(e^sigma - 1)`, the inverse of `std_of`, without overflow where sigma is large."""
    return std + torch.log(-torch.expm1(-std))


def divergence(
    mean: Float[Tensor, "clients *shape"],
    std: Float[Tensor, "clients *shape"],
    other_mean: Float[Tensor, "clients *shape"],
    other_std: Float[Tensor, "clients *shape"],
) -> Float[Tensor, " clients"]:
    """`KL(N(mean, std^2) | N(other_mean, other_std^2))` in nats, summed over each client's weights."""
    ratio = (std / other_std).square()
    terms = (ratio - 1 - ratio.log() + ((mean - other_mean) / other_std).square()) / 2
    return terms.flatten(1).sum(1)


@final
@dataclass(frozen=True, eq=False)
class Natural:
    """A Gaussian by Lambda (one number per weight, or a matrix) and Lambda mu, or a factor of one.

    The precision of a factor need not be positive.
    """

    precision: Tensor
    shift: Tensor

    def over(self, other: "Natural") -> "Natural":
        """The quotient of the two densities."""
        return Natural(self.precision - other.precision, self.shift - other.shift)

    def power(self, exponent: float) -> "Natural":
        """The density to a power."""
        return Natural(exponent * self.precision, exponent * self.shift)


def product(factors: Sequence[Natural]) -> Natural:
    """The product of densities, summed in the order given."""
    return reduce(lambda a, b: Natural(a.precision + b.precision, a.shift + b.shift), factors)


def diagonal(mean: Float[Tensor, "*shape"], std: Float[Tensor, "*shape"]) -> Natural:
    """Independent Gaussians by their natural parameters."""
    precision = std.square().reciprocal()
    return Natural(precision, precision * mean)


def at_least(
    factor: Natural, floor: Float[Tensor, "*shape"], around: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return mean and standard deviation of a diagonal Gaussian whose precision is raised to a positive floor.

    `Lambda (mu - around) = eta - Lambda around` holds with the raised precision too, so a product that says nothing of
    a weight leaves it at `around`. Where nothing is raised the mean is `eta / Lambda`.

    Raises:
        ValueError: if the floor is not positive.
    """
    lowest = floor.min().item() if floor.numel() else math.inf
    if lowest <= 0:
        raise ValueError(f"floor must be positive, got {lowest:g}: a density needs a positive precision.")
    precision = factor.precision.maximum(floor)
    mean = around + (factor.shift - factor.precision * around) / precision
    return mean, precision.rsqrt()

r"""Explicit Gaussian posteriors, the counterparts of the semi-implicit one at the same call site.

    p ~ N(loc, diag(scale^2) + F F^T)

Diagonal without a factor F, else low rank plus diagonal: the law of `p = loc + F eps + scale u`, which is a
semi-implicit distribution whose mixing is linear in its noise and so has a density.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from fedbayes.inference.mixing import Noise, StandardLike, sample_noise

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_normal(value: Tensor, loc: Tensor, scale: Tensor, event_dim: int = 1) -> Tensor:
    """`log N(value; loc, diag scale^2)` in nats, summed over the last `event_dim` dimensions; arguments broadcast."""
    standard = (value - loc) / scale
    event = standard.shape[standard.dim() - event_dim :]
    log_scale = scale.log().broadcast_to(torch.broadcast_shapes(scale.shape, event))
    squares = total(standard.square(), event_dim)
    return -0.5 * squares - total(log_scale, event_dim) - event.numel() * HALF_LOG_TWO_PI


def log_low_rank(value: Tensor, loc: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
    r"""`log N(value; loc, D + F F^T)` with `D = diag scale^2`, in nats, by the matrix inversion and determinant lemmas.

    With `W = F / scale`, `v = (value - loc) / scale` and `L L^T = I + W^T W`:
    `-1/2 (|v|^2 - |L^-1 W^T v|^2) - log det L - sum log scale - d/2 log 2 pi`.

    In float64 within, since the two squares nearly cancel where the scale is small. NaN where there is no density, and
    for that element of a batch alone.
    """
    offset, sd, directions = (tensor.double() for tensor in (value - loc, scale, factor))
    v, w = offset / sd, directions / sd.expand(*sd.shape[:-1], loc.shape[-1]).unsqueeze(-1)
    capacitance = torch.eye(factor.shape[-1], dtype=torch.float64, device=factor.device) + w.mT @ w
    tril, failed = torch.linalg.cholesky_ex(capacitance)
    tril = torch.where((failed > 0)[..., None, None], torch.nan, tril)
    inner = torch.linalg.solve_triangular(tril, w.mT @ v.unsqueeze(-1), upper=False).squeeze(-1)
    log_volume = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + sd.log().expand(loc.shape).sum(-1)
    squares = v.square().sum(-1) - inner.square().sum(-1)
    density: Tensor = -0.5 * squares - log_volume - loc.shape[-1] * HALF_LOG_TWO_PI
    return density.to(value.dtype)


def total(terms: Tensor, event_dim: int) -> Tensor:
    """The sum over the last `event_dim` dimensions; 0 leaves the terms as they are."""
    return terms.sum(tuple(range(-event_dim, 0))) if event_dim else terms


@final
class AmortisedNormal(TorchDistribution):
    """A Gaussian over vectors with a density, diagonal or low rank plus diagonal.

    Args:
        loc: mean.
        scale: standard deviation of the diagonal part; broadcasts to `loc`.
        factor: F, whose m columns are directions of their own; None: diagonal.
        noise: source of standard normal draws; the default draws from torch's global generator.

    Raises:
        ValueError: if the shapes do not fit, or (where arguments are validated) `scale` is not positive.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's own class attribute)
    support = constraints.real_vector

    def __init__(
        self,
        loc: Float[Tensor, "*batch event"],
        scale: Tensor,
        factor: Tensor | None = None,
        noise: Noise | None = None,
        validate_args: bool | None = None,
    ) -> None:
        shapes = {"scale": scale.shape} if factor is None else {"scale": scale.shape, "factor": factor.shape[:-1]}
        for name, shape in shapes.items():
            if not broadcasts(shape, loc.shape):
                raise ValueError(
                    f"{name} of shape {tuple(shape)} does not broadcast to loc of shape {tuple(loc.shape)}; "
                    "expand loc to the batch that is meant."
                )
        self.loc, self.scale, self.factor = loc, scale, factor
        self.noise: Noise = noise or StandardLike(loc)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)
        if self._validate_args:
            require_scale(scale)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "AmortisedNormal":
        """The same law over a larger batch, with independent draws."""
        loc = self.loc.expand(*batch_shape, self.loc.shape[-1])
        return AmortisedNormal(loc, self.scale, self.factor, self.noise, validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """`loc + F eps + scale u`, reparameterised."""
        shape = torch.Size((*sample_shape, *self.loc.shape))
        mean = self.loc
        if self.factor is not None:
            eps = sample_noise(self.noise, torch.Size((*shape[:-1], self.factor.shape[-1])))
            mean = mean + (self.factor @ eps.unsqueeze(-1)).squeeze(-1)
        return mean + self.scale * sample_noise(self.noise, shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, one per batch element."""
        if self._validate_args:
            self._validate_sample(value)
        if self.factor is None:
            return log_normal(value, self.loc, self.scale)
        return log_low_rank(value, self.loc, self.scale, self.factor)


def broadcasts(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether a shape broadcasts to another without changing it."""
    try:
        return bool(torch.broadcast_shapes(shape, wanted) == wanted)
    except RuntimeError:
        return False


def require_scale(scale: Tensor) -> None:
    """Raise ValueError, naming the first bad entry, if a standard deviation gives no density."""
    bad = ~(scale.detach() > 0) | ~scale.detach().isfinite()
    if bad.any():
        value = scale.detach()[bad].flatten()[0].item()
        raise ValueError(
            f"scale must be positive and finite, got {value:g}: q(p | psi) needs a density; use exp or softplus of a "
            "free parameter."
        )


def require_whole(name: str, value: int, low: int, meaning: str) -> None:
    """Raise ValueError if a number is not whole or lies below `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}: {meaning}.")


def require_broadcasting(scale: Tensor, psi: Tensor) -> None:
    """Raise ValueError if a standard deviation fits no draw of psi."""
    if not broadcasts(scale.shape, psi.shape):
        raise ValueError(
            f"scale of shape {tuple(scale.shape)} does not broadcast to psi of shape {tuple(psi.shape)}; "
            "give one number, one per entry of the event, or one per batch element and entry."
        )

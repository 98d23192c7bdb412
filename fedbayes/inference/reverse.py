r"""The reverse model of a semi-implicit distribution, after Sobolev & Vetrov, NeurIPS 2019 (arXiv 1905.03290).

With `psi = f(eps)`, `eps ~ N(0, I_m)` and a model `tau(eps | p)` of the noise behind a draw,

    log h(p) <= E log 1/(K+1) sum_{k=0..K} q(p | f(eps_k)) N(eps_k; 0, I) / tau(eps_k | p)

where `eps_0` generated p and `eps_1 .. eps_K ~ tau`. It holds for every tau: `tau = N(0, I)` gives the bound of plain
semi-implicit inference, and the true reverse `q(eps | p)` makes every term equal to `h(p)`, so that K = 0 is exact.
Where plain draws must hit the few eps that explain p by chance, tau aims.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from fedbayes.inference.mixing import Noise, drawn, standard_like


@final
@dataclass(frozen=True, eq=False)
class GivenValue:
    """`tau(. | p) = N(loc, L L^T)` for given p.

    Attributes:
        loc: mean of the noise.
        tril: L, lower triangular with a positive diagonal.
    """

    loc: Float[Tensor, "*batch m"]
    tril: Float[Tensor, "*batch m m"]

    @property
    def _log_volume(self) -> Tensor:
        volume: Tensor = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return volume

    def log_ratio(self, eps: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch"]:
        """`log N(eps; 0, I) - log tau(eps | p)`, nats."""
        off = (eps - self.loc).unsqueeze(-1)
        u: Tensor = torch.linalg.solve_triangular(self.tril, off, upper=False).squeeze(-1)
        return self._log_volume + 0.5 * (u.square() - eps.square()).sum(-1)

    def push(self, u: Float[Tensor, "k *batch m"]) -> tuple[Tensor, Tensor]:
        """`eps = loc + L u` for standard normal u, and its `log_ratio`."""
        eps = self.loc + (self.tril @ u.unsqueeze(-1)).squeeze(-1)
        return eps, self._log_volume + 0.5 * (u.square() - eps.square()).sum(-1)


@final
class GaussianReverse:
    """Amortised `tau(eps | p)`, a Gaussian with full covariance; what else it may depend on, the network closes over.

    Its parameters are those of the network; they are trained by the same loss, since the bound is tightest at the true
    reverse. A network whose last layer starts at zero starts at `tau = N(0, I)`: plain semi-implicit inference.

    Args:
        network: maps `p (..., *batch_shape, *event_shape)` to `(..., *batch_shape, outputs(m))`: the mean, the
            logarithm of L's diagonal, and L's entries below it, row by row.
        noise_dim: m, as in the mixing.
        noise: source of the fresh draws; the default draws from torch's global generator.

    Raises:
        ValueError: if `noise_dim` is not a positive whole number.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], noise_dim: int, noise: Noise | None = None) -> None:
        if not isinstance(noise_dim, int) or noise_dim < 1:
            raise ValueError(f"noise_dim must be a whole number from 1 on, got {noise_dim}: it is the length of eps.")
        self.network, self.noise_dim, self.noise = network, noise_dim, noise

    @staticmethod
    def outputs(noise_dim: int) -> int:
        """Numbers that the network gives for each p: m means and m (m + 1) / 2 entries of L."""
        return noise_dim + noise_dim * (noise_dim + 1) // 2

    def __call__(self, value: Tensor) -> GivenValue:
        """`tau(. | value)`.

        Raises:
            ValueError: if the network gives another number of outputs.
        """
        raw, m = self.network(value), self.noise_dim
        if raw.shape[-1] != self.outputs(m):
            raise ValueError(
                f"the reverse network gave {raw.shape[-1]} outputs for noise_dim={m}; it must give {self.outputs(m)}: "
                "m means and m (m + 1) / 2 entries of a triangle."
            )
        tril = torch.diag_embed(raw[..., m : 2 * m].exp())
        if m > 1:
            rows, columns = torch.tril_indices(m, m, offset=-1, device=raw.device)
            tril[..., rows, columns] = raw[..., 2 * m :]
        return GivenValue(raw[..., :m], tril)

    def standard(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Standard normal draws for `GivenValue.push`."""
        return drawn(self.noise or standard_like(like), shape)


def gaussian_reverse_of_linear(
    location: Float[Tensor, " event"], factor: Float[Tensor, "event m"], scale: float
) -> Callable[[Tensor], Tensor]:
    r"""The true reverse of `psi = location + factor eps`, `p ~ N(psi, scale^2 I)`, as a network for `GaussianReverse`.

    `q(eps | p) = N(V F^T (p - location) / scale^2, V)` with `V = (I + F^T F / scale^2)^-1`; with it the bound is exact.
    """
    m = factor.shape[1]
    eye = torch.eye(m, dtype=factor.dtype, device=factor.device)
    covariance = torch.linalg.inv(eye + factor.T @ factor / scale**2)
    tril = torch.linalg.cholesky(covariance)
    gain = factor @ covariance / scale**2  # (event, m)
    rows, columns = torch.tril_indices(m, m, offset=-1)
    constant = torch.cat([tril.diagonal().log(), tril[rows, columns]])

    def network(p: Tensor) -> Tensor:
        loc = (p - location) @ gain
        return torch.cat([loc, constant.expand(*loc.shape[:-1], -1)], -1)

    assert math.isfinite(float(constant.sum())), "a positive scale gives a positive definite covariance"
    return network

r"""The reverse model of a semi-implicit distribution, after Sobolev & Vetrov, NeurIPS 2019 (arXiv 1905.03290).

With `psi = f(eps)`, `eps ~ N(0, I_m)` and a model `tau(eps | p)` of the noise behind a draw,

    log h(p) <= E log 1/(K+1) sum_{k=0..K} q(p | f(eps_k)) N(eps_k; 0, I) / tau(eps_k | p)

where `eps_0` generated p and `eps_1 .. eps_K ~ tau`. It holds for every tau: `tau = N(0, I)` gives the bound of plain
semi-implicit inference, and the true reverse `q(eps | p)` makes every term equal to `h(p)`, so that K = 0 is exact.
Where plain draws must hit the few eps that explain p by chance, tau aims.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from fedbayes.inference.mixing import Mixing, Noise, Pushforward, StandardLike, require_noise_dim, sample_noise

WIDEST = 20.0
"""Largest logarithm of an entry of L's diagonal, either way: a network gone astray must not turn into NaN."""


@final
@dataclass(frozen=True, eq=False)
class NoisePosterior:
    """`tau(. | p) = N(loc, L L^T)` for given p, with `log_volume = log det L`, which the diagonal might have lost."""

    loc: Float[Tensor, "*batch m"]
    tril: Float[Tensor, "*batch m m"]
    log_volume: Float[Tensor, "*batch"]

    def log_ratio(self, eps: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch"]:
        """`log N(eps; 0, I) - log tau(eps | p)`, nats."""
        off = (eps - self.loc).unsqueeze(-1)
        u: Tensor = torch.linalg.solve_triangular(self.tril, off, upper=False).squeeze(-1)
        return self.log_volume + 0.5 * (u.square() - eps.square()).sum(-1)

    def push(self, u: Float[Tensor, "k *batch m"]) -> tuple[Tensor, Tensor]:
        """`eps = loc + L u` for standard normal u, and its `log_ratio`."""
        eps = self.loc + (self.tril @ u.unsqueeze(-1)).squeeze(-1)
        return eps, self.log_volume + 0.5 * (u.square() - eps.square()).sum(-1)


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
        require_noise_dim(noise_dim)
        self.network, self.noise_dim, self.noise = network, noise_dim, noise

    @staticmethod
    def outputs(noise_dim: int) -> int:
        """Numbers that the network gives for each p: m means and m (m + 1) / 2 entries of L."""
        return noise_dim + noise_dim * (noise_dim + 1) // 2

    def __call__(self, value: Tensor) -> NoisePosterior:
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
        log_diagonal = raw[..., m : 2 * m].clamp(-WIDEST, WIDEST)
        tril = torch.diag_embed(log_diagonal.exp())
        if m > 1:
            rows, columns = torch.tril_indices(m, m, offset=-1, device=raw.device)
            tril[..., rows, columns] = raw[..., 2 * m :]
        return NoisePosterior(raw[..., :m], tril, log_diagonal.sum(-1))

    def standard(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Standard normal draws for `NoisePosterior.push`."""
        return sample_noise(self.noise or StandardLike(like), shape)


def require_fitting(mixing: Mixing, reverse: GaussianReverse | None, chunk: int | None, path_gradient: bool) -> None:
    """Raise ValueError if options of a semi-implicit distribution exclude each other."""
    if reverse is not None:
        if not isinstance(mixing, Pushforward):
            raise ValueError("reverse needs a mixing that tells its noise; wrap the function in a Pushforward.")
        if reverse.noise_dim != mixing.noise_dim:
            raise ValueError(
                f"reverse models {reverse.noise_dim} noise dimensions, mixing has {mixing.noise_dim}; make them equal."
            )
        if path_gradient:
            raise ValueError("path_gradient and reverse exclude each other: a reverse model learns through its draws.")
    elif chunk is not None and not path_gradient and not isinstance(mixing, Pushforward):
        raise ValueError(
            "chunk would draw a plain mixing's psi twice, and differently; use a Pushforward or path_gradient."
        )

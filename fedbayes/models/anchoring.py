r"""How generators whose noise has drifted apart are brought back before they are averaged.

`eps` and `eps R` have the same law for every orthogonal R, so `psi(z, eps)` and `psi(z, eps R)` are the same posterior
in other noise coordinates; yet their parameters average to something else, at worst (`A` and `-A`) to no mixing at all.
So everybody looks at one bank of noise. What a generator answers to it,

    M = E_x,b[ eps_b psi(z_x, eps_b)^T ]      (m x r),

says how it uses each direction: `psi(z, eps R)` has the response `R M`. The rotation onto the response M_0 of the
generator that was handed out is the orthogonal Procrustes problem (Schoenemann, Psychometrika 1966):

    max_R tr(M_0^T R M)   is solved by   R = U V^T,   M_0 M^T = U S V^T
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedbayes.models.prompted import Arrays
from fedbayes.seeding import generator as seeded

SMALLEST_BANK = 32
RECEIVED, SENT = "bank.received", "bank.sent"
"""Names under which a client tells M_0 and M beside its parameters."""


def noise_bank(noise_dim: int, seed: int) -> Float[Tensor, "bank m"]:
    """A fixed set of noise vectors, the same for all clients of a run, with mean exactly 0 and covariance exactly I."""
    half = max(SMALLEST_BANK // 2, 2 * noise_dim)
    eps = torch.randn(half, noise_dim, generator=seeded(seed, "noise bank"), dtype=torch.float64)
    eps = torch.linalg.qr(eps).Q * half**0.5
    return torch.cat([eps, -eps]).float()


def response(
    psi: Float[Tensor, "bank clients images code"],
    bank: Float[Tensor, "bank m"],
    weights: Float[Tensor, "clients images"],
) -> Float[Tensor, "clients m code"]:
    """M of each client, its images weighted; the bank's covariance is I, so a linear psi answers with its matrix."""
    return torch.einsum("bm,bcir,ci->cmr", bank, psi, weights) / len(bank)


def rotation(sent: Float[np.ndarray, "m code"], received: Float[np.ndarray, "m code"]) -> Float[np.ndarray, "m m"]:
    """The orthogonal R that turns a trained generator's response `sent` onto the handed-out one's, `received`."""
    left, _, right = np.linalg.svd(received.astype(np.float64) @ sent.astype(np.float64).T)
    found: np.ndarray = left @ right
    return found


def turned(arrays: Mapping[str, np.ndarray], turn: Float[np.ndarray, "m m"]) -> Arrays:
    """The parameters of `psi(z, eps R)`, given those of `psi(z, eps)`: the same posterior.

    A reverse model's mean turns with the noise exactly. Its covariance, a triangle's exponentials, cannot, and stays:
    the bound holds with any reverse model, and is less tight until it has learnt again.
    """
    m, result = len(turn), dict(arrays)

    def put(name: str, value: np.ndarray) -> None:
        result[name] = np.ascontiguousarray(value, dtype=arrays[name].dtype)

    for name in ("generator.noise.weight", "generator.skip.weight"):
        if name in arrays:
            put(name, turn @ arrays[name])
    for name in ("generator.directions.weight", "generator.directions.bias"):  # of low rank: F R^T, entry by entry
        if name in arrays:
            old = arrays[name]
            put(name, (old.reshape(*old.shape[:-1], -1, m) @ turn.T).reshape(old.shape))
    for name in ("generator.reverse_out.weight", "generator.reverse_out.bias"):
        if name in arrays:
            old = arrays[name]
            put(name, np.concatenate([old[..., :m] @ turn.T, old[..., m:]], axis=-1))
    return result

r"""How generators whose noise has drifted apart are brought back before they are averaged.

`eps` and `eps R` have the same law for every orthogonal R, so `psi(z, eps)` and `psi(z, eps R)` are the same posterior
in other noise coordinates; yet their parameters average to something else, at worst (`A` and `-A`) to no mixing at all.
So everybody is looked at through one bank of noise `eps_b`. What a generator's layers make of it, `eps_b Theta` with
`Theta = [A | noise layer]` (m x n), says how it uses each direction, and `psi(z, eps R)` has `R Theta`. The rotation
back onto the `Theta_0` that was handed out is the orthogonal Procrustes problem (Schoenemann, Psychometrika 1966):

    min_R sum_b |eps_b R Theta - eps_b Theta_0|^2   is solved by   R = U V^T,   Theta_0 Theta^T = U S V^T

since the bank's covariance is exactly I. It needs no message beyond the parameters themselves.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedbayes.arrays import Arrays
from fedbayes.errors import ConfigError
from fedbayes.seeding import generator as seeded

# How a generator's parameters meet the noise, by their names in a client's state: a row for each direction of eps, an
# innermost column for each, or outputs of which the first m are means of eps.
NOISE_ROWS = ("generator.skip.weight", "generator.noise.weight")
NOISE_COLUMNS = ("generator.directions.weight", "generator.directions.bias")
REVERSE_MEANS = ("generator.reverse_out.weight", "generator.reverse_out.bias")

SMALLEST_BANK = 32
STAY = 1e-9
"""Weight of the identity, which decides where the parameters leave the rotation open."""


def noise_bank(noise_dim: int, seed: int) -> Float[Tensor, "bank m"]:
    """A fixed set of noise vectors, the same for all clients of a run, with mean exactly 0 and covariance exactly I."""
    half = max(SMALLEST_BANK // 2, 2 * noise_dim)
    eps = torch.randn(half, noise_dim, generator=seeded(seed, "noise bank"), dtype=torch.float64)
    eps = torch.linalg.qr(eps).Q * half**0.5
    return torch.cat([eps, -eps]).float()


def noise_layers(arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, "m n"]:
    """Return Theta: every parameter that noise meets first, a row for each of its directions.

    Raises:
        ConfigError: if the shared parameters lack one of them.
    """
    rows = [arrays[name] for name in NOISE_ROWS if name in arrays]
    m = len(rows[0]) if rows else 0
    columns = [arrays[name] for name in NOISE_COLUMNS if name in arrays]
    if NOISE_ROWS[0] not in arrays or len(rows) + len(columns) < 2:
        raise ConfigError(
            "method.strategy.aggregate=anchored needs a generator with noise, all of it shared "
            "(generator.kind=semi_implicit or low_rank, nothing of it in method.client.personal); use aggregate=mean."
        )
    transposed = [np.moveaxis(array.reshape(-1, m), 1, 0) for array in columns]
    return np.concatenate([*rows, *transposed], axis=1).astype(np.float64)


def rotation(trained: Float[np.ndarray, "m n"], handed_out: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m m"]:
    """The orthogonal R that turns a trained generator's Theta onto the one that was handed out."""
    product = handed_out @ trained.T
    left, _, right = np.linalg.svd(product + STAY * np.linalg.norm(product) * np.eye(len(product)))
    return np.asarray(left @ right)


def anchored(arrays: Mapping[str, np.ndarray], handed_out: Mapping[str, np.ndarray]) -> Arrays:
    """A trained generator's parameters in the noise coordinates of what was handed out; see `noise_layers`."""
    return turned(arrays, rotation(noise_layers(arrays), noise_layers(handed_out)))


def turned(arrays: Mapping[str, np.ndarray], turn: Float[np.ndarray, "m m"]) -> Arrays:
    """The parameters of `psi(z, eps R)`, given those of `psi(z, eps)`: the same posterior.

    A reverse model's mean turns with the noise exactly. Its covariance, a triangle's exponentials, cannot, and stays:
    the bound holds with any reverse model, and is less tight until it has learnt again.
    """
    m, result = len(turn), dict(arrays)
    for name, old in arrays.items():
        if name in NOISE_ROWS:
            new = turn @ old
        elif name in NOISE_COLUMNS:
            new = (old.reshape(*old.shape[:-1], -1, m) @ turn.T).reshape(old.shape)
        elif name in REVERSE_MEANS:
            new = np.concatenate([old[..., :m] @ turn.T, old[..., m:]], axis=-1)
        else:
            continue
        result[name] = np.ascontiguousarray(new, dtype=old.dtype)
    return result

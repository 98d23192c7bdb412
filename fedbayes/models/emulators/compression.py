r"""Linear layers of fewer numbers: matrices of low rank, and MLPs of fewer hidden channels; all in float64.

Scores are those of GradOT (Yao et al., ACL 2025, arXiv 2507.04455; the paper's text and code were not available, so
these follow two independent descriptions of it): removing a part D of a weight moves the gradient by `S D A` and the
loss by `<G, D>`, with the moments of `statistics`,

    score(D) = |S D A|_1 - lambda <G, D>,   small is good to remove.

The basis `kfac` is ours: it minimises the quadratic form `tr(S D A D')` that belongs to the same curvature, exactly.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedbayes.errors import ConfigError
from fedbayes.models.emulators.statistics import Moments

Factors = tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]]
"""Two matrices whose product has low rank."""

ALWAYS = 0.05
"""Share of a matrix's rank that stays by its singular values, whatever the scores say."""


def rank_of(shape: Sequence[int], keep: float) -> int:
    """Return the largest rank whose two factors have at most the share `keep` of the numbers of a matrix."""
    m, n = shape
    rank = math.floor(keep * m * n / (m + n) + 1e-9)
    if rank < 1:
        raise ConfigError(f"emulator.keep={keep:g} leaves a {m} x {n} matrix no rank; raise it.")
    return rank


def truncated(weight: Float[Tensor, "m n"], moments: Moments, rank: int, *, privacy: float = 0.0) -> Factors:
    """Return the factors of DRD's matrix of low rank, which keeps singular vectors of `weight` by the published score.

    Args:
        weight: W.
        moments: of its layer.
        rank: components that stay.
        privacy: lambda.
    """
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    moved = (moments.outputs @ u).abs().sum(0) * (moments.inputs @ vh.mT).abs().sum(0)  # |a b'|_1 = |a|_1 |b|_1
    loss = ((u.mT @ moments.gradient) * vh).sum(1)
    score = sigma * (moved + privacy * loss)
    score[: min(rank, math.floor(ALWAYS * len(sigma)))] = torch.inf
    chosen = score.argsort(descending=True, stable=True)[:rank]
    return u[:, chosen] * sigma[chosen], vh[chosen]


def truncated_kfac(
    weight: Float[Tensor, "m n"], moments: Moments, rank: int, *, damping: float, privacy: float = 0.0
) -> Factors:
    """Return the factors of that matrix of low rank that minimises `tr(S D A D')`.

    It is the truncated SVD of `S^1/2 W A^1/2`, mapped back.

    Args:
        weight: W.
        moments: of its layer.
        rank: components that stay.
        damping: added to S and A, in units of their mean diagonals.
        privacy: lambda; a component k then also counts `lambda sigma_k <G, S^-1/2 u_k v_k' A^-1/2>`.
    """
    (left, left_inverse), (right, right_inverse) = (roots(x, damping) for x in (moments.outputs, moments.inputs))
    u, sigma, vh = torch.linalg.svd(left @ weight.double() @ right, full_matrices=False)
    u, vh = left_inverse @ u, vh @ right_inverse
    score = sigma.square() + privacy * sigma * ((u.mT @ moments.gradient) * vh).sum(1)
    chosen = score.argsort(descending=True, stable=True)[:rank]
    return u[:, chosen] * sigma[chosen], vh[chosen]


def roots(matrix: Float[Tensor, "n n"], damping: float) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Return the symmetric root of a damped moment and the root's inverse; the identity for a moment of zeros."""
    scale = float(matrix.diagonal().mean())
    if scale == 0:
        return (torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device),) * 2
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    # Behind a norm or GELU a moment is singular, and its smallest values are rounding.
    root = (values.clamp(min=0) + damping * scale).sqrt()
    return (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT


def channel_scores(
    fc1: Float[Tensor, "h d"], fc2: Float[Tensor, "d h"], first: Moments, second: Moments, *, privacy: float = 0.0
) -> Float[Tensor, " h"]:
    """Return SCP's score of each hidden channel, removed from both layers together; small is good to remove."""
    w1, w2 = fc1.double(), fc2.double()
    moved1 = first.outputs.abs().sum(0) * (w1 @ first.inputs).abs().sum(1)
    moved2 = (second.outputs @ w2).abs().sum(0) * second.inputs.abs().sum(1)
    loss = (first.gradient * w1).sum(1) + (second.gradient * w2).sum(0)
    return moved1 + moved2 + privacy * loss


def refitted(
    fc2: Float[Tensor, "d h"], second: Moments, chosen: Int64[Tensor, " k"], *, damping: float
) -> Float[Tensor, "d k"]:
    """Return the weights of the chosen channels that minimise `tr(S D A D')` when the others are gone.

    `W A[:, K] (A[K, K])^-1`, the regression of what the layer gave on what is left, whatever S is.
    """
    a = second.inputs
    inner = a[chosen][:, chosen]
    inner = inner + damping * float(a.diagonal().mean()) * torch.eye(len(chosen), dtype=a.dtype, device=a.device)
    right = (fc2.double() @ a[:, chosen]).mT
    weight: Tensor = torch.linalg.solve(inner, right).mT
    return weight

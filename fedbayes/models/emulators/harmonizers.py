"""Harmonizers: small residual modules on tokens in the place of whole blocks, trained or in closed form."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn


@final
class Harmonizer(nn.Module):
    """`x + U act(D x) + c`, D `(rank, dim)`, U `(dim, rank)`; act is ReLU, as published, or the identity.

    Before training U and c are zero, so that the block is dropped to the bit, and D is random: with both factors zero
    neither would ever have a gradient.
    """

    def __init__(self, dim: int, rank: int, *, is_linear: bool, rng: torch.Generator | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim)
        self.act = nn.Identity() if is_linear else nn.ReLU()
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(rank, dim, generator=rng) * dim**-0.5)
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return the tokens after it."""
        return x + self.up(self.act(self.down(x)))  # type: ignore[no-any-return]


def closed_form(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], rank: int, ridge: float) -> Harmonizer:
    """Return the linear harmonizer that is nearest to a block, by reduced-rank ridge regression.

    `argmin |Y - X - X B - 1 c|^2 + ridge tr(X' X) / d |B|^2` over B of the given rank: the full-rank solution,
    projected on the leading directions of what it fits (Mukherjee & Zhu, Statistical Analysis and Data Mining 4, 2011).

    Args:
        x: tokens that enter, the emulator's.
        y: tokens that leave the block of the full ViT.
        rank: of B.
        ridge: in units of the mean square of a centred column of X.
    """
    x, difference = x.double(), (y - x).double()
    mean, constant = x.mean(0), difference.mean(0)
    centred = x - mean
    gram = centred.mT @ centred
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    full = torch.linalg.solve(gram, centred.mT @ (difference - constant))  # (d, d)
    _, vectors = torch.linalg.eigh(full.mT @ gram @ full)
    leading = vectors[:, vectors.shape[1] - rank :]  # eigenvalues ascend
    harmonizer = Harmonizer(x.shape[1], rank, is_linear=True).to(x.device)
    with torch.no_grad():
        harmonizer.down.weight.copy_((full @ leading).mT)
        harmonizer.up.weight.copy_(leading)
        harmonizer.up.bias.copy_(constant - mean @ full @ leading @ leading.mT)
    return harmonizer

"""Which blocks matter: by a policy gradient over sampled emulators, as in ScaleOT, or by leaving each out."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedbayes.models.backbone import FrozenViT

GROUP = 4
"""Consecutive blocks, about half of which stay in each sampled emulator."""


def sample_kept(importance: Float[Tensor, " blocks"], rng: torch.Generator) -> Bool[Tensor, " blocks"]:
    """Sample which blocks stay: of each group the half, rounded up, with the largest `u sigmoid(I)`, u ~ U(0, 1)."""
    values = torch.rand(len(importance), generator=rng, dtype=importance.dtype) * importance.sigmoid()
    stays = torch.zeros(len(importance), dtype=torch.bool)
    for group in torch.arange(len(importance)).split(GROUP):
        stays[group[values[group].argsort(descending=True)[: -(-len(group) // 2)]]] = True
    return stays


def policy_step(
    importance: Float[Tensor, " blocks"], stays: Sequence[Bool[Tensor, " blocks"]], losses: Sequence[float], rate: float
) -> Float[Tensor, " blocks"]:
    """Return the importance after one update, `I_i + rate p_i (1 - p_i) sum_j r_j [i stays in j]`.

    The reward is `r_j = exp(-L_j)` minus its mean over the sampled emulators j.

    Args:
        importance: I, with `p = sigmoid(I)`.
        stays: the blocks that stay in each sampled emulator.
        losses: of the emulators, nats.
        rate: of the update.
    """
    rewards = torch.exp(-torch.tensor(losses, dtype=importance.dtype))
    rewards -= rewards.mean()
    p = importance.sigmoid()
    return importance + rate * p * (1 - p) * (rewards @ torch.stack(list(stays)).to(importance.dtype))


@torch.no_grad()
def leave_one_out(backbone: FrozenViT, images: Tensor, start: int) -> Float[Tensor, " blocks"]:
    """Return for each block below `start` how far tokens at `start` move without it, `|x' - x| / |x|`."""
    blocks = backbone.blocks
    entering = [backbone.embed(images, 0)]
    for block in blocks[:start]:
        entering.append(block(entering[-1]))
    whole, errors = entering[-1], []
    for i in range(start):
        x = entering[i]
        for block in blocks[i + 1 : start]:
            x = block(x)
        errors.append((x - whole).norm() / whole.norm())
    return torch.stack(errors).double().cpu()

"""The emulator of offsite tuning: an even choice of the lower blocks, the others dropped [1].

[1] Xiao, Lin, Han. Offsite-Tuning: Transfer Learning without Full Model. 2023, arXiv 2302.04870.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Owner, require_keep, tokens_of
from fedbayes.models.emulators.statistics import PIECE
from fedbayes.seeding import generator

WEIGHT_DECAY = 0.1


@final
class UniformEmulator:
    """Keeps k of the m lower blocks, those with index `round(i (m - 1) / (k - 1))`, k the most that `keep` allows.

    Args:
        keep: share of the lower blocks' size that stays.
        distil_steps: of training what stays to give the full ViT's tokens at `start`, on the owner's images.
        distil_lr: of that training, by AdamW.
    """

    def __init__(self, *, keep: float, distil_steps: int, distil_lr: float) -> None:
        self._keep = require_keep(keep)
        self._steps = require_whole("emulator.distil_steps", distil_steps, 0)
        self._lr = require_number("emulator.distil_lr", distil_lr, 0, open_low=True)

    def __call__(self, *, backbone: FrozenViT, start: int, owner: Owner) -> Sequence[nn.Module]:
        """Return the blocks, with an identity in the place of each that is dropped."""
        chosen = spread(start, kept_blocks(self._keep, start))
        lower = list(backbone.blocks[:start])
        blocks = [block if index in chosen else nn.Identity() for index, block in enumerate(lower)]
        if self._steps and len(chosen) < start:
            owner.require("uniform with emulator.distil_steps")
            self._distil(nn.Sequential(*blocks), backbone, start, owner)
        return blocks

    @torch.enable_grad()
    def _distil(self, student: nn.Module, backbone: FrozenViT, start: int, owner: Owner) -> None:
        """Train blocks to give the full ViT's tokens at `start`."""
        entering, leaving = (tokens_of(backbone, owner.images, stop) for stop in (0, start))
        student.requires_grad_(True)
        optimiser = torch.optim.AdamW(student.parameters(), lr=self._lr, weight_decay=WEIGHT_DECAY)
        rng = generator(owner.seed, "owner's batches")
        for _ in range(self._steps):
            batch = torch.randperm(len(entering), generator=rng)[:PIECE]
            optimiser.zero_grad()
            distillation_loss(leaving[batch], student(entering[batch])).backward()
            optimiser.step()
        student.requires_grad_(False)


def distillation_loss(teacher: Float[Tensor, "*n d"], student: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Return the mean square difference of tokens, in units of the teacher's mean square [1]."""
    return (teacher - student).square().mean() / teacher.square().mean()


def kept_blocks(keep: float, blocks: int) -> int:
    """Return how many of equally large blocks stay.

    Raises:
        ConfigError: if none does.
    """
    count = int(keep * blocks + 1e-9)
    if not count:
        raise ConfigError(
            f"emulator.keep={keep:g} of {blocks} blocks below prompts.start_layer leaves none; raise it to "
            f"{1 / blocks:.2g}."
        )
    return count


def spread(blocks: int, count: int) -> set[int]:
    """Return `count` of the indices below `blocks`, evenly spread from the first to the last; a single one is 0."""
    return {round(i * (blocks - 1) / max(1, count - 1)) for i in range(count)}

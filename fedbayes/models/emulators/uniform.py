"""The emulator of offsite tuning: an even choice of the lower blocks, the others dropped [1].

[1] Xiao, Lin, Han. Offsite-Tuning: Transfer Learning without Full Model. 2023, arXiv 2302.04870.
"""

from collections.abc import Sequence
from typing import final

from torch import nn

from fedbayes.errors import ConfigError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Owner, require_keep


@final
class UniformEmulator:
    """Keeps k of the m lower blocks, those with index `round(i (m - 1) / (k - 1))`, k the most that `keep` allows.

    Args:
        keep: share of the lower blocks' size that stays.
    """

    def __init__(self, *, keep: float) -> None:
        self._keep = require_keep(keep)

    def __call__(self, *, backbone: FrozenViT, start: int, owner: Owner) -> Sequence[nn.Module]:  # noqa: ARG002  (it needs no images)
        """Return the blocks, with an identity in the place of each that is dropped."""
        chosen = spread(start, kept_blocks(self._keep, start))
        return [block if index in chosen else nn.Identity() for index, block in enumerate(backbone.vit.blocks[:start])]


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

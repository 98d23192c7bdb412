"""What all emulators share: a ViT of the same depth and indices whose blocks below `start` are lossy, and its size.

In offsite tuning (Xiao et al. 2023, arXiv 2302.04870) the owner of a model gives clients an emulator. They tune
prompts, adapters and head on it, and what they learnt is plugged into the full model, which they never have. Here the
blocks from `prompts.start_layer` on are the adapter region: they are given away as they are, as in FedBiOT (Wu et al.,
KDD 2024, arXiv 2406.17706). A dropped block is an `nn.Identity`, so that names and indices stay those of the full ViT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from fedbayes.errors import BackboneError, ConfigError, require_number
from fedbayes.models.architectures import AbsolutePositions
from fedbayes.models.backbone import FrozenViT

LEFT, RIGHT = "left", "right"
"""Buffers of a linear layer whose weight `(m, n)` is the product of two factors, `(m, r)` and `(r, n)`."""


@final
@dataclass(frozen=True, eq=False)
class Owner:
    """The images of the ViT's owner, which no client has, and the seed of everything random in an emulator."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    classes: int
    seed: int

    def require(self, emulator: str, least: int = 1) -> None:
        """Raise a `ConfigError` if there are fewer images than an emulator needs."""
        if len(self.images) < least:
            raise ConfigError(
                f"owner.images={len(self.images)}: emulator={emulator} is made with {least} images of the owner at "
                "least; set owner.images=256."
            )


MakeBlocks = Callable[..., Sequence[nn.Module]]
"""`make(backbone=..., start=..., owner=...)`: blocks in the place of those below `start`; `backbone` is a copy."""


@final
@dataclass(frozen=True, eq=False)
class Emulator:
    """A ViT whose lower blocks are lossy.

    Attributes:
        backbone: what clients tune.
        start: the first block that is given away as it is.
        size: numbers in the lower blocks, a matrix of low rank as its factors.
        full_size: numbers in the same blocks of the full ViT.
        total: numbers in all that a client is sent of the emulator, likewise.
    """

    backbone: FrozenViT
    start: int
    size: int
    full_size: int
    total: int

    @property
    def bytes(self) -> int:
        """Bytes of float32 that each client is sent once."""
        return 4 * self.total


def emulate(make: MakeBlocks, backbone: FrozenViT, start: int, owner: Owner) -> Emulator:
    """Return the emulator with the lower blocks that `make` returns; nothing in it is shared with `backbone`.

    Raises:
        BackboneError: if the backbone's blocks are not those of timm's plain ViT.
        ConfigError: for a value of `emulator` that cannot work.
    """
    if not isinstance(backbone.architecture, AbsolutePositions):
        family = type(backbone.architecture).__name__
        raise BackboneError(
            f"backbone.name={backbone.name}: emulator knows no blocks with positions of their own ({family}); "
            "choose a plain ViT, e.g. vit_tiny_patch16_224."
        )
    copied = backbone.with_blocks([])
    lower = list(make(backbone=copied, start=start, owner=owner))
    assert len(lower) == start, "an emulator has as many blocks as the ViT"
    emulator = copied.with_blocks(lower)
    full = size(nn.ModuleList(backbone.blocks[:start]))
    return Emulator(emulator, start, size(nn.ModuleList(lower)), full, size(emulator))


def size(module: nn.Module) -> int:
    """Return the numbers in a module; a matrix `(m, n)` of rank r counts `min(m n, r (m + n))`."""
    total = sum(parameter.numel() for parameter in module.parameters())
    for layer in module.modules():
        if hasattr(layer, LEFT):
            assert isinstance(layer, nn.Linear), "only linear layers are factored"
            total -= max(0, layer.weight.numel() - getattr(layer, LEFT).shape[1] * sum(layer.weight.shape))
    return total


@torch.no_grad()
def set_low_rank(linear: nn.Linear, left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]) -> None:
    """Give a layer the weight `left @ right`, in place; it is kept whole, which runs fastest, beside its factors."""
    factors = left.to(linear.weight.dtype), right.to(linear.weight.dtype)
    linear.weight.copy_(factors[0] @ factors[1])
    for name, factor in zip((LEFT, RIGHT), factors, strict=True):
        linear.register_buffer(name, factor.contiguous(), persistent=False)


def require_keep(value: object) -> float:
    """Return `emulator.keep`, the share of the lower blocks' size that stays, if it is one."""
    return require_number("emulator.keep", value, 0, 1, open_low=True)


def require_plain(backbone: FrozenViT, start: int, emulator: str) -> None:
    """Raise a `BackboneError` if a block below `start` is not the original ViT's, whose parts an emulator takes."""
    from fedbayes.models.blocks import is_plain

    for index, block in enumerate(backbone.blocks[:start]):
        if not is_plain(block):
            raise BackboneError(
                f"backbone.name={backbone.name}: block {index} has parts that emulator={emulator} does not know; "
                "choose emulator=uniform, or a plain ViT, e.g. vit_tiny_patch16_224."
            )


@torch.no_grad()
def tokens_of(backbone: FrozenViT, images: Tensor, start: int) -> Tensor:
    """Return the tokens of images after the blocks below `start`, `(n, t, d)`, piece by piece."""
    return torch.cat([backbone.embed(part.to(backbone.mean.device), start) for part in images.split(64)])

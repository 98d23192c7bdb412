"""What all prompt generators share: their sizes, layers with a client axis, and the interface that clients use."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedbayes.errors import ConfigError

BASE = "generator.base"
"""The name of `P_base` in a client's state, `(blocks, length, dim)`."""


@final
@dataclass(frozen=True)
class Sizes:
    """Sizes that the model and the federation fix before prompts are made.

    Attributes:
        blocks: prompt sets of an image: one for VPT-shallow, one for each prompted block for VPT-deep.
        length: prompts in a set; 0 leaves the backbone as it is.
        dim: width of a token.
    """

    blocks: int
    length: int
    dim: int
    classes: int = 1
    clients: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of all prompts of an image."""
        return self.blocks, self.length, self.dim


@final
class ByBlock(nn.Module):
    """A tensor cut along an axis into a parameter for each block, `blocks.N`; called, it is the whole again."""

    def __init__(self, whole: Tensor, axis: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self._axis = axis
        cuts = whole.detach().tensor_split(len(blocks), axis)
        self.blocks = nn.ParameterDict(
            {str(block): nn.Parameter(cut.clone()) for block, cut in zip(blocks, cuts, strict=True)}
        )

    def forward(self) -> Tensor:
        """Join the blocks."""
        return torch.cat([*self.blocks.values()], self._axis)


def cut_by_block(owner: nn.Module, name: str, axis: int, blocks: Sequence[int]) -> None:
    """Put a `ByBlock` in the place of a parameter."""
    tensor = getattr(owner, name)
    delattr(owner, name)
    setattr(owner, name, ByBlock(tensor, axis, blocks))


def whole(tensor: Tensor | ByBlock) -> Tensor:
    """Return a tensor that may be cut by block."""
    return tensor() if isinstance(tensor, ByBlock) else tensor


@final
class ClientLinear(nn.Module):
    """A linear layer for each client: `x (..., C, B, in) -> (..., C, B, out)` with weights `(C, in, out)`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, std: float, rng: torch.Generator) -> None:
        super().__init__()
        self.weight: nn.Parameter | ByBlock = nn.Parameter(std * torch.randn(1, inputs, outputs, generator=rng))
        self.bias = nn.Parameter(torch.zeros(1, 1, outputs)) if bias else None

    def forward(self, x: Float[Tensor, "*samples clients images i"]) -> Float[Tensor, "*samples clients images o"]:
        """Apply each client's layer to its images."""
        y = x @ whole(self.weight)
        return y if self.bias is None else y + self.bias


def xavier(*shape: int, rng: torch.Generator) -> Tensor:
    """Prompts before training, uniform with Xavier's bound for their width, as VPT starts them."""
    return (2 * torch.rand(*shape, generator=rng) - 1) * math.sqrt(6 / (shape[-1] + shape[-1]))


class AbstractPrompts(nn.Module, ABC):
    """Where prompts come from. A method with prompts of another kind names its class in `method.generator`.

    A subclass takes `sizes`, `rng` for the initial values, and its settings. Every parameter has a leading client axis.
    A parameter with `requires_grad=False` is sent and stacked like any other, and never trained.
    """

    kind: str

    def cut(self, blocks: Sequence[int]) -> None:  # noqa: ARG002  (a hook)
        """Cut what belongs to one block each, of those that are prompted, into parameters of their own.

        Raises:
            ConfigError: if no parameter belongs to one block.
        """
        raise ConfigError(f"sparse: prompts of {type(self).__name__} do not belong to blocks; choose sparse=none.")

    @abstractmethod
    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients images_or_1 blocks length dim"]:
        """Prompts without a posterior, for images with class features z."""

    def penalty(
        self,
        z: Float[Tensor, "clients images dim"],  # noqa: ARG002  (a hook: methods may use both)
        weights: Float[Tensor, "clients images"],  # noqa: ARG002
    ) -> Float[Tensor, " clients"] | None:
        """Return what a method adds to each client's training loss, nats per image; None for nothing.

        `weights` of images are 0 for padding and sum to 1 for each client, or to 0 if it has no image in the batch.
        """
        return None


@final
class FixedPrompts(AbstractPrompts):
    """`P = P_base`, the same for all images, as in VPT."""

    kind = "fixed"

    def __init__(self, sizes: Sizes, rng: torch.Generator) -> None:
        super().__init__()
        self.base: nn.Parameter | ByBlock = nn.Parameter(xavier(1, *sizes.shape, rng=rng))

    def cut(self, blocks: Sequence[int]) -> None:
        """Cut `P_base`."""
        cut_by_block(self, "base", 1, blocks)

    def plain(self, z: Float[Tensor, "clients images dim"]) -> Float[Tensor, "clients 1 blocks length dim"]:  # noqa: ARG002
        """`P_base`."""
        return whole(self.base).unsqueeze(1)

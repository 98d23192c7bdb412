"""The frozen vision transformer: tokens below a block, tokens through the rest, and nothing that learns.

An image becomes `[prefix, patch tokens]`, where the prefix is a class token, registers, both or nothing. Prompts stand
between the two, as in VPT (Jia et al., ECCV 2022, arXiv 2203.12119). `fedbayes.models.architectures` has what differs
between families of ViTs. Blocks below `start` never see a prompt, so `embed` gives their output once per image and
callers may keep it.
"""

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import functional_call

from fedbayes.arrays import under
from fedbayes.errors import require_choice
from fedbayes.models.architectures import architecture_of
from fedbayes.models.blocks import FoldedBlock, fold, is_plain, run_folded, with_prompts

PRECISIONS = ("float32", "bf16")
PIECE = 720_000
"""Bytes in the tokens of the images that go through the blocks at once on a CPU; see `fedbayes.models.blocks`."""


@final
class FrozenViT(nn.Module):
    """A ViT of timm's in eval mode whose weights have no gradient.

    Args:
        vit: the transformer, of one of the families in `fedbayes.models.architectures`.
        name: for messages and summaries.
        mean: per channel, of the pixels in [0, 1].
        std: likewise.

    Raises:
        BackboneError: if prompts do not fit the ViT, or its patches do not cover the images.
    """

    vit: Any  # timm's, whose attributes carry no types
    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.architecture = architecture_of(vit, name)
        self.vit = vit.eval().requires_grad_(False)
        self.name = name
        self.dim: int = self.vit.embed_dim
        self.depth: int = len(self.vit.blocks)
        self.image_size: int = self.vit.patch_embed.img_size[0]
        self.prefix = self.architecture.prefix
        self.num_tokens: int = self.prefix + self.vit.patch_embed.num_patches
        self._bf16 = False
        self._block_parameters = tuple(self.vit.blocks.parameters())
        self._folds: Sequence[FoldedBlock | None] = ()
        self._fold_state: list[tuple[int, int, torch.dtype]] | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def blocks(self) -> nn.Sequential:
        """The blocks, timm's or an emulator's."""
        return self.vit.blocks  # type: ignore[no-any-return]

    def layer(self, name: str) -> Any:
        """Return the module of timm's name, e.g. `blocks.0.attn.qkv`; the empty name is the ViT."""
        return self.vit.get_submodule(name)

    def weights(self) -> dict[str, Tensor]:
        """Return the ViT's weights and buffers by timm's names, as in a checkpoint."""
        return self.vit.state_dict()  # type: ignore[no-any-return]

    def with_blocks(self, lower: Sequence[nn.Module]) -> "FrozenViT":
        """Return a copy whose first blocks are others."""
        vit = copy.deepcopy(self.vit)
        vit.blocks = nn.Sequential(*lower, *vit.blocks[len(lower) :])
        mean, std = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return FrozenViT(vit, self.name, mean, std).to(self.mean.device)

    def cast(self, precision: str) -> "FrozenViT":
        """Convert the backbone in place, and return it.

        `float32` leaves it as it is. `bf16` keeps linear and convolution weights and tokens in bfloat16 and computes
        under autocast; features and the prompts' gradients stay float32. Another precision raises a ConfigError.
        """
        if require_choice("simulation.precision", precision, PRECISIONS) == "bf16":
            self._bf16 = True
            for module in self.vit.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(torch.bfloat16)
        return self

    def train(self, mode: bool = True) -> "FrozenViT":  # noqa: ARG002  (frozen: the mode is never taken over)
        """Stay in eval mode: dropout and stochastic depth never act in a frozen backbone."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of pixels and features."""
        return self.mean.dtype

    @property
    def tokens_dtype(self) -> torch.dtype:
        """Type of what `embed` returns."""
        return torch.bfloat16 if self._bf16 else self.dtype

    def autocast(self) -> torch.autocast:
        """Return the context that blocks are computed in."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self._bf16)

    def normalised(self, images: Num[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
        """Standardise pixels, uint8 or floating, in 0..255."""
        return (images.to(self.dtype) / 255 - self.mean) / self.std

    @torch.no_grad()
    def embed(self, images: Num[Tensor, "n 3 h w"], start: int) -> Float[Tensor, "n t d"]:
        """Tokens of pixels in 0..255 after the blocks below `start`, 0..depth; prefix first, no prompts."""
        with self.autocast():
            tokens = self.architecture.tokens(self.vit, self.normalised(images))
            for index in range(start):
                tokens = self.architecture.block(self.vit, index, tokens, 0)
        return tokens.to(self.tokens_dtype)

    @torch.no_grad()
    def features(self, images: Num[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """The prompt-free feature, equal to timm's `forward_head(forward_features(x), pre_logits=True)`."""
        return self.forward(self.embed(images, 0), None, 0)

    def forward(
        self,
        tokens: Float[Tensor, "n t d"],
        prompts: Float[Tensor, "n blocks l d"] | None,
        start: int,
        changed: Mapping[str, Tensor] | None = None,
        learnt: Container[int] | None = None,
    ) -> Float[Tensor, "n d"]:
        """The feature, before any head, of tokens that enter block `start` together with their prompts.

        Args:
            tokens: output of `embed(images, start)`, or of `advance` up to there.
            prompts: one set for block `start` (shallow) or one for each block from there on (deep); None for none.
            start: the block that sees prompts first.
            changed: weights in the place of frozen ones, by timm's names; gradients reach them.
            learnt: blocks whose prompts gradients reach; None for all. Below the lowest, nothing is kept for them.
        """
        x = self._through(tokens, prompts, start, self.depth, changed or {}, learnt)
        length = 0 if prompts is None else prompts.shape[2]
        with self.autocast():
            if start == self.depth:
                feature = self.architecture.pool(self.vit, x, 0)
            else:
                feature = self._run(lambda vit, x: self.architecture.feature(vit, x, length), changed or {}, x)
        return feature.to(self.dtype)

    def from_pixels(self, images: Num[Tensor, "n 3 h w"], changed: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Return the feature of pixels in 0..255, with weights in the place of all frozen ones; see `forward`."""

        def function(vit: Any, x: Tensor) -> Tensor:
            x = self.architecture.tokens(vit, x)
            for index in range(self.depth - 1):
                x = self.architecture.block(vit, index, x, 0)
            return self.architecture.feature(vit, x, 0)

        is_slow = self._bf16 and images.device.type == "cpu"
        with self.autocast(), _without_fused_attention(self.vit) if is_slow else nullcontext():
            return self._run(function, changed, self.normalised(images)).to(self.dtype)

    def block(self, index: int, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Run timm's block on tokens without prompts; hooks and gradients work."""
        return self.architecture.block(self.vit, index, x, 0)

    def last(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """Return the feature of tokens without prompts that enter the last block."""
        return self.architecture.feature(self.vit, x, 0)

    def pool(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """Return the feature of tokens without prompts after the last block."""
        return self.architecture.pool(self.vit, x, 0)

    def advance(
        self, tokens: Float[Tensor, "n t d"], start: int, stop: int, changed: Mapping[str, Tensor]
    ) -> Float[Tensor, "n t d"]:
        """Return the tokens after the blocks from `start` to below `stop`, which see no prompts; see `forward`."""
        return self._through(tokens, None, start, stop, changed) if stop > start else tokens

    def _through(
        self,
        tokens: Tensor,
        prompts: Tensor | None,
        start: int,
        stop: int,
        changed: Mapping[str, Tensor],
        learnt: Container[int] | None = None,
    ) -> Tensor:
        """Return what the last block is given, or the tokens after the blocks below `stop` if it is not among them."""
        weights = [under(f"blocks.{i}.", changed) for i in range(self.depth)]
        prompts = None if prompts is None else prompts.to(tokens.dtype)
        length = 0 if prompts is None else prompts.shape[2]
        ends = []
        with self.autocast():
            folded = self._folded(tokens, weights)
            for x, sets in zip(*self._pieces(tokens, prompts), strict=True):
                for i in range(start, stop):
                    rows = sets[:, i - start] if sets is not None and i - start < sets.shape[1] else None
                    rows = rows if rows is None or learnt is None or i in learnt else rows.detach()
                    replaced = 0 if i == start else length
                    fast = folded[i]
                    if fast is not None:
                        x = run_folded(x, rows, replaced, fast, self.prefix)
                        continue
                    x = x if rows is None else with_prompts(x, rows, replaced, self.prefix)
                    if i < self.depth - 1:
                        own = {f"blocks.{i}.{name}": weight for name, weight in weights[i].items()}
                        x = self._run(partial(self._block, i, length), own, x)
                ends.append(x)
        return torch.cat(ends)

    def _block(self, index: int, length: int, vit: Any, x: Tensor) -> Tensor:
        """Run a block of `vit`; see `AbstractArchitecture.block`."""
        return self.architecture.block(vit, index, x, length)

    def _run(self, function: Callable[[Any, Tensor], Tensor], changed: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return `function(vit, x)` with some weights in the place of frozen ones."""
        weights = {f"vit.{name}": weight for name, weight in changed.items()}
        out: Tensor = functional_call(_OnViT(self.vit, function), weights, (x,)) if changed else function(self.vit, x)
        return out

    def _pieces(self, tokens: Tensor, prompts: Tensor | None) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """Split images, on a CPU, so that they fit its cache; how many depends on shapes alone."""
        length = 0 if prompts is None else prompts.shape[2]
        size = len(tokens)
        if tokens.device.type == "cpu":
            size = max(1, PIECE // ((tokens.shape[1] + length) * self.dim * tokens.element_size()))
        parts = tokens.split(size)
        return parts, [None] * len(parts) if prompts is None else prompts.split(size)

    def _folded(self, tokens: Tensor, weights: Sequence[Mapping[str, Tensor]]) -> Sequence[FoldedBlock | None]:
        """Return the weights of each block whose passes are written out for this device and type; None for timm's."""
        if tokens.device.type != "cpu" or (torch.is_autocast_enabled("cpu") and not self._bf16):
            return [None] * self.depth
        state = [(p.data_ptr(), p._version, p.dtype) for p in self._block_parameters]
        if state != self._fold_state:
            plain = [fold(block, self.tokens_dtype) if is_plain(block) else None for block in self.vit.blocks[:-1]]
            self._folds, self._fold_state = [*plain, None], state
        if not any(weights):
            return self._folds
        blocks = zip(self.vit.blocks, self._folds, weights, strict=True)
        return [f if f is None or not w else fold(block, self.tokens_dtype, w) for block, f, w in blocks]


@contextmanager
def _without_fused_attention(vit: nn.Module) -> Iterator[None]:
    """Use plain products: on a CPU, the fused attention takes most of a bfloat16 step's backward pass."""
    fused: list[Any] = [module for module in vit.modules() if getattr(module, "fused_attn", False)]
    for attention in fused:
        attention.fused_attn = False
    try:
        yield
    finally:
        for attention in fused:
            attention.fused_attn = True


@final
class _OnViT(nn.Module):
    """`function(vit, x)` as a module, for `functional_call`."""

    def __init__(self, vit: Any, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.vit, self.function = vit, function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(self.vit, x)

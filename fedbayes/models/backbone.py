"""The frozen vision transformer: tokens below a block, tokens through the rest, and nothing that learns.

An image becomes `[class token, patch tokens]`. Prompts stand between the two, as in VPT (Jia et al., ECCV 2022,
arXiv 2203.12119). Blocks below `start` never see a prompt, so `embed` gives their output once per image and callers
may keep it.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import functional_call

from fedbayes.arrays import under
from fedbayes.errors import BackboneError, require_choice
from fedbayes.models.blocks import FoldedBlock, class_feature, fold, is_plain, run_folded, with_prompts

PRECISIONS = ("float32", "bf16")
PIECE = 720_000
"""Bytes in the tokens of the images that go through the blocks at once on a CPU; see `fedbayes.models.blocks`."""


@final
class FrozenViT(nn.Module):
    """A timm `VisionTransformer` in eval mode whose weights have no gradient.

    Args:
        vit: the transformer; it must have a class token, no registers and read its features off the class token.
        name: for messages and summaries.
        mean: per channel, of the pixels in [0, 1].
        std: likewise.

    Raises:
        BackboneError: if prompts or features would not be VPT's, or the patches do not cover the images.
    """

    vit: Any  # timm's, whose attributes carry no types
    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        require_supported(vit, name)
        self.vit = vit.eval().requires_grad_(False)
        self.name = name
        self.dim: int = self.vit.embed_dim
        self.depth: int = len(self.vit.blocks)
        self.image_size: int = self.vit.patch_embed.img_size[0]
        self.num_tokens: int = self.vit.patch_embed.num_patches + 1
        self._bf16 = False
        self._block_parameters = tuple(self.vit.blocks.parameters())
        self._folds: Sequence[FoldedBlock | None] = ()
        self._fold_state: list[tuple[int, int, torch.dtype]] | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

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
        """Tokens of pixels in 0..255 after the blocks below `start`, 0..depth; class token first, no prompts."""
        with self.autocast():
            tokens: Tensor = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(self.normalised(images))))
            for block in self.vit.blocks[:start]:
                tokens = block(tokens)
        return tokens.to(self.tokens_dtype)

    @torch.no_grad()
    def features(self, images: Num[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """The prompt-free class feature, equal to timm's `forward_head(forward_features(x), pre_logits=True)`."""
        return self.forward(self.embed(images, 0), None, 0)

    def forward(
        self,
        tokens: Float[Tensor, "n t d"],
        prompts: Float[Tensor, "n blocks l d"] | None,
        start: int,
        changed: Mapping[str, Tensor] | None = None,
        learnt: Container[int] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Class feature, before any head, of tokens that enter block `start` together with their prompts.

        Args:
            tokens: output of `embed(images, start)`, or of `advance` up to there.
            prompts: one set for block `start` (shallow) or one for each block from there on (deep); None for none.
            start: the block that sees prompts first.
            changed: weights in the place of frozen ones, by timm's names; gradients reach them.
            learnt: blocks whose prompts gradients reach; None for all. Below the lowest, nothing is kept for them.
        """
        x = self._through(tokens, prompts, start, self.depth, changed or {}, learnt)
        with self.autocast():
            if start == self.depth:
                feature: Tensor = self.vit.fc_norm(self.vit.norm(x[:, :1])[:, 0])
            elif changed:
                weights = {f"vit.{name}": weight for name, weight in changed.items()}
                feature = functional_call(OnViT(self.vit, class_feature), weights, (x,))
            else:
                feature = class_feature(self.vit, x)
        return feature.to(self.dtype)

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
                        x = run_folded(x, rows, replaced, fast)
                        continue
                    x = x if rows is None else with_prompts(x, rows, replaced)
                    x = x if i == self.depth - 1 else functional_call(self.vit.blocks[i], weights[i], (x,))
                ends.append(x)
        return torch.cat(ends)

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


@final
class OnViT(nn.Module):
    """`function(vit, x)` as a module, for `functional_call`."""

    def __init__(self, vit: Any, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.vit, self.function = vit, function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(self.vit, x)


def require_supported(vit: Any, name: str) -> None:
    """Check that prompts after a single class token fit a ViT.

    Raises:
        BackboneError: if not.
    """
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    remedy = "choose a ViT with a class token, no registers and class-token pooling, e.g. vit_tiny_patch16_224."
    known: bool = isinstance(vit, VisionTransformer)
    if not known:
        raise BackboneError(f"backbone.name={name} is a {type(vit).__name__}, not a timm VisionTransformer; {remedy}")
    if vit.cls_token is None:
        raise BackboneError(f"backbone.name={name} has no class token; {remedy}")
    if vit.num_prefix_tokens != 1:
        raise BackboneError(f"backbone.name={name} has {vit.num_prefix_tokens} prefix tokens; {remedy}")
    if vit.global_pool != "token" or vit.attn_pool is not None:
        raise BackboneError(f"backbone.name={name} pools its features by '{vit.global_pool}'; {remedy}")
    side, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    if side < patch or side % patch:
        raise BackboneError(
            f"data.image_size={side} is not a multiple of {patch}, the patch of backbone.name={name}, which would cut "
            f"off a border; choose e.g. {max(1, round(side / patch)) * patch}."
        )
    last = vit.blocks[-1]
    if type(last) is not Block or type(last.attn) is not Attention or last.attn.gate is not None:
        raise BackboneError(f"backbone.name={name} has blocks of type {type(last).__name__}; {remedy}")

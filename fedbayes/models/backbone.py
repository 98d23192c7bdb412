"""The frozen vision transformer: tokens below a block, tokens through the rest, and nothing that learns.

An image becomes `[class token, patch tokens]`. Prompts stand between the two, as in VPT (Jia et al., ECCV 2022,
arXiv 2203.12119). Blocks below `start` never see a prompt, so `embed` gives their output once per image and callers
may keep it.
"""

import warnings
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import BackboneError


@final
class FrozenViT(nn.Module):
    """A timm `VisionTransformer` in eval mode whose weights have no gradient.

    Args:
        vit: the transformer; it must have a class token, no registers and read its features off the class token.
        name: what to call it in messages and summaries.
        mean: per channel, of the pixels in [0, 1].
        std: per channel, of the pixels in [0, 1].

    Raises:
        BackboneError: if the architecture is one whose prompts or features would be something else than VPT's, or its
            patches do not cover its images.
    """

    vit: Any  # timm's, whose attributes carry no types
    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        _require_supported(vit, name)
        self.vit = vit.eval().requires_grad_(False)
        self.name = name
        self.dim: int = self.vit.embed_dim
        self.depth: int = len(self.vit.blocks)
        self.image_size: int = self.vit.patch_embed.img_size[0]
        self.num_tokens: int = self.vit.patch_embed.num_patches + 1
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "FrozenViT":  # noqa: ARG002  (frozen: the mode is never taken over)
        """Stay in eval mode: dropout and stochastic depth never act in a frozen backbone."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, hence of tokens and features."""
        return self.mean.dtype

    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"], start: int) -> Float[Tensor, "n t d"]:
        """Tokens of `images` after the blocks below `start`, class token first, no prompts.

        Args:
            images: pixels, uint8 in 0..255 or floating in 0..255 (an augmented image).
            start: number of blocks to go through, 0..depth.
        """
        pixels = (images.to(self.dtype) / 255 - self.mean) / self.std
        tokens: Tensor = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(pixels)))
        for block in self.vit.blocks[:start]:
            tokens = block(tokens)
        return tokens

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """The prompt-free class feature, equal to timm's `forward_head(forward_features(x), pre_logits=True)`."""
        return self.forward(self.embed(images, 0), None, 0)

    def forward(
        self, tokens: Float[Tensor, "n t d"], prompts: Float[Tensor, "n blocks l d"] | None, start: int
    ) -> Float[Tensor, "n d"]:
        """Class feature of tokens that enter block `start` together with their prompts.

        Args:
            tokens: output of `embed(images, start)`.
            prompts: one set for block `start` (shallow) or one for each block from there on (deep); None for none.
            start: the block that sees prompts first.

        Returns:
            The class token after the last block and the final norm, before any head.
        """
        blocks = list(self.vit.blocks)[start:]
        length = 0 if prompts is None else prompts.shape[2]
        x = tokens
        for i, block in enumerate(blocks):
            if prompts is not None and i < prompts.shape[1]:
                x = torch.cat([x[:, :1], prompts[:, i], x[:, 1 if i == 0 else 1 + length :]], dim=1)  # (n, 1+l+t-1, d)
            x = class_row(block, x) if block is blocks[-1] else block(x)
        feature: Tensor = self.vit.fc_norm(self.vit.norm(x[:, :1])[:, 0])
        return feature


def class_row(block: Any, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n 1 d"]:
    """Row 0 of `block(x)`, without computing the others: in the last block only the class token is read again."""
    attention = block.attn
    n, t, _ = x.shape
    normed = block.norm1(x)
    heads, width = attention.num_heads, attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    split = heads * width
    query = F.linear(normed[:, :1], weight[:split], None if bias is None else bias[:split])
    key_value = F.linear(normed, weight[split:], None if bias is None else bias[split:])
    query = query.view(n, 1, heads, width).transpose(1, 2)  # (n, heads, 1, width)
    key, value = key_value.view(n, t, 2, heads, width).permute(2, 0, 3, 1, 4)  # each (n, heads, t, width)
    query, key = attention.q_norm(query), attention.k_norm(key)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    row = attention.norm(mixed.transpose(1, 2).reshape(n, 1, split))
    row = x[:, :1] + block.ls1(attention.proj(row))
    out: Tensor = row + block.ls2(block.mlp(block.norm2(row)))
    return out


def load_weights(vit: nn.Module, state: dict[str, Any], source: str) -> None:
    """Fill `vit` from a checkpoint's tensors; position embeddings of another image size are resampled by timm.

    Args:
        vit: the transformer to fill, already at the wanted image size.
        state: the checkpoint as read, whatever is in it; its classification head is ignored.
        source: the checkpoint's name, for errors.

    Raises:
        BackboneError: if a tensor is missing, left over or of another shape.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filtered = checkpoint_filter_fn(dict(state), vit)  # type: ignore[arg-type]
        wanted = vit.state_dict()
        filtered = {name: tensor for name, tensor in filtered.items() if not name.startswith("head.") or name in wanted}
        vit.load_state_dict(filtered, strict=True)
    except (RuntimeError, KeyError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"backbone.checkpoint={source} does not fit {type(vit).__name__}: {reason}; "
            "name the architecture it was saved from in backbone.name."
        ) from error


def _require_supported(vit: Any, name: str) -> None:
    """Refuse, by name, what prompts after a single class token would not fit."""
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

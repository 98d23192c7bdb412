"""What prompts need of a ViT, for each family of timm's: its tokens, its blocks and its feature.

Prompts stand after the prefix (class token and registers) and before the patches. They have no place on the image:

- with absolute positions, nothing is added to them, as in VPT (Jia et al., ECCV 2022, arXiv 2203.12119);
- with rotary positions (RoFormer, arXiv 2104.09864; EVA-02, DINOv3), they are not rotated, as the class token is not;
- with relative positions (BEiT, Bao et al., ICLR 2022, arXiv 2106.08254), their biases are those of the class token.

Pooling, by a mean or by attention, reads prefix and patches as in pre-training, and no prompt.
"""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fedbayes.errors import BackboneError
from fedbayes.models.blocks import class_feature

FAMILIES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
"""Modules of timm whose models have one of the architectures here."""
REMEDY = "choose a ViT of timm, e.g. vit_tiny_patch16_224."


class AbstractArchitecture(ABC):
    """A family of timm's ViTs; it holds no weights, so that those of `vit` can be replaced while it is run.

    Args:
        vit: a ViT of the family.

    Attributes:
        prefix: tokens before the prompts, and before the patches.
        reads_class_token: whether the feature is that of token 0 alone.
    """

    def __init__(self, vit: Any) -> None:
        self.prefix: int = vit.num_prefix_tokens
        self.reads_class_token = vit.global_pool == "token" and getattr(vit, "attn_pool", None) is None

    @abstractmethod
    def tokens(self, vit: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        """Return what enters block 0: prefix and patches of normalised pixels."""

    @abstractmethod
    def block(self, vit: Any, index: int, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n t d"]:
        """Run a block on tokens with `length` prompts after the prefix."""

    def feature(self, vit: Any, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n d"]:
        """Return timm's feature of tokens that enter the last block."""
        return self.pool(vit, self.block(vit, len(vit.blocks) - 1, x, length), length)

    def pool(self, vit: Any, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n d"]:
        """Return timm's feature of tokens after the last block."""
        if self.reads_class_token:
            feature: Tensor = vit.fc_norm(vit.norm(x[:, :1])[:, 0])
        else:
            x = torch.cat([x[:, : self.prefix], x[:, self.prefix + length :]], dim=1) if length else x
            feature = vit.forward_head(vit.norm(x), pre_logits=True)
        return feature


@final
class AbsolutePositions(AbstractArchitecture):
    """`VisionTransformer`: ViT, DeiT, DINOv2, SigLIP, CLIP. Positions are added before block 0."""

    def __init__(self, vit: Any) -> None:
        from timm.models.deit import VisionTransformerDistilled

        super().__init__(vit)
        self.reads_class_token &= not isinstance(vit, VisionTransformerDistilled)  # it reads both of its tokens

    def tokens(self, vit: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        """Return what enters block 0."""
        tokens: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
        return tokens

    def block(self, vit: Any, index: int, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n t d"]:  # noqa: ARG002
        """Run a block."""
        out: Tensor = vit.blocks[index](x)
        return out

    def feature(self, vit: Any, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n d"]:
        """Return the feature; of a class token without the other rows of the last block."""
        return class_feature(vit, x) if self.reads_class_token else super().feature(vit, x, length)


@final
class RotaryPositions(AbstractArchitecture):
    """`Eva`: EVA, EVA-02, DINOv3, Perception Encoder. Queries and keys of patches are rotated in every block."""

    def tokens(self, vit: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        """Return what enters block 0."""
        tokens: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels))[0])
        return tokens

    def block(self, vit: Any, index: int, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n t d"]:
        """Run a block; prompts are rotated by nothing."""
        rotation = self._rotation(vit, index)
        if rotation is not None and length:
            still = rotation.new_zeros(*rotation.shape[:-2], length, rotation.shape[-1])
            still.chunk(2, -1)[1].fill_(1)  # sines, then cosines
            rotation = torch.cat([still, rotation], dim=-2)
        out: Tensor = vit.blocks[index](x, rope=rotation)
        return out

    def _rotation(self, vit: Any, index: int) -> Tensor | None:
        """Return sines and cosines of the patches, `(..., patches, 2 width)`, for a block; None for none."""
        if vit.rope is None:
            return None
        is_fixed = hasattr(vit.rope, "feat_shape") and not vit.dynamic_img_size
        rotation: Tensor = vit.rope.get_embed() if is_fixed else vit.rope.get_embed(shape=vit.patch_embed.grid_size)
        return rotation[index] if vit.rope_mixed else rotation


@final
class RelativePositions(AbstractArchitecture):
    """`Beit`: BEiT and BEiT v2. A bias for each pair of places is added to the scores of every block."""

    def tokens(self, vit: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        """Return what enters block 0."""
        patches = vit.patch_embed(pixels)
        tokens = torch.cat((vit.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        return tokens if vit.pos_embed is None else tokens + vit.pos_embed

    def block(self, vit: Any, index: int, x: Float[Tensor, "n t d"], length: int) -> Float[Tensor, "n t d"]:
        """Run a block; a prompt's biases are those of the class token."""
        block = vit.blocks[index]
        shared = [] if vit.rel_pos_bias is None else [vit.rel_pos_bias().unsqueeze(0)]
        if block.attn.relative_position_bias_table is not None:
            shared.append(block.attn._get_rel_pos_bias())
        bias = sum(shared) if shared else None  # (1, heads, t, t), without prompts
        if bias is not None and length:
            rows = F.pad(torch.arange(bias.shape[-1], device=x.device), (length, 0))
            bias = bias[:, :, rows][..., rows]
        mixed = _attention(block.attn, block.norm1(x), bias)
        x = x + (mixed if block.gamma_1 is None else block.gamma_1 * mixed)
        hidden = block.mlp(block.norm2(x))
        out: Tensor = x + (hidden if block.gamma_2 is None else block.gamma_2 * hidden)
        return out


def _attention(attention: Any, x: Float[Tensor, "n t d"], bias: Tensor | None) -> Float[Tensor, "n t d"]:
    """BEiT's attention, with scores to which a bias is added."""
    biases = None if attention.q_bias is None else torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    qkv = F.linear(x, attention.qkv.weight, biases).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, t, width)
    bias = None if bias is None else bias.to(q.dtype)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attention.scale)
    out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return out


def architecture_of(vit: Any, name: str) -> AbstractArchitecture:
    """Return the family of a ViT.

    Raises:
        BackboneError: if prompts do not fit it, or its patches do not cover its images.
    """
    from timm.models.beit import Beit
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    families: dict[type, type[AbstractArchitecture]] = {
        VisionTransformer: AbsolutePositions,
        VisionTransformerDistilled: AbsolutePositions,
        Eva: RotaryPositions,
        Beit: RelativePositions,
    }
    if type(vit) not in families:
        raise BackboneError(f"backbone.name={name} is a {type(vit).__name__}, whose blocks take no prompts; {REMEDY}")
    if not vit.global_pool:
        raise BackboneError(f"backbone.name={name} has no pooling, so no feature of an image; {REMEDY}")
    side, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    if side < patch or side % patch:
        raise BackboneError(
            f"data.image_size={side} is not a multiple of {patch}, the patch of backbone.name={name}, which would cut "
            f"off a border; choose e.g. {max(1, round(side / patch)) * patch}."
        )
    return families[type(vit)](vit)

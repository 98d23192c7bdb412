"""Where on an image its prompts attend."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedbayes.models.blocks import is_plain, with_prompts
from fedbayes.models.prompted import PromptedViT


@torch.no_grad()
def prompt_attention(
    model: PromptedViT, tokens: Float[Tensor, "n t d"], prompts: Float[Tensor, "n_or_1 blocks length d"]
) -> Float[Tensor, "n rows columns"] | None:
    """How much the prompts look at each patch: softmax weights of their queries, a mean over heads, prompts and blocks.

    Args:
        model: whose backbone it is.
        tokens: of the images, as `PromptedViT.precompute` gives them.
        prompts: of each image, or one set for all of them.

    Returns:
        Weights of the patches; what they lack to a sum of 1 goes to class token and prompts. None where no prompt
        enters the backbone, a block is another than the original ViT's, patches lie in no square, or tokens are not
        float32.
    """
    backbone, length = model.backbone, prompts.shape[2]
    patches = backbone.num_tokens - backbone.prefix
    side = math.isqrt(patches)
    blocks = backbone.blocks[model.start_layer :]
    square = side * side == patches
    if not length or not len(blocks) or not square or tokens.dtype != torch.float32 or not all(map(is_plain, blocks)):
        return None
    prompts = prompts.expand(len(tokens), *prompts.shape[1:])
    x, total = tokens, torch.zeros(len(tokens), side * side, device=tokens.device)
    for index, block in enumerate(blocks):
        if index < prompts.shape[1]:
            x = with_prompts(x, prompts[:, index], length if index else 0, backbone.prefix)
        total += _weights(block, x, slice(backbone.prefix, backbone.prefix + length))
        x = block(x)
    return (total / len(blocks)).view(-1, side, side)


def _weights(block: Any, x: Float[Tensor, "n t d"], prompts: slice) -> Float[Tensor, "n patches"]:
    """The attention of a block's prompts to its patches, a mean over heads and prompts."""
    attention = block.attn
    heads = attention.num_heads
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1))  # (n, t, 3, heads, width)
    queries, keys = qkv[:, prompts, 0], qkv[:, :, 1]
    scores = torch.einsum("nlhw,nthw->nhlt", queries, keys) * attention.scale
    weights: Tensor = scores.softmax(-1)[..., prompts.stop :].mean((1, 2))
    return weights

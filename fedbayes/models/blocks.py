"""Blocks of a frozen ViT: what a training step needs of them and nothing else.

A block needs gradients with respect to tokens, and to the few weights that clients change, and a client's processor is
fastest while a few images' activations stay in its cache. So a plain pre-norm block (Dosovitskiy et al., ICLR 2021,
arXiv 2010.11929) has its forward and backward written out here, for torch's CPU kernels; any other block, device or
type calls timm's own.

Constants are folded into the weights that follow them, which is exact: the norms' affine maps, the scale of the
queries, layer scale, and the bias of the values (attention weights sum to one). The bias of the keys adds one number
to all scores of a query, which softmax ignores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@final
@dataclass(frozen=True, eq=False)
class FoldedBlock:
    """A plain block's weights, `x @ weight` with constants folded in; w are the heads' widths together."""

    heads: int
    eps: tuple[float, float]
    qkv: Float[Tensor, "d w3"]
    query_bias: Float[Tensor, " w"]
    proj: Float[Tensor, "w d"]
    proj_bias: Float[Tensor, " d"]
    fc1: Float[Tensor, "d hidden"]
    fc1_bias: Float[Tensor, " hidden"]
    fc2: Float[Tensor, "hidden d"]
    fc2_bias: Float[Tensor, " d"]


def is_plain(block: Any) -> bool:
    """Whether a block is one that `fold` understands: no norm, gate or activation but the original's."""
    from timm.layers.activations import GELU
    from timm.layers.attention import Attention
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block, LayerScale

    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    attention, mlp = block.attn, block.mlp
    absent = (attention.q_norm, attention.k_norm, attention.norm, mlp.norm)
    return (
        getattr(attention, "gate", None) is None
        and all(isinstance(module, nn.Identity) for module in absent)
        and all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2))
        and all(isinstance(scale, nn.Identity | LayerScale) for scale in (block.ls1, block.ls2))
        and all(type(linear) is nn.Linear for linear in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2))
        and type(mlp.act) in (nn.GELU, GELU)
        and getattr(mlp.act, "approximate", "none") == "none"
    )


def fold(block: Any, dtype: torch.dtype, changed: Mapping[str, Tensor] | None = None) -> FoldedBlock:
    """Fold a plain block's constants into its weights, then round them to `dtype`; see the module docstring.

    Args:
        block: the block.
        dtype: of the result.
        changed: weights and biases in the place of the block's own, by timm's names; gradients reach them.
    """
    weights = dict(block.named_parameters()) | dict(changed or {})
    scale, width = block.attn.scale, block.attn.num_heads * block.attn.head_dim
    qkv, qkv_bias = _after_norm(weights, "attn.qkv", "norm1")
    qkv[:width] *= scale
    proj, proj_bias = _before_scale(weights, "attn.proj", "ls1", qkv_bias[2 * width :])
    fc1, fc1_bias = _after_norm(weights, "mlp.fc1", "norm2")
    fc2, fc2_bias = _before_scale(weights, "mlp.fc2", "ls2")
    folded = qkv.mT, qkv_bias[:width] * scale, proj.mT, proj_bias, fc1.mT, fc1_bias, fc2.mT, fc2_bias
    eps = block.norm1.eps, block.norm2.eps
    return FoldedBlock(block.attn.num_heads, eps, *(weight.to(dtype) for weight in folded))


def _after_norm(weights: Mapping[str, Tensor], linear: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight `(out, in)` and bias of `linear(norm(x))` in terms of the norm without its affine map."""
    weight, bias = _copy(weights, linear)
    if f"{norm}.bias" in weights:
        bias += weight @ weights[f"{norm}.bias"]
    if f"{norm}.weight" in weights:
        weight = weight * weights[f"{norm}.weight"]
    return weight, bias


def _copy(weights: Mapping[str, Tensor], linear: str) -> tuple[Tensor, Tensor]:
    """Copy weight and bias, in float32 if they are coarser; no bias is a bias of zeros."""
    weight = weights[f"{linear}.weight"]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    bias = weight.new_zeros(len(weight))
    if f"{linear}.bias" in weights:
        bias += weights[f"{linear}.bias"]
    return weight, bias


def _before_scale(
    weights: Mapping[str, Tensor], linear: str, scale: str, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight `(out, in)` and bias of `scale(linear(x + shift))`."""
    weight, bias = _copy(weights, linear)
    if shift is not None:
        bias += weight @ shift
    gamma = weights.get(f"{scale}.gamma")
    return (weight, bias) if gamma is None else (weight * gamma.unsqueeze(1), bias * gamma)


WEIGHTS = ("qkv", "query_bias", "proj", "proj_bias", "fc1", "fc1_bias", "fc2", "fc2_bias")
BIAS_OF = dict(zip(WEIGHTS[::2], WEIGHTS[1::2], strict=True))
FIRST_WEIGHT = 5
PLACE = {name: FIRST_WEIGHT + i for i, name in enumerate(WEIGHTS)}
"""Place of a folded weight among the arguments of `_Folded`."""


def run_folded(
    tokens: Float[Tensor, "n t d"],
    prompts: Float[Tensor, "n l d"] | None,
    replaced: int,
    block: FoldedBlock,
    prefix: int = 1,
) -> Float[Tensor, "n t2 d"]:
    """Run a plain block on tokens with `prompts` in place of the `replaced` tokens after the prefix."""
    weights = [getattr(block, name) for name in WEIGHTS]
    out: Tensor = _Folded.apply(tokens, prompts, replaced, block, prefix, *weights)
    return out


@final
class _Folded(torch.autograd.Function):
    """`run_folded`: n images of t tokens, h heads of width w. Letters with a `d` are gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        prompts: Tensor | None,
        replaced: int,
        block: FoldedBlock,
        prefix: int,
        *weights: Tensor,
    ) -> Tensor:
        qkv, query_bias, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias = weights
        x = tokens if prompts is None else with_prompts(tokens, prompts, replaced, prefix)
        n, t, d = x.shape
        x = x.reshape(n * t, d)
        normed1, mean1, rstd1 = torch.native_layer_norm(x, [d], None, None, block.eps[0])
        q, k, v = _by_head(torch.mm(normed1, qkv), n, 3, block.heads)  # each (n h, t, w)
        q.view(n, block.heads, t, -1).add_(query_bias.view(block.heads, 1, -1))
        p = torch.bmm(q, k.mT)  # (n h, t, t)
        torch.softmax(p, -1, out=p)
        mixed = _by_token(torch.bmm(p, v).unsqueeze(0), n)
        y = torch.addmm(x, mixed, proj).add_(proj_bias)
        normed2, mean2, rstd2 = torch.native_layer_norm(y, [d], None, None, block.eps[1])
        hidden = torch.addmm(fc1_bias, normed2, fc1)
        out = torch.addmm(y, F.gelu(hidden), fc2).add_(fc2_bias)
        if any(ctx.needs_input_grad):
            learns = any(ctx.needs_input_grad[FIRST_WEIGHT:])
            ctx.save_for_backward(
                *(x, mean1, rstd1, q, k, v, p, y, mean2, rstd2, hidden, qkv, proj, fc1, fc2),
                *((normed1, mixed, normed2) if learns else (None, None, None)),
            )
            ctx.heads, ctx.images, ctx.replaced, ctx.prefix = block.heads, n, replaced, prefix
            ctx.length = 0 if prompts is None else prompts.shape[1]
        return out.view(n, t, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, mean1, rstd1, q, k, v, p, y, mean2, rstd2, hidden, qkv, proj, fc1, fc2 = ctx.saved_tensors[:15]
        normed1, mixed, normed2 = ctx.saved_tensors[15:]
        n, needs = ctx.images, ctx.needs_input_grad
        first, end = ctx.prefix, ctx.prefix + ctx.length  # of the prompts
        dweights: dict[str, Tensor] = {}

        def learn(weight: str, inputs: Tensor | None, doutputs: Tensor, columns: slice = slice(None)) -> None:
            """Keep what is needed of the gradients of a weight and its bias, with `inputs @ weight + bias`."""
            if needs[PLACE[weight]]:
                assert inputs is not None, "forward has saved it"
                dweights[weight] = torch.mm(inputs.mT, doutputs)
            if needs[PLACE[BIAS_OF[weight]]]:
                dweights[BIAS_OF[weight]] = doutputs[:, columns].sum(0)

        t, d = dout.shape[1:]
        dout = dout.reshape(n * t, d)
        learn("fc2", F.gelu(hidden) if needs[PLACE["fc2"]] else None, dout)
        dhidden = torch.mm(dout, fc2.mT)
        torch.ops.aten.gelu_backward.grad_input(dhidden, hidden, grad_input=dhidden)
        learn("fc1", normed2, dhidden)
        dy = _norm_backward(torch.mm(dhidden, fc1.mT), y, mean2, rstd2).add_(dout)
        learn("proj", mixed, dy)
        (dmixed,) = _by_head(torch.mm(dy, proj.mT), n, 1, ctx.heads)
        dp = torch.bmm(dmixed, v.mT)
        torch._softmax_backward_data(dp, p, -1, dp.dtype, grad_input=dp)
        # Tokens below the first prompted block are constants: only the prompts' rows go on.
        is_whole = needs[0] or needs[PLACE["qkv"]]
        rows = slice(None) if is_whole else slice(first, end)
        dqkv = torch.stack(
            [torch.bmm(dp[:, rows], k), torch.bmm(dp[:, :, rows].mT, q), torch.bmm(p[:, :, rows].mT, dmixed)]
        )
        dqkv = _by_token(dqkv, n)
        learn("qkv", normed1, dqkv, slice(dqkv.shape[1] // 3))
        dtokens, dprompts = None, None
        if needs[0] or needs[1]:
            dnormed = torch.mm(dqkv, qkv.mT)
            x, mean1, rstd1, dy = (part.unflatten(0, (n, -1))[:, rows].flatten(0, 1) for part in (x, mean1, rstd1, dy))
            dx = _norm_backward(dnormed, x, mean1, rstd1).add_(dy).view(n, -1, d)
            dprompts = dx[:, first:end] if is_whole else dx
            dtokens = dx
            if needs[0] and ctx.length:
                dtokens = torch.cat([dx[:, :first], dx.new_zeros(n, ctx.replaced, d), dx[:, end:]], dim=1)
        gradients = (dtokens, dprompts, None, None, None, *(dweights.get(name) for name in WEIGHTS))
        return tuple(gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True))


def _norm_backward(dnormed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return the gradient of the input of a norm without affine map."""
    backward = torch.ops.aten.native_layer_norm_backward
    dx: Tensor = backward(dnormed, x, [x.shape[-1]], mean, rstd, None, None, [True, False, False])[0]
    return dx


def _by_head(x: Float[Tensor, "nt parts_h_w"], images: int, parts: int, heads: int) -> Float[Tensor, "parts nh t w"]:
    """Cut columns into parts and heads, a matrix for each image and head, as batched products want it."""
    cut = x.view(images, -1, parts, heads, x.shape[1] // (parts * heads))
    parted: Tensor = cut.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
    return parted


def _by_token(x: Float[Tensor, "parts nh t w"], images: int) -> Float[Tensor, "nt parts_h_w"]:
    """Undo `_by_head`."""
    joined: Tensor = x.unflatten(1, (images, -1)).permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
    return joined


def with_prompts(
    tokens: Float[Tensor, "n t d"], prompts: Float[Tensor, "n l d"], replaced: int, prefix: int = 1
) -> Float[Tensor, "n t2 d"]:
    """Join the prefix, the prompts, and the tokens after those that the prompts replace."""
    return torch.cat([tokens[:, :prefix], prompts, tokens[:, prefix + replaced :]], dim=1)


def class_row(block: Any, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n 1 d"]:
    """Row 0 of `block(x)` for a plain block, whose keys and values are never computed.

    With one query q per head, a score `q . (W_k x_t)` is `(W_k' q) . x_t`, and the values' mean `sum_t p_t W_v x_t` is
    `W_v (sum_t p_t x_t)`: products with d columns for each head in place of d x d matrices for each token.
    """
    attention, normed = block.attn, block.norm1(x)
    heads, width = attention.num_heads, attention.head_dim
    to_query, to_key, to_value = attention.qkv.weight.unflatten(0, (3, heads, width))
    bias = None if attention.qkv.bias is None else attention.qkv.bias.unflatten(0, (3, heads * width))
    query = F.linear(normed[:, 0], to_query.flatten(0, 1), None if bias is None else bias[0]) * attention.scale
    query = torch.einsum("nhw,hwd->nhd", query.unflatten(1, (heads, width)), to_key)
    attended = (query @ normed.mT).softmax(-1)  # (n, heads, t); the keys' bias would move all scores alike
    value = torch.einsum("nhd,hwd->nhw", attended @ normed, to_value).flatten(1)
    value = value if bias is None else value + bias[2]
    row = x[:, :1] + block.ls1(attention.proj(value.unsqueeze(1)))
    out: Tensor = row + block.ls2(block.mlp(block.norm2(row)))
    return out


def class_feature(vit: Any, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
    """Class token after the last block of `vit`, which is given `x`, and the final norm."""
    last = vit.blocks[-1]
    x = class_row(last, x) if is_plain(last) else last(x)
    feature: Tensor = vit.fc_norm(vit.norm(x[:, :1])[:, 0])
    return feature

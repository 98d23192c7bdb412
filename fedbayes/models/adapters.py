r"""Weights of the ViT that belong to clients: low-rank changes of a few matrices, or all of them.

Letters of LoRA (Hu et al., ICLR 2022, arXiv 2106.09685), words at the door: r is `rank`, W a frozen matrix
`(out, in)`, A `(r, in)`, B `(out, r)`, c a client:

    W_c = W + (alpha / r) B_c A_c,   A ~ N(0, 1 / in),   B = 0 before training

so training starts from the frozen ViT. timm keeps queries, keys and values in one matrix `qkv`, so here the three share
one `A`; the paper changes each matrix by another pair. The merged `W_c` is what the blocks are run with.

Averaging `A` and `B` apart, as FedIT does (Zhang et al., ICASSP 2024, arXiv 2305.05644), is not averaging the changes:
the mean of `B_c A_c` is not the product of the means. With one frozen `A` for everybody it is (FFA-LoRA, Sun et al.,
ICLR 2024, arXiv 2403.12313); that `A` follows from the seed and is never sent. `exact_pairs` averages the products
(FlexLoRA, Bai et al., NeurIPS 2024, arXiv 2402.11505). Where `B` is personal, only `A` is averaged (FedSA-LoRA, Guo et
al., ICLR 2025, arXiv 2410.01463).

The frozen backbone itself is never touched: its modules are run with other weights by `torch.func.functional_call`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import functional_call

from fedbayes.arrays import Arrays, in_blocks
from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.blocks import class_feature

A, B = "weights.a.", "weights.b."
"""Lead the names of the factors of a low-rank change, among a client's parameters."""


class AbstractWeights(nn.Module, ABC):
    """What clients change of a frozen ViT; every parameter has a leading client axis.

    Attributes:
        start_layer: the first block that differs between clients; tokens below it are common to all.
        from_pixels: whether even the tokens that enter block 0 differ, so that nothing is common but the pixels.
    """

    start_layer: int
    from_pixels: bool

    @abstractmethod
    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:
        """Return the weights that take the place of frozen ones, by timm's names, each `(C, ...)`."""

    def features(
        self,
        backbone: FrozenViT,
        entering: Num[Tensor, "clients images *entering"],
        prompts: Float[Tensor, "samples clients images blocks length dim"] | None = None,
        start: int | None = None,
        learnt: Sequence[Container[int]] | None = None,
    ) -> Float[Tensor, "samples clients images dim"]:
        """Return class features of each client's images by its own weights.

        Clients go one after another: on a CPU one client fits the cache better.

        Args:
            backbone: whose weights are changed.
            entering: tokens that enter the first block that is prompted or changed, `(C, B, t, d)`, or pixels in
                0..255, `(C, B, 3, h, w)`.
            prompts: of each image; None for none, which is one sample.
            start: the first block that sees prompts.
            learnt: blocks of each client that gradients reach; None for all.
        """
        weights = self.changed(backbone)
        features = []
        for c, tokens in enumerate(entering):
            changed = {
                name: rows[c] if learnt is None or in_blocks(name, learnt[c]) else rows[c].detach()
                for name, rows in weights.items()
            }
            if self.from_pixels:
                features.append(_from_pixels(backbone, tokens, changed).unsqueeze(0))
                continue
            if prompts is None or start is None:
                features.append(backbone(tokens, None, self.start_layer, changed).unsqueeze(0))
                continue
            # Below the prompts an image's tokens are the same for all samples.
            tokens = backbone.advance(tokens, min(self.start_layer, start), start, changed)
            samples, images = len(prompts), len(tokens)
            flat = tokens.expand(samples, *tokens.shape).flatten(0, 1)
            sets = prompts[:, c].flatten(0, 1)
            feature = backbone(flat, sets, start, changed, None if learnt is None else learnt[c])
            features.append(feature.unflatten(0, (samples, images)))
        return torch.stack(features, dim=1)


MakeWeights = Callable[..., AbstractWeights]
"""`make(backbone=..., rng=...)`: clients' weights, which start as the backbone's; their settings are in it already."""


@final
class LowRankWeights(AbstractWeights):
    """`W + (alpha / r) B A` for some matrices of the blocks from `start_layer` on.

    Args:
        backbone: whose matrices are changed.
        rng: samples A.
        rank: r.
        alpha: the change is scaled by `alpha / r`.
        start_layer: the first block that is changed.
        targets: linear layers of a block by timm's names, of `attn.qkv`, `attn.proj`, `mlp.fc1` and `mlp.fc2`.
        freeze_a: keep one random A for everybody, so that averages are exact and only B is sent.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        backbone: FrozenViT,
        rng: torch.Generator,
        rank: int,
        alpha: float,
        start_layer: int,
        targets: Sequence[str],
        freeze_a: bool,
    ) -> None:
        super().__init__()
        require_whole("method.weights.rank", rank, 1)
        require_whole("method.weights.start_layer", start_layer, 0, backbone.depth - 1)
        if isinstance(targets, str) or not targets:
            raise ConfigError(f"method.weights.targets={targets} is no list of names; write e.g. [attn.qkv].")
        layers = [name for name, module in backbone.vit.blocks[0].named_modules() if isinstance(module, nn.Linear)]
        self.start_layer, self.from_pixels = start_layer, False
        self.scale = require_number("method.weights.alpha", alpha, 0, open_low=True) / rank
        self._names = [
            f"blocks.{i}.{require_choice('method.weights.targets', target, layers)}"
            for i in range(start_layer, backbone.depth)
            for target in targets
        ]
        for name in self._names:
            outputs, inputs = backbone.vit.get_submodule(name).weight.shape
            a = inputs**-0.5 * torch.randn(1, rank, inputs, generator=rng)
            place(self, f"a.{name}", nn.Buffer(a) if freeze_a else nn.Parameter(a))
            place(self, f"b.{name}", nn.Parameter(torch.zeros(1, outputs, rank)))

    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:
        """Return the merged matrices."""
        merged = {}
        for name in self._names:
            block, _, leaf = name.rpartition(".")
            a, b = (getattr(self.get_submodule(f"{letter}.{block}"), leaf) for letter in "ab")
            merged[f"{name}.weight"] = backbone.vit.get_submodule(name).weight + self.scale * (b @ a)
        return merged


def exact_pairs(clients: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """Return pairs whose product is nearest to the mean of the clients' products, at the same rank r.

    With the singular values S of `sum_c w_c B_c A_c = U S V'`, largest first: `B = U_r S_r^1/2`, `A = S_r^1/2 V_r'`.
    The decomposition is of the factors side by side, of M r columns for M clients.

    Args:
        clients: parameters of each client by name, pairs as `weights.a.NAME` and `weights.b.NAME` among others.
        weights: w, of the clients, summing to 1.

    Raises:
        ConfigError: if there is no pair.
    """
    names = [name for name in clients[0] if name.startswith(A) and B + name.removeprefix(A) in clients[0]]
    if not names:
        raise ConfigError("method.strategy.aggregate=exact: clients send no pairs of A and B; choose mean.")
    exact: Arrays = {}
    for name in names:
        pair = B + name.removeprefix(A)
        scaled = [w * arrays[pair].astype(np.float64) for w, arrays in zip(weights, clients, strict=True)]
        tall, wide = np.concatenate(scaled, 1), np.concatenate([arrays[name] for arrays in clients]).astype(np.float64)
        (left, upper), (right, lower) = np.linalg.qr(tall), np.linalg.qr(wide.T)
        u, s, v = np.linalg.svd(upper @ lower.T)
        rank, like = clients[0][name].shape[0], clients[0][name].dtype
        root = np.sqrt(s[:rank])
        exact[name] = (root[:, None] * (v[:rank] @ right.T)).astype(like)
        exact[pair] = (left @ u[:, :rank] * root).astype(like)
    return exact


@final
class AllWeights(AbstractWeights):
    """All weights of the ViT, from the patch embedding to the last norm: full fine-tuning."""

    def __init__(self, *, backbone: FrozenViT, rng: torch.Generator) -> None:  # noqa: ARG002
        super().__init__()
        self.start_layer, self.from_pixels = 0, True
        self._names = [name for name, _ in backbone.vit.named_parameters() if not name.startswith("head.")]
        for name in self._names:
            start = backbone.vit.get_parameter(name).detach().to(backbone.dtype, copy=True)
            place(self, name, nn.Parameter(start.unsqueeze(0)))

    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:  # noqa: ARG002
        """Return every weight."""
        return {name: self.get_parameter(name) for name in self._names}


def _from_pixels(backbone: FrozenViT, images: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
    """Return features `(n, d)` of pixels in 0..255, `(n, 3, h, w)`, with weights in the place of all frozen ones."""
    weights = {f"vit.{name}": weight for name, weight in changed.items()}
    is_slow = backbone.tokens_dtype == torch.bfloat16 and images.device.type == "cpu"
    with backbone.autocast(), _without_fused_attention(backbone.vit) if is_slow else nullcontext():
        feature = functional_call(_Pass(backbone.vit), weights, (backbone.normalised(images),))
    return feature.to(backbone.dtype)  # type: ignore[no-any-return]


@final
class _Pass(nn.Module):
    """The ViT from normalised pixels to the class feature, for `functional_call`."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        """Turn pixels `(n, 3, h, w)` into features `(n, d)`."""
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(x)))
        for block in self.vit.blocks[:-1]:
            x = block(x)
        return class_feature(self.vit, x)


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


def place(root: nn.Module, name: str, value: nn.Parameter | nn.Buffer) -> None:
    """Set a parameter or buffer of a dotted name, within empty modules where there are none yet."""
    *owners, leaf = name.split(".")
    for part in owners:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    setattr(root, leaf, value)

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
"""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from fedbayes.arrays import Arrays
from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.weights import AbstractMergedWeights, place

A, B = "weights.a.", "weights.b."
"""Lead the names of the factors of a low-rank change, among a client's parameters."""


@final
class LowRankWeights(AbstractMergedWeights):
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
        layers = [name for name, module in backbone.blocks[0].named_modules() if isinstance(module, nn.Linear)]
        self.start_layer = start_layer
        self.scale = require_number("method.weights.alpha", alpha, 0, open_low=True) / rank
        self.names = [
            f"blocks.{i}.{require_choice('method.weights.targets', target, layers)}"
            for i in range(start_layer, backbone.depth)
            for target in targets
        ]
        for name in self.names:
            outputs, inputs = backbone.layer(name).weight.shape
            a = inputs**-0.5 * torch.randn(1, rank, inputs, generator=rng)
            place(self, f"a.{name}", nn.Buffer(a) if freeze_a else nn.Parameter(a))
            place(self, f"b.{name}", nn.Parameter(torch.zeros(1, outputs, rank)))

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return A `(C, r, in)`, or `(1, r, in)` if it is frozen, and B `(C, out, r)` of a layer by timm's name."""
        block, _, leaf = name.rpartition(".")
        a, b = (getattr(self.get_submodule(f"{letter}.{block}"), leaf) for letter in "ab")
        return a, b

    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:
        """Return the merged matrices."""
        merged = {}
        for name in self.names:
            a, b = self.pair(name)
            merged[f"{name}.weight"] = backbone.layer(name).weight + self.scale * (b @ a)
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
class AllWeights(AbstractMergedWeights):
    """All weights of the ViT, from the patch embedding to the last norm: full fine-tuning."""

    from_pixels = True
    takes_prompts = False

    def __init__(self, *, backbone: FrozenViT, rng: torch.Generator) -> None:  # noqa: ARG002
        super().__init__()
        self.start_layer = 0
        frozen = dict(backbone.layer("").named_parameters())
        self._names = [name for name in frozen if not name.startswith("head.")]
        for name in self._names:
            start = frozen[name].detach().to(backbone.dtype, copy=True)
            place(self, name, nn.Parameter(start.unsqueeze(0)))

    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:  # noqa: ARG002
        """Return every weight."""
        return {name: self.get_parameter(name) for name in self._names}

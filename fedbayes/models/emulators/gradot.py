"""GradOT: attention of lower rank and MLPs of fewer channels, chosen so that gradients move least [1].

No part is trained. Sizes: attention matrices keep the same share of their numbers as the whole block, and the MLP has
as many channels as are left.

[1] Yao, Zhang, Zheng, Gao, Guan, Wang. GradOT: Training-free Gradient-preserving Offsite-tuning for Large Language
    Models. ACL 2025, pp. 5115-5130, arXiv 2507.04455.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from fedbayes.errors import ConfigError, require_choice, require_number
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Owner, require_keep, require_plain, set_low_rank, size
from fedbayes.models.emulators.compression import channel_scores, rank_of, refitted, truncated, truncated_kfac
from fedbayes.models.emulators.statistics import Moments, moments, plain_moments


@final
class GradOT:
    """Compresses every block below `start` to the share `keep` of its size.

    Args:
        keep: share of the lower blocks' size that stays.
        basis: `weight`, as published, keeps singular vectors of each matrix and channels by their score; `kfac` keeps
            the components of `S^1/2 W A^1/2` and fits an MLP's second layer anew to its remaining channels, which
            minimises the same curvature exactly; `svd` keeps the largest singular values and channels, a reference
            that needs no images.
        attention: share of the size of attention's matrices; None for `keep`.
        damping: of the moments, in units of their mean diagonals.
        privacy: lambda, the weight of the loss that an emulator shall have more; above 0 it costs accuracy.
        loss: whose curvature counts: of a probe's `labels`, or of random directions of the `features`.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        keep: float,
        basis: str,
        attention: float | None,
        damping: float,
        privacy: float,
        loss: str,
    ) -> None:
        self._keep = require_keep(keep)
        self._basis = require_choice("emulator.basis", basis, ("weight", "kfac", "svd"))
        self._attention = self._keep
        if attention is not None:
            self._attention = require_number("emulator.attention", attention, 0, 1, open_low=True)
        self._damping = require_number("emulator.damping", damping, 0, open_low=True)
        self._privacy = require_number("emulator.privacy", privacy, 0)
        self._loss = require_choice("emulator.loss", loss, ("labels", "features"))
        if self._privacy and self._loss == "features":
            raise ConfigError(f"emulator.privacy={privacy} needs the loss of labels; set emulator.loss=labels.")

    def __call__(self, *, backbone: FrozenViT, start: int, owner: Owner) -> Sequence[nn.Module]:
        """Return the compressed blocks."""
        require_plain(backbone, start, "gradot")
        blocks = list(backbone.blocks[:start])
        if self._keep < 1:
            if self._basis == "svd":
                layers = plain_moments(backbone, start)
            else:
                layers = moments(backbone, start, owner, loss=self._loss, emulator="gradot")
            for index, block in enumerate(blocks):
                prefix = f"blocks.{index}."
                self._compress(block, {n.removeprefix(prefix): m for n, m in layers.items() if n.startswith(prefix)})
        return blocks

    @torch.no_grad()
    def _compress(self, block: Any, layers: Mapping[str, Moments]) -> None:
        """Compress a block in place."""
        budget = self._keep * size(block)
        if self._attention < 1:
            for name in ("qkv", "proj"):
                self._truncate(block.attn.get_submodule(name), layers[f"attn.{name}"])
        width, hidden = block.mlp.fc1.in_features, block.mlp.fc1.out_features
        others = size(block) - hidden * (2 * width + 1)
        channels = min(hidden, int((budget - others) / (2 * width + 1)))
        if channels < 1:
            raise ConfigError(f"emulator.keep={self._keep:g} leaves an MLP no channel; raise it or lower attention.")
        if channels < hidden:
            self._prune(block.mlp, layers, channels)

    def _truncate(self, linear: nn.Linear, layer: Moments) -> None:
        """Give a matrix a low rank, in place."""
        rank = rank_of(linear.weight.shape, self._attention)
        if self._basis == "weight":
            factors = truncated(linear.weight, layer, rank, privacy=self._privacy)
        else:
            factors = truncated_kfac(linear.weight, layer, rank, damping=self._damping, privacy=self._privacy)
        set_low_rank(linear, *factors)

    def _prune(self, mlp: Any, layers: Mapping[str, Moments], channels: int) -> None:
        """Leave an MLP its best channels, in place."""
        first, second = layers["mlp.fc1"], layers["mlp.fc2"]
        scores = channel_scores(mlp.fc1.weight, mlp.fc2.weight, first, second, privacy=self._privacy)
        chosen = scores.argsort(descending=True, stable=True)[:channels].sort().values
        after = mlp.fc2.weight[:, chosen]
        if self._basis == "kfac":
            after = refitted(mlp.fc2.weight, second, chosen, damping=self._damping)
        bias = mlp.fc1.bias
        mlp.fc1 = _linear(mlp.fc1.weight[chosen], None if bias is None else bias[chosen])
        mlp.fc2 = _linear(after.to(mlp.fc2.weight.dtype), mlp.fc2.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with this weight `(out, in)`."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer

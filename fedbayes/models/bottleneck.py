r"""AdaptFormer: a bottleneck beside the MLP of each block (Chen et al., NeurIPS 2022, arXiv 2205.13535).

    MLP(h) + s ReLU(h D^T) U^T,   h = LN(x),   D (r, d),   U (d, r) = 0 before training

Words at the door: s is `scale`, r is `width`. The bottleneck is merged into the MLP as r further hidden units: with
`relu(v) = lim gelu(t v) / t`, they are rows `t D` of the first layer and columns `s U / t` of the second. At
`t = 2^20` the difference from ReLU is below 2e-7 in each unit. A ViT's layer scale applies to the sum.
"""

from typing import final

import torch
from torch import Tensor, nn

from fedbayes.errors import ConfigError, require_number, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.weights import AbstractMergedWeights, place

SHARPNESS = 2.0**20  # t: a power of two, so that products with it are exact


@final
class BottleneckWeights(AbstractMergedWeights):
    """Bottlenecks beside the MLPs of the blocks from `start_layer` on.

    Args:
        backbone: whose MLPs get one.
        rng: samples D uniformly within `in^-1/2`.
        width: r.
        scale: s.
        start_layer: the first block that is changed.

    Raises:
        ConfigError: if a value is out of range, or the MLPs of the ViT are not linear, GELU, linear.
    """

    def __init__(
        self, *, backbone: FrozenViT, rng: torch.Generator, width: int, scale: float, start_layer: int
    ) -> None:
        from timm.layers import Mlp

        super().__init__()
        require_whole("method.weights.width", width, 1)
        require_whole("method.weights.start_layer", start_layer, 0, backbone.depth - 1)
        self.start_layer = start_layer
        self.scale = require_number("method.weights.scale", scale, 0, open_low=True)
        self._names = [f"blocks.{i}.mlp" for i in range(start_layer, backbone.depth)]
        for name in self._names:
            mlp = backbone.layer(name)
            if type(mlp) is not Mlp or "GELU" not in type(mlp.act).__name__ or not isinstance(mlp.norm, nn.Identity):
                raise ConfigError(
                    f"backbone.name={backbone.name} has other MLPs than linear, GELU, linear; choose method=fedlora."
                )
            down = (2 * torch.rand(1, width, backbone.dim, generator=rng) - 1) * backbone.dim**-0.5
            place(self, f"down.{name}", nn.Parameter(down))
            place(self, f"up.{name}", nn.Parameter(torch.zeros(1, backbone.dim, width)))

    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:
        """Return the widened MLPs."""
        merged = {}
        for name in self._names:
            fc1, fc2 = (backbone.layer(f"{name}.{layer}") for layer in ("fc1", "fc2"))
            down, up = self.get_parameter(f"down.{name}"), self.get_parameter(f"up.{name}")
            clients = len(down)
            merged[f"{name}.fc1.weight"] = torch.cat([fc1.weight.expand(clients, -1, -1), SHARPNESS * down], 1)
            merged[f"{name}.fc2.weight"] = torch.cat(
                [fc2.weight.expand(clients, -1, -1), self.scale / SHARPNESS * up], 2
            )
            if fc1.bias is not None:
                zeros = fc1.bias.new_zeros(clients, down.shape[1])
                merged[f"{name}.fc1.bias"] = torch.cat([fc1.bias.expand(clients, -1), zeros], 1)
        return merged

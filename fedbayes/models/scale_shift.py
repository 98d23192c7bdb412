r"""SSF: a scale and a shift of the output of each norm and linear layer (Lian et al., NeurIPS 2022, arXiv 2210.08823).

    y = gamma * op(x) + beta,   gamma = 1 and beta = 0 before training

merged into the layer, as the paper does after training: `diag(gamma) W` and `gamma * b + beta` for a linear layer, and
the same for the affine map of a norm. The paper also changes the output of the patch embedding; here the tokens that
enter the first changed block stay common to all clients, and are computed once.
"""

from typing import final

import torch
from torch import Tensor, nn

from fedbayes.errors import require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.weights import AbstractMergedWeights, place


def scaled_layers(backbone: FrozenViT, start_layer: int) -> list[str]:
    """Return the norms and linear layers of the blocks from `start_layer` on, and the last norm, by timm's names."""
    below = tuple(f"blocks.{i}." for i in range(start_layer))
    return [
        name
        for name, module in backbone.layer("").named_modules()
        if isinstance(module, nn.LayerNorm | nn.Linear)
        and (name == "norm" or (name.startswith("blocks.") and not name.startswith(below)))
    ]


@final
class ScaleShiftWeights(AbstractMergedWeights):
    """Scales and shifts after each norm and linear layer of the blocks from `start_layer` on, and after the last norm.

    Args:
        backbone: whose layers are changed.
        rng: not used: nothing is random.
        start_layer: the first block that is changed.

    Raises:
        ConfigError: if there is no such block.
    """

    def __init__(self, *, backbone: FrozenViT, rng: torch.Generator, start_layer: int) -> None:  # noqa: ARG002
        super().__init__()
        require_whole("method.weights.start_layer", start_layer, 0, backbone.depth - 1)
        self.start_layer = start_layer
        self._names = scaled_layers(backbone, start_layer)
        for name in self._names:
            width = len(backbone.layer(name).weight)
            place(self, f"scale.{name}", nn.Parameter(torch.ones(1, width)))
            place(self, f"shift.{name}", nn.Parameter(torch.zeros(1, width)))

    def changed(self, backbone: FrozenViT) -> dict[str, Tensor]:
        """Return the merged weights and biases."""
        merged = {}
        for name in self._names:
            module = backbone.layer(name)
            scale, shift = self.get_parameter(f"scale.{name}"), self.get_parameter(f"shift.{name}")
            rows = scale.unsqueeze(-1) if isinstance(module, nn.Linear) else scale
            merged[f"{name}.weight"] = rows * module.weight
            merged[f"{name}.bias"] = shift if module.bias is None else scale * module.bias + shift
        return merged

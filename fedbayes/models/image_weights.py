r"""Changes of the ViT that differ between images: a pool of scales and shifts, and a mixture of low-rank changes.

FedIns (Feng et al., ICCV 2023, arXiv 2308.06051) has a pool of sets of scales and shifts (SSF, see
`fedbayes.models.scale_shift`), each with a key. An image takes the mean of the k sets whose keys are nearest to its
prompt-free class feature z:

    y = mean_{j in top} gamma_j * op(x) + mean_{j in top} beta_j,   top = the k largest cos(z, key_j)

The choice has no gradient; keys learn from `strength (1 - sum_{j in top} cos(z, key_j))` in the loss. The paper has a
pool of heads, too, and weighs the losses by .9 and .1, of which `strength` is the ratio.

FedDPA (Yang et al., NeurIPS 2024, arXiv 2403.19211) has a global and a local low-rank change (LoRA, see
`fedbayes.models.adapters`), and a weight of the local one for each image, which `clients.feddpa` determines:

    y = W x + (alpha / r) [(1 - w) B A + w B_local A_local] x,   w = w_0 + direction . z / |z|
"""

from abc import abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import require_number, require_whole
from fedbayes.models.adapters import LowRankWeights
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompt_sets import cosine
from fedbayes.models.scale_shift import scaled_layers
from fedbayes.models.weights import AbstractWeights, place

Change = Callable[[Tensor, Tensor], Tensor]
"""From inputs and outputs `(n, t, ...)` of a layer to its changed outputs."""


class AbstractImageWeights(AbstractWeights):
    """Changes of the outputs of layers, which depend on the image."""

    takes_prompts = False

    @abstractmethod
    def changes(self, z: Float[Tensor, "clients images dim"]) -> Sequence[Mapping[str, Change]]:
        """Return each client's changes of layers, by timm's names, for images with class features z."""

    def features(
        self,
        backbone: FrozenViT,
        entering: Num[Tensor, "clients images tokens dim"],
        prompts: Float[Tensor, "samples clients images blocks length dim"] | None = None,  # noqa: ARG002
        start: int | None = None,  # noqa: ARG002
        learnt: Sequence[Container[int]] | None = None,  # noqa: ARG002
        z: Float[Tensor, "clients images dim"] | None = None,
    ) -> Float[Tensor, "1 clients images dim"]:
        """Return class features of each client's images, one client after another; see `AbstractWeights`.

        Blocks are timm's own. Gradients reach all of them, also those that are not learnt.
        """
        assert z is not None, "clients of these changes pass it"
        features = []
        for tokens, changes in zip(entering, self.changes(z), strict=True):
            with backbone.autocast(), ExitStack() as hooks:
                for name, change in changes.items():
                    layer = backbone.layer(name)
                    hooks.enter_context(layer.register_forward_hook(_hook(change)))
                x = tokens
                for index in range(self.start_layer, backbone.depth):
                    x = backbone.block(index, x)
                feature = backbone.pool(x)
            features.append(feature.to(backbone.dtype))
        return torch.stack(features).unsqueeze(0)


def _hook(change: Change) -> Callable[..., Tensor]:
    """Return a change as a forward hook."""
    return lambda layer, inputs, outputs: change(inputs[0], outputs)  # noqa: ARG005


@final
class ScaleShiftPool(AbstractImageWeights):
    """FedIns's pool of scales and shifts after each norm and linear layer.

    Args:
        backbone: whose layers are changed.
        rng: samples the keys from N(0, .02^2).
        start_layer: the first block that is changed.
        sets: in the pool.
        chosen: k, sets that an image takes.
        strength: of the keys' term in the loss.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        backbone: FrozenViT,
        rng: torch.Generator,
        start_layer: int,
        sets: int,
        chosen: int,
        strength: float,
    ) -> None:
        super().__init__()
        self.start_layer = require_whole("method.weights.start_layer", start_layer, 0, backbone.depth - 1)
        require_whole("method.weights.sets", sets, 1)
        self.chosen = require_whole("method.weights.chosen", chosen, 1, sets)
        self.strength = require_number("method.weights.strength", strength, 0)
        self.keys = nn.Parameter(0.02 * torch.randn(1, sets, backbone.dim, generator=rng))
        self._names = scaled_layers(backbone, start_layer)
        for name in self._names:
            width = len(backbone.layer(name).weight)
            place(self, f"scale.{name}", nn.Parameter(torch.ones(1, sets, width)))
            place(self, f"shift.{name}", nn.Parameter(torch.zeros(1, sets, width)))

    def changes(self, z: Float[Tensor, "clients images dim"]) -> Sequence[Mapping[str, Change]]:
        """Return the scales and shifts of each image."""
        sets = cosine(z, self.keys).topk(self.chosen).indices  # (C, B, k)
        return [{name: self._change(name, c, places) for name in self._names} for c, places in enumerate(sets)]

    def _change(self, name: str, client: int, sets: Tensor) -> Change:
        """Return the change of a layer with the means of the images' sets, `(n, k)`."""
        scale, shift = (
            self.get_parameter(f"{kind}.{name}")[client][sets].mean(1).unsqueeze(1) for kind in ("scale", "shift")
        )
        return lambda inputs, outputs: scale * outputs + shift  # noqa: ARG005

    def penalty(
        self, z: Float[Tensor, "clients images dim"], weights: Float[Tensor, "clients images"]
    ) -> Float[Tensor, " clients"]:
        """Return the keys' term."""
        nearest = cosine(z, self.keys).topk(self.chosen).values.sum(-1)
        return self.strength * ((1 - nearest) * weights).sum(-1)


@final
class DualLowRankWeights(AbstractImageWeights):
    """FedDPA's two low-rank changes, `shared` and `local`.

    `local.constant` is w_0 and `local.direction` the direction, which do not learn; both 0 leave the shared one alone.

    Args:
        backbone: whose matrices are changed.
        rng: samples both A.
        rank: see `LowRankWeights`.
        alpha: likewise.
        start_layer: likewise.
        targets: likewise.
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
    ) -> None:
        super().__init__()
        make = partial(LowRankWeights, rank=rank, alpha=alpha, start_layer=start_layer, targets=targets, freeze_a=False)
        self.shared, self.local = make(backbone=backbone, rng=rng), make(backbone=backbone, rng=rng)
        self.start_layer = start_layer
        for name, width in (("constant", 1), ("direction", backbone.dim)):
            place(self.local, name, nn.Parameter(torch.zeros(1, width), requires_grad=False))

    def changes(self, z: Float[Tensor, "clients images dim"]) -> Sequence[Mapping[str, Change]]:
        """Return the mixtures of each image."""
        constant, direction = self.local.get_parameter("constant"), self.local.get_parameter("direction")
        weights = constant + (F.normalize(z, dim=-1) @ direction.unsqueeze(-1)).squeeze(-1)  # (C, B)
        return [
            {name: self._change(name, c, of_images[:, None, None]) for name in self.shared.names}
            for c, of_images in enumerate(weights)
        ]

    def _change(self, name: str, client: int, weight: Tensor) -> Change:
        """Return the change of a layer, with the images' weights `(n, 1, 1)`."""
        (a, b), (local_a, local_b) = (
            [factor[client].mT for factor in part.pair(name)] for part in (self.shared, self.local)
        )
        return lambda x, y: y + self.shared.scale * ((1 - weight) * (x @ a @ b) + weight * (x @ local_a @ local_b))

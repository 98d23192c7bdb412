"""What clients change of a frozen ViT, and how its modules are run with other weights.

The frozen backbone itself is never touched: `torch.func.functional_call` takes other weights for its modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from fedbayes.arrays import in_blocks
from fedbayes.models.backbone import FrozenViT


class AbstractWeights(nn.Module, ABC):
    """What clients change of a frozen ViT; every parameter has a leading client axis.

    Attributes:
        start_layer: the first block that differs between clients; tokens below it are common to all.
        from_pixels: whether even the tokens that enter block 0 differ, so that nothing is common but the pixels.
        takes_prompts: whether prompts may stand beside.
    """

    start_layer: int
    from_pixels = False
    takes_prompts = True

    @abstractmethod
    def features(
        self,
        backbone: FrozenViT,
        entering: Num[Tensor, "clients images *entering"],
        prompts: Float[Tensor, "samples clients images blocks length dim"] | None = None,
        start: int | None = None,
        learnt: Sequence[Container[int]] | None = None,
        z: Float[Tensor, "clients images dim"] | None = None,
    ) -> Float[Tensor, "samples clients images dim"]:
        """Return class features of each client's images with its changes.

        Args:
            backbone: which is changed.
            entering: tokens that enter the first block that is prompted or changed, `(C, B, t, d)`, or pixels in
                0..255, `(C, B, 3, h, w)`.
            prompts: of each image; None for none, which is one sample.
            start: the first block that sees prompts.
            learnt: blocks of each client that gradients reach; None for all.
            z: prompt-free class features, which changes that depend on the image need.
        """

    def penalty(
        self,
        z: Float[Tensor, "clients images dim"],  # noqa: ARG002  (a hook: methods may use both)
        weights: Float[Tensor, "clients images"],  # noqa: ARG002
    ) -> Float[Tensor, " clients"] | None:
        """Return what is added to each client's training loss, see `AbstractPrompts.penalty`; None for nothing."""
        return None


class AbstractMergedWeights(AbstractWeights):
    """Changes that are the same for all images of a client: other weights in the place of frozen ones."""

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
        z: Float[Tensor, "clients images dim"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "samples clients images dim"]:
        """Return class features of each client's images by its own weights; see `AbstractWeights`.

        Clients go one after another: on a CPU one client fits the cache better.
        """
        weights = self.changed(backbone)
        features = []
        for c, tokens in enumerate(entering):
            changed = {
                name: rows[c] if learnt is None or in_blocks(name, learnt[c]) else rows[c].detach()
                for name, rows in weights.items()
            }
            if self.from_pixels:
                features.append(backbone.from_pixels(tokens, changed).unsqueeze(0))
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


def place(root: nn.Module, name: str, value: nn.Parameter | nn.Buffer) -> None:
    """Set a parameter or buffer of a dotted name, within empty modules where there are none yet."""
    *owners, leaf = name.split(".")
    for part in owners:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    setattr(root, leaf, value)

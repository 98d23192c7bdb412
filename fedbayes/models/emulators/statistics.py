r"""Second moments of linear layers, which give the curvature of a loss: K-FAC (Martens & Grosse, ICML 2015).

For a layer `y = W x + b` with gradient `s = dl/dy` of one image's loss, summed over tokens t,

    A = E[x x'],   S = E[sum_t s_t s_t'],   G = E[sum_t s_t x_t'] = dl/dW,

and the curvature of W is taken as `S (x) A`: a change D of W has the curvature term `tr(S D A D')`, and moves the
gradient by `S D A`. S is a Fisher matrix, of labels that are sampled from a classifier's own predictions; G is of the
true labels. The classifier is a probe on the class features of the full ViT.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Owner
from fedbayes.seeding import generator

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
PIECE = 32  # images that go through the ViT with their graph at once
LEAST = 40  # images below which a probe says nothing
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Of one linear layer, in float64."""

    inputs: Float[Tensor, "n n"]  # A
    outputs: Float[Tensor, "m m"]  # S
    gradient: Float[Tensor, "m n"]  # G, zero where the loss has no labels


@final
@dataclass(frozen=True, eq=False)
class Probe:
    """A multinomial classifier on normalised class features, and its accuracy on images that it was not fitted to."""

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    accuracy: float

    def scores(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Return class scores."""
        return F.linear(z, self.weight.to(z), self.bias.to(z))


def fit_probe(z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int, seed: int) -> Probe:
    """Fit a probe on three quarters of the images, with the ridge that is best on the others.

    Raises:
        ConfigError: if no ridge predicts the others better than guessing does, so that gradients would mean nothing.
    """
    order = torch.randperm(len(z), generator=generator(seed, "owner's probe"))
    cut = 3 * len(z) // 4
    fitted, others = order[:cut], order[cut:]
    z = z.double()
    best, lowest = None, float(torch.tensor(classes).double().log())
    for ridge in RIDGES:
        weight, bias = _fitted(z[fitted], labels[fitted], classes, ridge)
        scores = F.linear(z[others], weight, bias)
        loss = float(F.cross_entropy(scores, labels[others]))
        if loss < lowest:
            accuracy = float((scores.argmax(1) == labels[others]).double().mean())
            best, lowest = Probe(weight, bias, accuracy), loss
    if best is None:
        raise ConfigError(
            f"owner.images={len(z)}: a classifier of {classes} classes that is fitted to three quarters of them "
            "predicts the others no better than guessing; raise it, or set emulator.loss=features."
        )
    return best


def _fitted(z: Tensor, labels: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias at the minimum of the mean NLL plus `ridge / 2 |weight|^2 / d`."""
    weight = torch.zeros(classes, z.shape[1], dtype=z.dtype, device=z.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=z.dtype, device=z.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(z, weight, bias), labels) + ridge / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def _linear(backbone: FrozenViT, block: int, name: str) -> nn.Linear:
    """Return a linear layer of a block."""
    layer = backbone.blocks[block].get_submodule(name)
    assert isinstance(layer, nn.Linear), "blocks are plain"
    return layer


def plain_moments(backbone: FrozenViT, start: int) -> dict[str, Moments]:
    """Return moments that tell nothing, identities: every direction of inputs and outputs counts alike."""
    result = {}
    for i in range(start):
        for name in LAYERS:
            weight = _linear(backbone, i, name).weight
            inputs, outputs = (torch.eye(n, dtype=torch.float64, device=weight.device) for n in weight.shape[::-1])
            result[f"blocks.{i}.{name}"] = Moments(inputs, outputs, torch.zeros_like(weight, dtype=torch.float64))
    return result


def moments(backbone: FrozenViT, start: int, owner: Owner, *, loss: str, emulator: str) -> dict[str, Moments]:
    """Return the moments of the linear layers of the blocks below `start`, by timm's names.

    Args:
        backbone: the full ViT.
        start: the first block that is left out.
        owner: images, and labels for `loss=labels`.
        loss: `labels` for a probe's, `features` for random directions of the class feature, which needs no labels.
        emulator: its name, for errors.

    Raises:
        ConfigError: if there are too few images.
    """
    owner.require(emulator, LEAST if loss == "labels" else 1)
    device = backbone.mean.device
    probe = None
    if loss == "labels":
        z = torch.cat([normalised_features(backbone, part.to(device)) for part in owner.images.split(PIECE)])
        probe = fit_probe(z, owner.labels.to(device), owner.classes, owner.seed)
    rng = generator(owner.seed, "owner's statistics")
    sums = _Sums(backbone, start)
    for images, labels in zip(owner.images.split(PIECE), owner.labels.split(PIECE), strict=True):
        sums.add(images.to(device), labels.to(device), probe, rng)
    return sums.means(len(owner.images))


@torch.no_grad()
def normalised_features(backbone: FrozenViT, images: Tensor) -> Tensor:
    """Return the prompt-free class features of images after a LayerNorm without parameters, `(n, d)`."""
    feature = backbone.features(images)
    return F.layer_norm(feature, feature.shape[-1:])


@final
class _Sums:
    """Adds up moments over pieces of images."""

    def __init__(self, backbone: FrozenViT, start: int) -> None:
        self._backbone = backbone
        self._layers: dict[str, nn.Linear] = {
            f"blocks.{i}.{name}": _linear(backbone, i, name) for i in range(start) for name in LAYERS
        }
        self._sums: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(float))

    def add(self, images: Tensor, labels: Tensor, probe: Probe | None, rng: torch.Generator) -> None:
        """Add the moments of some images."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor, y: Tensor) -> None:
            inputs[name], outputs[name] = x, y

        hooks = [
            layer.register_forward_hook(lambda _, x, y, name=name: keep(name, x[0], y))
            for name, layer in self._layers.items()
        ]
        try:
            with torch.enable_grad():
                tokens = self._backbone.embed(images, 0).requires_grad_()
                for index in range(self._backbone.depth - 1):
                    tokens = self._backbone.block(index, tokens)
                feature = self._backbone.last(tokens)
                z = F.layer_norm(feature, feature.shape[-1:])
        finally:
            for hook in hooks:
                hook.remove()
        if probe is None:
            direction = torch.randn(z.shape, generator=rng).to(z)
            losses, true = [(z * direction).sum() / z.shape[1] ** 0.5], None
        else:
            scores = probe.scores(z)
            cumulated = scores.softmax(1).detach().double().cumsum(1)
            uniform = torch.rand(len(z), 1, generator=rng, dtype=torch.float64).to(z.device)
            sampled = (cumulated < uniform).sum(1).clamp(max=scores.shape[1] - 1)
            losses = [F.cross_entropy(scores, target, reduction="sum") for target in (sampled, labels)]
            true = 1
        for index, loss in enumerate(losses):
            gradients = torch.autograd.grad(loss, list(outputs.values()), retain_graph=index + 1 < len(losses))
            for name, gradient in zip(outputs, gradients, strict=True):
                x, s = (part.detach().flatten(0, -2).double() for part in (inputs[name], gradient))
                sums = self._sums[name]
                if index == 0:
                    sums["inputs"] += x.mT @ x / inputs[name].shape[1]
                    sums["outputs"] += s.mT @ s
                if index == true:
                    sums["gradient"] += s.mT @ x

    def means(self, count: int) -> dict[str, Moments]:
        """Return the means over images."""
        result = {}
        for name, layer in self._layers.items():
            sums = self._sums[name]
            gradient = sums.get("gradient", torch.zeros_like(layer.weight, dtype=torch.float64))
            result[name] = Moments(sums["inputs"] / count, sums["outputs"] / count, gradient / count)
        return result

"""Scales and shifts, and bottlenecks beside MLPs: the papers' formulas as hooks of a timm ViT, gradients included."""

from functools import partial

import numpy as np
import pytest
import torch
from generators import maker
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.bottleneck import BottleneckWeights
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.scale_shift import ScaleShiftWeights

SHIFT = partial(ScaleShiftWeights, start_layer=1)
NARROW = {"width": 3, "scale": 0.7, "start_layer": 1}
BOTTLENECK = partial(BottleneckWeights, **NARROW)
VITS = [{}, {"init_values": 0.5}, {"pre_norm": True}, {"qk_norm": True}, {"qkv_bias": False}]


def scale_and_shift(module, parameters, leaf):
    scale, shift = parameters[f"scale.{leaf}"], parameters[f"shift.{leaf}"]
    module.register_forward_hook(lambda module, inputs, outputs: scale * outputs + shift)


def beside_mlp(module, parameters, leaf):
    down, up = parameters[f"down.{leaf}"], parameters[f"up.{leaf}"]
    module.register_forward_hook(lambda module, inputs, outputs: outputs + 0.7 * F.relu(inputs[0] @ down.T) @ up.T)


@pytest.mark.parametrize("options", VITS, ids=str)
@pytest.mark.parametrize(("kind", "hook", "count"), [(SHIFT, scale_and_shift, 13), (BOTTLENECK, beside_mlp, 2)])
def test_merged_weights_are_the_papers_formula_and_have_its_gradients(random_vit, images, kind, hook, count, options):
    frozen = FrozenViT(random_vit(**options), "small", (0.5,) * 3, (0.25,) * 3).double()
    weights = {"length": 0, "depth": "shallow", "start_layer": 1, "seed": 0, "weights": kind}
    model = PromptedViT(frozen, 5, generator=maker(), **weights).double()
    rng = np.random.default_rng(0)
    moved = {name: value + 0.3 * rng.standard_normal(value.shape) for name, value in model.initial.items()}
    model.stack([model.initial, moved])
    pixels = images(4, 16)
    tokens = model.precompute(pixels)[0]
    feature = model.weights.features(frozen, tokens.expand(2, *tokens.shape))[0]
    torch.testing.assert_close(feature[0], frozen.features(pixels), rtol=0, atol=1e-12)
    towards = torch.linspace(-1, 1, feature[1].numel(), dtype=torch.float64).view_as(feature[1])
    (feature[1] * towards).sum().backward()

    vit = random_vit(**options).double()
    parameters = {n: p.detach()[1].clone().requires_grad_() for n, p in model.weights.named_parameters()}
    leaves = sorted({name.partition(".")[2] for name in parameters})
    assert len(leaves) == count + 4 * (options == {"qk_norm": True}) * (hook is scale_and_shift)
    for leaf in leaves:
        hook(vit.get_submodule(leaf), parameters, leaf)
    expected = vit.forward_head(vit.forward_features(frozen.normalised(pixels)), pre_logits=True)
    (expected * towards).sum().backward()
    assert (expected - frozen.features(pixels)).abs().max() > 0.05
    torch.testing.assert_close(feature[1], expected, rtol=0, atol=1e-6)
    for name, parameter in model.weights.named_parameters():
        torch.testing.assert_close(parameter.grad[1], parameters[name].grad, rtol=0, atol=1e-5, msg=name)


def test_bottlenecks_start_within_the_bounds_of_a_linear_layer(random_vit):
    wide = FrozenViT(random_vit(embed_dim=240), "wide", (0.5,) * 3, (0.25,) * 3)
    down = BottleneckWeights(backbone=wide, rng=torch.Generator().manual_seed(0), **NARROW).state_dict()
    rows = down["down.blocks.2.mlp"]
    assert rows.abs().max() <= 240**-0.5
    assert rows.std().item() == pytest.approx((3 * 240) ** -0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"width": 0}, r"method\.weights\.width=0"),
        ({"scale": 0}, r"method\.weights\.scale=0"),
        ({"start_layer": 3}, r"method\.weights\.start_layer=3"),
    ],
)
def test_values_out_of_range_are_refused_by_name(random_vit, changes, key):
    backbone = FrozenViT(random_vit(), "small", (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=key):
        BottleneckWeights(backbone=backbone, rng=torch.Generator(), **NARROW | changes)
    if "start_layer" in changes:
        with pytest.raises(ConfigError, match=key):
            ScaleShiftWeights(backbone=backbone, rng=torch.Generator(), **changes)


def test_mlps_of_another_kind_take_no_bottleneck(random_vit):
    from timm.layers import SwiGLUPacked

    backbone = FrozenViT(random_vit(mlp_layer=SwiGLUPacked), "gated", (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=r"backbone\.name=gated"):
        BottleneckWeights(backbone=backbone, rng=torch.Generator(), **NARROW)

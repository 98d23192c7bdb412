"""A pool of scales and shifts: each image takes the mean of the sets whose keys are nearest to its feature."""

from functools import partial

import numpy as np
import pytest
import torch
from generators import maker
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.image_weights import ScaleShiftPool
from fedbayes.models.prompted import PromptedViT

POOL = {"start_layer": 1, "sets": 4, "chosen": 2, "strength": 0.3}
SIZES = {"length": 0, "depth": "shallow", "start_layer": 1, "seed": 0}


@pytest.fixture
def frozen(random_vit):
    return FrozenViT(random_vit(), "small", (0.5,) * 3, (0.25,) * 3).double()


def moved(model, clients=2):
    rng = np.random.default_rng(0)
    return [{n: v + 0.3 * rng.standard_normal(v.shape) for n, v in model.initial.items()} for _ in range(clients)]


def test_an_image_goes_through_the_mean_of_its_nearest_sets_with_the_gradients_of_plain_torch(
    random_vit, frozen, images
):
    model = PromptedViT(frozen, 5, generator=maker(), weights=partial(ScaleShiftPool, **POOL), **SIZES).double()
    model.stack(moved(model))
    pixels = images(6, 16)
    tokens, z = (part.unflatten(0, (2, 3)) for part in model.precompute(pixels))
    feature = model.features(tokens, model.generator.plain(z).unsqueeze(0), z)[0].flatten(0, 1)
    towards = torch.linspace(-1, 1, feature.numel(), dtype=torch.float64).view_as(feature)
    (feature * towards).sum().backward()

    pools = {n: p.detach().clone().requires_grad_() for n, p in model.weights.named_parameters()}
    layers = {name.partition(".")[2] for name in pools if name != "keys"}
    chosen = set()
    for i, query in enumerate(z.flatten(0, 1)):
        c, vit = i // 3, random_vit().double()
        cosines = [F.cosine_similarity(query, key, dim=0).item() for key in pools["keys"][c]]
        nearest = sorted(range(4), key=cosines.__getitem__)[-2:]
        chosen.add(tuple(sorted(nearest)))
        for layer in layers:
            scale, shift = (pools[f"{kind}.{layer}"][c, nearest].mean(0) for kind in ("scale", "shift"))
            vit.get_submodule(layer).register_forward_hook(lambda m, x, y, s=scale, t=shift: s * y + t)
        expected = vit.forward_head(vit.forward_features(frozen.normalised(pixels[i : i + 1])), pre_logits=True)[0]
        torch.testing.assert_close(feature[i], expected, rtol=0, atol=1e-11)
        (expected * towards[i]).sum().backward()
    assert len(chosen) > 1, "images differ in their sets"
    for name, parameter in model.weights.named_parameters():
        if name == "keys":
            assert parameter.grad is None, "the choice has no gradient"
        else:
            torch.testing.assert_close(parameter.grad, pools[name].grad, rtol=0, atol=1e-10, msg=name)
    assert not any(layer._forward_hooks for layer in frozen.modules()), "nothing is left behind"


def test_an_untrained_pool_leaves_the_frozen_feature(frozen, images):
    model = PromptedViT(frozen, 5, generator=maker(), weights=partial(ScaleShiftPool, **POOL), **SIZES).double()
    tokens, z = model.precompute(images(3, 16))
    feature = model.features(tokens[None], model.generator.plain(z[None]).unsqueeze(0), z[None])[0]
    torch.testing.assert_close(feature[0], frozen.features(images(3, 16)), rtol=0, atol=1e-12)


def test_the_term_of_the_keys_by_hand(frozen):
    pool = ScaleShiftPool(backbone=frozen, rng=torch.Generator(), **POOL).double()
    directions = torch.zeros(4, frozen.dim, dtype=torch.float64)
    directions[torch.arange(4), torch.arange(4)] = torch.tensor([1.0, 2.0, 3.0, -1.0], dtype=torch.float64)
    pool.keys = torch.nn.Parameter(directions[None])
    z = torch.zeros(1, 3, frozen.dim, dtype=torch.float64)
    z[0, 0, 0] = z[0, 1, 1] = 5.0
    z[0, 1, 2] = 5.0
    term = pool.penalty(z, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64))
    assert term.item() == pytest.approx(0.3 * (0.5 * (1 - 1) + 0.5 * (1 - 2 * 0.5**0.5)))
    (gradient,) = torch.autograd.grad(term.sum(), [pool.keys])
    assert gradient[0, 1, 2] == pytest.approx(-0.3 * 0.5 * 0.5**0.5 / 2), "the second key, of length 2, turns to z"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"start_layer": 3}, r"method\.weights\.start_layer=3"),
        ({"sets": 0}, r"method\.weights\.sets=0"),
        ({"chosen": 5}, r"method\.weights\.chosen=5"),
        ({"strength": -1}, r"method\.weights\.strength=-1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(frozen, changes, key):
    with pytest.raises(ConfigError, match=key):
        ScaleShiftPool(backbone=frozen, rng=torch.Generator(), **POOL | changes)

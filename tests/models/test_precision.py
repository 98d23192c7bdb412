"""bf16 on the backbone's side alone: close to float32, and float32 again wherever it meets what learns."""

import numpy as np
import pytest
import torch
from generators import maker
from torch import nn
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.prompted import PromptedViT
from fedbayes.models.zoo import shipped

PROMPTS = maker("deterministic", noise_dim=2)
OPTIONS = {"length": 4, "depth": "shallow", "start_layer": 2, "seed": 0, "generator": PROMPTS}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def pair(device):
    return shipped(32).to(device), shipped(32).cast("bf16").to(device)


def test_float32_changes_nothing(images):
    plain = shipped(32)
    assert plain.cast("float32") is plain
    assert plain.tokens_dtype == plain.dtype == torch.float32
    assert torch.equal(plain.features(images(4, 32)), shipped(32).features(images(4, 32)))


@pytest.mark.parametrize("start", [0, 2, 4])
def test_features_are_close_and_float32(images, device, start):
    full, half = pair(device)
    pixels = images(8, 32).to(device)
    tokens = half.embed(pixels, start)
    assert tokens.dtype == half.tokens_dtype == torch.bfloat16
    expected, got = full.features(pixels), half(tokens, None, start)
    assert got.dtype == torch.float32
    assert (got - expected).norm() < 0.02 * expected.norm()
    assert not torch.equal(got, expected)


def test_weights_are_converted_once_and_norms_are_not():
    half = shipped(32).cast("bf16")
    for module in half.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.weight.dtype == torch.bfloat16
        if isinstance(module, nn.LayerNorm):
            assert module.weight.dtype == torch.float32


def test_generator_and_head_stay_float32_and_the_step_points_the_same_way(images, device):
    gradients = []
    for backbone in pair(device):
        model = PromptedViT(backbone, 10, **OPTIONS).to(device)
        head = np.random.default_rng(0).normal(0, 0.1, model.initial["head.weight"].shape).astype(np.float32)
        model.stack([{"head.weight": head}])
        tokens, z = (tensor.unsqueeze(0) for tensor in model.precompute(images(16, 32).to(device)))
        assert z.dtype == torch.float32
        prompts = model.generator.plain(z)
        logits = model.logits(tokens, prompts)
        assert logits.dtype == torch.float32
        loss = F.cross_entropy(logits[0], torch.arange(16, device=device) % 10)
        base = model.generator.base
        gradient_parts = torch.autograd.grad(loss, [prompts, base, *model.head.parameters()])
        assert all(gradient.dtype == torch.float32 for gradient in gradient_parts)
        gradients.append(torch.cat([gradient.flatten() for gradient in gradient_parts[1:]]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_an_unknown_precision_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"simulation\.precision=fp8"):
        shipped(32).cast("fp8")

"""The generators against the formulas of their module docstring."""

import math

import pytest
import torch
from generators import prompts as make
from torch.nn import functional as F

from fedbayes.errors import ConfigError
from fedbayes.models.prompts.base import ClientLinear
from fedbayes.models.prompts.coded import KINDS


def randomise(generator):
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return generator.double()


def test_client_linear_is_a_layer_for_each_client():
    layer = ClientLinear(3, 2, std=1.0, rng=torch.Generator().manual_seed(0))
    layer.weight.data, layer.bias.data = torch.randn(4, 3, 2), torch.randn(4, 1, 2)
    x = torch.randn(7, 4, 5, 3)
    for c in range(4):
        expected = F.linear(x[:, c], layer.weight[c].T, layer.bias[c, 0])
        torch.testing.assert_close(layer(x)[:, c], expected)


def test_all_kinds_start_from_one_base_and_the_deterministic_one_starts_as_vpt():
    z = torch.randn(1, 5, 8)
    fixed, deterministic, gaussian, low_rank, semi = (make(kind) for kind in KINDS)
    base = fixed.plain(z)
    assert base.shape == (1, 1, 2, 3, 8)
    assert base.abs().max() <= math.sqrt(6 / 16)
    for other in (deterministic, gaussian, low_rank, semi):
        assert torch.equal(other.base, fixed.base)
        assert torch.equal(other.decode(torch.zeros(1, 5, 6)), base.expand(1, 5, 2, 3, 8))
    assert torch.equal(deterministic.plain(z), base.expand(1, 5, 2, 3, 8))
    assert not gaussian.mixing(z, None).any()
    eps = torch.randn(2, 1, 5, 4)
    torch.testing.assert_close(semi.mixing(z, eps), eps @ semi.skip.weight)  # A eps, since f_phi starts at zero
    assert not semi.mixing(z, torch.zeros_like(eps)).any()
    torch.testing.assert_close(low_rank.mixing(z, eps), eps @ low_rank.skip.weight)
    assert not low_rank.mixing(z, None).any()


def test_initial_scales_are_in_the_units_they_name():
    wide = make("semi_implicit", code_dim=4000, noise_dim=3)
    torch.testing.assert_close(wide.scale(torch.randn(1, 5, 8)), torch.full((1, 1, 1), 0.3))
    columns = wide.skip.weight[0].norm(dim=1)  # of A, each in R^r
    torch.testing.assert_close(columns, torch.full((3,), 0.5 * 0.3), rtol=0.05, atol=0)
    offset = wide.decode(torch.randn(1, 200, 4000)) - wide.base
    assert offset.std().item() == pytest.approx(0.2, rel=0.05)


def test_semi_implicit_mixing_and_decoding_by_hand():
    generator = randomise(make("semi_implicit"))
    weights = {name: value[0] for name, value in generator.state_dict().items()}
    z, eps = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    psi = generator.mixing(z, eps)
    for i in range(5):
        hidden = z[0, i] @ weights["hidden.weight"] + weights["hidden.bias"][0] + eps[0, i] @ weights["noise.weight"]
        f = F.gelu(hidden) @ weights["location.weight"] + weights["location.bias"][0]
        expected = eps[0, i] @ weights["skip.weight"] + f
        torch.testing.assert_close(psi[0, i], expected)
        prompts = weights["base"] + (expected @ weights["decoder.weight"]).view(2, 3, 8)
        torch.testing.assert_close(generator.decode(psi)[0, i], prompts)


def test_the_gaussian_scale_is_one_per_image_and_entry():
    generator = randomise(make("gaussian"))
    z = torch.randn(1, 5, 8, dtype=torch.float64)
    hidden = F.gelu(generator.hidden(z))
    torch.testing.assert_close(generator.scale(z), (generator.log_scale + generator.spread(hidden)).exp())
    assert generator.scale(z).shape == (1, 5, 6)


def test_low_rank_directions_are_common_ones_and_the_images_own():
    generator = randomise(make("low_rank"))
    z, eps = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    hidden = F.gelu(generator.hidden(z))
    change = generator.directions(hidden).view(1, 5, 6, 4)
    factor = generator.factor(z)
    torch.testing.assert_close(factor, change + generator.skip.weight.mT[:, None])
    location = generator.location(hidden)
    for i in range(5):
        torch.testing.assert_close(generator.mixing(z, eps)[0, i], location[0, i] + factor[0, i] @ eps[0, i])
    assert generator.scale(z).shape == (1, 5, 6)
    assert make("gaussian").factor(z.float()) is None


def test_the_reverse_model_sees_code_and_image_and_starts_at_the_prior():
    fresh = make("semi_implicit", reverse_outputs=14)
    code, z = torch.randn(3, 2, 1, 5, 6), torch.randn(1, 5, 8)
    assert fresh.reverse(code, z).shape == (3, 2, 1, 5, 14)
    assert not fresh.reverse(code, z).any(), "N(0, I) in the convention of GaussianReverse"
    generator = randomise(fresh)
    code, z = code.double(), z.double()
    hidden = F.gelu(generator.reverse_code(code) + generator.reverse_image(z))
    torch.testing.assert_close(generator.reverse(code, z), generator.reverse_out(hidden))
    for other in KINDS[:-1]:
        names = [name for name, _ in make(other, reverse_outputs=14).named_parameters()]
        assert not any(name.startswith("reverse") for name in names), "no noise to model"
    plain = make("semi_implicit").state_dict()
    assert all(torch.equal(plain[name], make("semi_implicit", reverse_outputs=14).state_dict()[name]) for name in plain)


def test_a_full_code_is_the_prompts_themselves():
    generator = make("deterministic", code_dim="full")
    assert generator.code_dim == 48
    code = torch.randn(2, 1, 5, 48)
    torch.testing.assert_close(generator.decode(code), generator.base + code.view(2, 1, 5, 2, 3, 8))
    assert not any(name.startswith("decoder") for name, _ in generator.named_parameters())


def test_no_prompts_make_a_generator_of_nothing():
    assert make("fixed", (2, 0, 8)).plain(torch.randn(1, 5, 8)).shape == (1, 1, 2, 0, 8)
    with pytest.raises(ConfigError, match=r"prompts\.length=0 leaves generator\.kind=gaussian"):
        make("gaussian", (2, 0, 8))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden", 0),
        ("code_dim", 0),
        ("code_dim", "wide"),
        ("noise_dim", 0),
        ("init_scale", 0),
        ("init_scale", "small"),
        ("init_mixing", -0.1),
        ("decoder_scale", math.inf),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"generator\.{key}={value}"):
        make("semi_implicit", **{key: value})

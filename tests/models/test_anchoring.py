"""Noise coordinates: what averaging can destroy, and what turning them back saves."""

import numpy as np
import pytest
import torch
from generators import prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbayes.errors import ConfigError
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.models.anchoring import anchored, noise_bank, noise_layers, rotation, turned

M = 3


def make(kind="semi_implicit", **options):
    settings = {
        "hidden": 16,
        "code_dim": 5,
        "noise_dim": M,
        "init_scale": 0.5,
        "init_mixing": 1.0,
        "decoder_scale": 1.0,
    }
    generator = prompts(kind, (1, 2, 8), **settings | options)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return generator.double()


def arrays_of(generator):
    return {f"generator.{name}": p.detach()[0].numpy() for name, p in generator.named_parameters()}


def load(generator, arrays):
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[f"generator.{name}"])[None])
    return generator


def orthogonal(seed, m=M):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0]


@given(st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=20)
def test_the_bank_is_fixed_and_has_the_moments_of_the_noise(noise_dim, seed):
    bank = noise_bank(noise_dim, seed).double()
    assert torch.equal(bank, noise_bank(noise_dim, seed).double())
    torch.testing.assert_close(bank.mean(0), torch.zeros(noise_dim).double(), rtol=0, atol=1e-6)
    covariance = bank.T @ bank / len(bank)
    torch.testing.assert_close(covariance, torch.eye(noise_dim).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["semi_implicit", "low_rank"])
def test_turned_parameters_are_the_same_posterior_in_other_coordinates(kind):
    turn = orthogonal(0)
    generator, other = make(kind), make(kind)
    load(other, turned(arrays_of(generator), turn))
    z, eps = torch.randn(1, 6, 8, dtype=torch.float64), torch.randn(9, 1, 6, M, dtype=torch.float64)
    torch.testing.assert_close(other.mixing(z, eps), generator.mixing(z, eps @ torch.from_numpy(turn)))
    torch.testing.assert_close(other.scale(z), generator.scale(z))


def test_a_reverse_models_mean_turns_along():
    turn = orthogonal(1)
    generator, other = (make(reverse_outputs=GaussianReverse.outputs(M)) for _ in range(2))
    load(other, turned(arrays_of(generator), turn))
    code, z = torch.randn(1, 6, 5, dtype=torch.float64), torch.randn(1, 6, 8, dtype=torch.float64)
    old, new = generator.reverse(code, z), other.reverse(code, z)
    torch.testing.assert_close(new[..., :M], old[..., :M] @ torch.from_numpy(turn).T)
    torch.testing.assert_close(new[..., M:], old[..., M:])


@pytest.mark.parametrize("kind", ["semi_implicit", "low_rank"])
def test_anchoring_undoes_any_turn_whatever_the_mirror(kind):
    arrays = arrays_of(make(kind))
    for turn in (orthogonal(3), -np.eye(M), np.diag([1.0, -1.0, 1.0])):
        back = anchored(turned(arrays, turn), arrays)
        for name, value in arrays.items():
            np.testing.assert_allclose(back[name], value, atol=1e-5, err_msg=name)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=50)
def test_the_rotation_undoes_a_rotation(seed, m, columns):
    handed_out = np.random.default_rng(seed + 1).normal(size=(m, columns))
    turn = orthogonal(seed, m)
    inverse = rotation(turn @ handed_out, handed_out)
    np.testing.assert_allclose(inverse @ inverse.T, np.eye(m), atol=1e-9)
    np.testing.assert_allclose(inverse @ turn @ handed_out, handed_out, atol=1e-4)
    np.testing.assert_allclose(rotation(handed_out, handed_out), np.eye(m), atol=1e-3)


@pytest.mark.parametrize("missing", [("skip.weight", "noise.weight"), ("noise.weight",), ("skip.weight",)])
def test_noise_that_is_not_shared_whole_cannot_be_anchored(missing):
    arrays = {name: a for name, a in arrays_of(make()).items() if name.removeprefix("generator.") not in missing}
    with pytest.raises(ConfigError, match=r"aggregate=anchored needs a generator with noise, all of it shared"):
        noise_layers(arrays)

"""A mixture's density and diagnostics, whole and in parts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbayes.inference.diagnostics import bound_saturation, effective_components, log_mixture
from fedbayes.inference.mixture import Mixture

SEEDS = st.integers(0, 2**32 - 1)


def some_weights(count, seed, spread=5.0):
    rng = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, 2, 3, generator=rng, dtype=torch.float64)


def test_by_hand():
    # weights 0.6, 0.2, 0.2: a density of 1 / 3, and 1 / (0.36 + 0.04 + 0.04) components
    weights = torch.tensor([0.6, 0.2, 0.2]).log()
    mixture = Mixture.of(weights, weights[0])
    assert mixture.components == 3
    assert mixture.log_density.exp().item() == pytest.approx(1 / 3)
    assert mixture.effective_components.item() == pytest.approx(1 / 0.44)
    assert mixture.bound_saturation.item() == pytest.approx(math.log(1.8) / math.log(3))


def test_without_a_component_of_its_own_it_has_no_saturation():
    weights = some_weights(4, 0)
    assert Mixture.of(weights).bound_saturation is None
    assert Mixture.of(weights[:1], weights[0]).bound_saturation is None


@given(SEEDS, st.integers(1, 8))
def test_it_agrees_with_the_diagnostics_of_its_weights(seed, count):
    weights = some_weights(count, seed)
    mixture = Mixture.of(weights, weights[0])
    torch.testing.assert_close(mixture.log_density, log_mixture(weights))
    torch.testing.assert_close(mixture.effective_components, effective_components(weights))
    assert mixture.effective_components.min() >= 1 - 1e-12
    assert mixture.effective_components.max() <= count + 1e-12
    if count > 1:
        torch.testing.assert_close(mixture.bound_saturation, bound_saturation(weights))


@given(SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_parts_joined_are_the_whole(seed, sizes):
    weights = some_weights(sum(sizes), seed).requires_grad_()
    whole = Mixture.of(weights, weights[0])
    joined = Mixture.joined([Mixture.of(part) for part in weights.split(sizes)], weights[0])
    assert joined.components == whole.components == sum(sizes)
    for name in ("log_sum", "log_squares", "log_density", "effective_components", "bound_saturation"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), msg=name)
    (mine,) = torch.autograd.grad(joined.log_density.sum(), weights)
    (theirs,) = torch.autograd.grad(whole.log_density.sum(), weights)
    torch.testing.assert_close(mine, theirs)


def test_far_weights_neither_overflow_nor_underflow():
    weights = torch.tensor([[-2000.0, 2000.0], [-2001.0, 1999.0]])
    mixture = Mixture.joined([Mixture.of(weights[:1]), Mixture.of(weights[1:])])
    expected = (1 + math.exp(-1)) ** 2 / (1 + math.exp(-2))
    assert mixture.effective_components.tolist() == pytest.approx([expected] * 2, rel=1e-3)  # float32 at 2000 nats
    assert mixture.log_density.isfinite().all()


def test_only_the_density_has_a_gradient():
    weights = some_weights(3, 1).requires_grad_()
    mixture = Mixture.of(weights, weights[0])
    assert mixture.log_density.requires_grad
    assert not mixture.effective_components.requires_grad
    assert not mixture.bound_saturation.requires_grad

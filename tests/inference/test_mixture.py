"""A mixture's density and diagnostics, whole and in parts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbayes.inference.mixture import Mixture

SEEDS = st.integers(0, 2**32 - 1)


def random_weights(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(count, 2, 3, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    ("weights", "density", "effective", "saturation"),
    [
        ([0.6, 0.2, 0.2], 1 / 3, 1 / 0.44, math.log(1.8) / math.log(3)),
        ([0.5, 0.1], 0.3, 0.36 / 0.26, math.log(5 / 3) / math.log(2)),
        ([1.0, 1.0, 1.0, 1.0], 1.0, 4.0, 0.0),
        ([1.0, 1e-200, 1e-200], 1 / 3, 1.0, 1.0),
        ([0.7], 0.7, 1.0, None),
    ],
)
def test_density_components_and_saturation_by_hand(weights, density, effective, saturation):
    weights = torch.tensor(weights, dtype=torch.float64).log()
    mixture = Mixture.of(weights, weights[0])
    assert mixture.components == len(weights)
    assert mixture.log_density.exp().item() == pytest.approx(density)
    assert mixture.effective_components.item() == pytest.approx(effective)
    assert mixture.bound_saturation == (None if saturation is None else pytest.approx(saturation, abs=1e-12))
    assert Mixture.of(weights).bound_saturation is None, "without the generating component"


@given(SEEDS, st.integers(2, 8))
def test_effective_components_lie_between_one_and_all_and_saturation_below_one(seed, count):
    weights = random_weights(count, seed)
    mixture = Mixture.of(weights, weights[0])
    assert mixture.effective_components.min() >= 1 - 1e-12
    assert mixture.effective_components.max() <= count + 1e-12
    assert mixture.bound_saturation.max() <= 1 + 1e-12
    torch.testing.assert_close(Mixture.of(weights.flip(0) + 3).effective_components, mixture.effective_components)


@given(SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_parts_joined_are_the_whole(seed, sizes):
    weights = random_weights(sum(sizes), seed).requires_grad_()
    whole = Mixture.of(weights, weights[0])
    joined = Mixture.joined([Mixture.of(part) for part in weights.split(sizes)], weights[0])
    assert joined.components == whole.components == sum(sizes)
    for name in ("log_sum", "log_squares", "log_density", "effective_components", "bound_saturation"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), msg=name)
    gradients = [torch.autograd.grad(mixture.log_density.sum(), weights)[0] for mixture in (joined, whole)]
    torch.testing.assert_close(*gradients)


def test_far_weights_neither_overflow_nor_underflow():
    weights = torch.tensor([[-2000.0, 2000.0], [-2001.0, 1999.0]])
    mixture = Mixture.joined([Mixture.of(weights[:1]), Mixture.of(weights[1:])])
    expected = (1 + math.exp(-1)) ** 2 / (1 + math.exp(-2))
    assert mixture.effective_components.tolist() == pytest.approx([expected] * 2, rel=1e-3)  # float32 at 2000 nats
    assert mixture.log_density.isfinite().all()


def test_only_the_density_has_a_gradient():
    weights = random_weights(3, 1).requires_grad_()
    mixture = Mixture.of(weights, weights[0])
    assert mixture.log_density.requires_grad
    assert not mixture.effective_components.requires_grad
    assert not mixture.bound_saturation.requires_grad

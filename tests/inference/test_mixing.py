"""Noise that is told, and batches that grow."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_gaussian import Bank

from fedbayes.inference.mixing import Pushforward, StandardLike, expanded, sample_noise

GROWTHS = [((), (5,)), ((3,), (4, 3)), ((1,), (6,)), ((1, 3), (5, 3)), ((3, 1), (3, 5)), ((1, 3, 1), (2, 4, 3, 5))]


def places(old):
    """Tells the old elements apart, in steps of 100."""
    return 100 * torch.arange(math.prod(old), dtype=torch.float64).view(*old, 1)


def plain(old):
    return lambda shape: places(old) + torch.randn(*shape, *old, 2, dtype=torch.float64)


def pushforward(old):
    return Pushforward(lambda eps: places(old) + eps, 2, old, StandardLike(places(old)))


def test_a_pushforward_maps_its_noise():
    mixing = Pushforward(lambda eps: 2 * eps + 1, 3, (4,), Bank(0))
    eps = Bank(0)(torch.Size((5, 4, 3)))
    assert torch.equal(mixing(torch.Size((5,))), 2 * eps + 1)
    assert mixing.eps(torch.Size()).shape == (4, 3)


@pytest.mark.parametrize("noise_dim", [0, -1, 1.5])
def test_noise_has_a_length(noise_dim):
    with pytest.raises(ValueError, match=f"noise_dim .*{noise_dim}"):
        Pushforward(lambda eps: eps, noise_dim)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise\(\(2, 3\)\) gave .*\(3, 2\)"):
        sample_noise(lambda shape: torch.zeros(3, 2), torch.Size((2, 3)))
    with pytest.raises(ValueError, match=r"gave draws of shape \(3,\)"):
        Pushforward(lambda eps: eps, 3, (), lambda shape: torch.zeros(3))(torch.Size((2,)))


@pytest.mark.parametrize("mixing", [plain, pushforward])
@pytest.mark.parametrize(("old", "new"), GROWTHS)
@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
def test_growing_draws_afresh_for_every_new_element(mixing, old, new, lead):
    psi = expanded(mixing(old), torch.Size(old), torch.Size(new))(torch.Size(lead))
    assert psi.shape == (*lead, *new, 2)
    assert psi.unique().numel() == psi.numel()
    torch.testing.assert_close((psi / 100).round(), (places(old) / 100).expand(*new, 2).expand_as(psi))


@st.composite
def growths(draw):
    new = draw(st.lists(st.integers(1, 4), max_size=4))
    kept = new[draw(st.integers(0, len(new))) :]
    return tuple(size if draw(st.booleans()) else 1 for size in kept), tuple(new)


@given(growths(), st.lists(st.integers(1, 3), max_size=2), st.sampled_from([plain, pushforward]))
def test_any_growth_by_broadcasting_is_served(growth, lead, mixing):
    old, new = growth
    torch.manual_seed(0)
    psi = expanded(mixing(old), torch.Size(old), torch.Size(new))(torch.Size(lead))
    assert psi.shape == (*lead, *new, 2)
    assert psi.unique().numel() == psi.numel()
    torch.testing.assert_close((psi / 100).round(), (places(old) / 100).expand(*new, 2).expand_as(psi))


@pytest.mark.parametrize("mixing", [plain, pushforward])
@pytest.mark.parametrize(("old", "new"), [((2,), (3,)), ((2,), (2, 1)), ((4, 2), (2,)), ((2,), ())])
def test_only_a_size_of_one_can_grow(mixing, old, new):
    with pytest.raises(ValueError, match="only size 1 can grow"):
        expanded(mixing(old), torch.Size(old), torch.Size(new))


def test_standard_draws_have_the_dtype_of_a_tensor():
    noise = StandardLike(torch.zeros(1, dtype=torch.float64))(torch.Size((1000,)))
    assert noise.dtype == torch.float64
    assert abs(noise.mean()) < 5 / math.sqrt(1000)

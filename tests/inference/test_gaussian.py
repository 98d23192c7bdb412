"""Explicit posteriors against torch's own distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_gaussian import Bank
from torch.distributions import Independent, MultivariateNormal, Normal

from fedbayes.inference.gaussian import AmortisedNormal, log_normal, require_scale

SIZES = st.lists(st.integers(1, 3), max_size=3)


def numbers(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def law(batch, event, rank, seed=0, **options):
    factor = numbers(seed + 2, *batch, event, rank) if rank else None
    return AmortisedNormal(numbers(seed, *batch, event), numbers(seed + 1, *batch, event).exp(), factor, **options)


def reference(posterior):
    covariance = torch.diag_embed(posterior.scale.expand_as(posterior.loc) ** 2)
    if posterior.factor is not None:
        covariance = covariance + posterior.factor @ posterior.factor.mT
    return MultivariateNormal(posterior.loc, covariance)


@given(SIZES, SIZES, st.integers(0, 2), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_log_normal_is_torchs(batch, lead, event_dim, seed, dtype):
    event = [2, 3][:event_dim]
    value, loc = numbers(seed, *lead, *batch, *event, dtype=dtype), numbers(seed + 1, *batch, *event, dtype=dtype)
    for shape in ((*batch, *event), tuple(event), (), (*batch, *[1] * event_dim), (*[1] * event_dim,)):
        scale = numbers(seed + 2, *shape, dtype=dtype).exp()
        theirs = Independent(Normal(loc, scale.expand((*batch, *event))), event_dim).log_prob(value)
        ours = log_normal(value, loc, scale, event_dim)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_log_normal_by_hand():
    found = log_normal(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor(2.0))
    assert found.item() == pytest.approx(-(1 + 4) / 8 - 2 * math.log(2) - math.log(2 * math.pi))


@given(SIZES, st.integers(1, 4), st.integers(0, 3), SIZES, st.integers(0, 99))
def test_log_prob_is_torchs(batch, event, rank, lead, seed):
    posterior = law(batch, event, rank, seed)
    value = posterior.rsample(lead)
    assert value.shape == (*lead, *batch, event)
    torch.testing.assert_close(posterior.log_prob(value), reference(posterior).log_prob(value))
    assert posterior.batch_shape == tuple(batch)
    assert posterior.event_shape == (event,)


@pytest.mark.parametrize("rank", [0, 2])
def test_draws_have_its_moments(rank):
    draws, posterior = 100_000, law((2,), 3, rank, noise=Bank(1))
    value = posterior.rsample((draws,)).detach()
    exact = reference(posterior).covariance_matrix
    variance = exact.diagonal(dim1=-2, dim2=-1)  # (2, 3)
    assert ((value.mean(0) - posterior.loc).abs() < 5 * (variance / draws).sqrt()).all()
    off = value - posterior.loc
    found = torch.einsum("nbi,nbj->bij", off, off) / draws
    # Var of x_i x_j is C_ii C_jj + C_ij^2
    error = ((variance[:, :, None] * variance[:, None, :] + exact**2) / draws).sqrt()
    assert ((found - exact).abs() < 5 * error).all()


@pytest.mark.parametrize("rank", [0, 2])
def test_expanding_draws_afresh_for_every_new_element(rank):
    posterior = law((3,), 2, rank)
    grown = posterior.expand((4, 3))
    assert grown.batch_shape == (4, 3)
    value = grown.rsample((2,))
    assert value.unique().numel() == value.numel()
    torch.testing.assert_close(grown.log_prob(value), reference(posterior).log_prob(value))
    wide = law((), 1, rank).expand((20_000, 2)).rsample()[..., 0]
    correlation = torch.corrcoef(wide.T)[0, 1]
    assert abs(correlation) < 5 / math.sqrt(20_000)


def test_noise_makes_the_draws():
    posterior = law((3,), 2, 2, noise=Bank(5))
    bank = Bank(5)
    mean = posterior.loc + (posterior.factor @ bank((4, 3, 2)).unsqueeze(-1)).squeeze(-1)
    expected = mean + posterior.scale * bank((4, 3, 2))
    assert torch.equal(posterior.rsample((4,)), expected)
    assert torch.equal(posterior.expand((4, 3)).noise.numbers, bank.numbers)


def test_gradients_reach_mean_scale_and_factor():
    leaves = [numbers(0, 3, 2), numbers(1, 3, 1).exp(), numbers(2, 3, 2, 2)]
    posterior = AmortisedNormal(*(leaf.requires_grad_() for leaf in leaves))
    p = posterior.rsample((5,))
    (p.square().sum() - posterior.log_prob(p).sum()).backward()
    assert all(leaf.grad.abs().min() > 0 for leaf in leaves)


@settings(max_examples=30)
@given(st.sampled_from([0.0, -1.0, math.nan, math.inf]), st.integers(0, 2))
def test_a_scale_that_makes_no_density_is_refused_by_value(bad, place):
    scale = torch.ones(3)
    scale[place] = bad
    with pytest.raises(ValueError, match=rf"scale .* got {bad:g}"):
        AmortisedNormal(torch.zeros(3), scale, validate_args=True)
    AmortisedNormal(torch.zeros(3), scale, validate_args=False)
    require_scale(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize(
    ("scale", "factor", "message"),
    [
        ((4,), None, r"scale of shape \(4,\)"),
        ((2, 3), None, r"scale of shape \(2, 3\)"),
        ((3,), (2, 2), r"factor of shape \(2,\)"),
        ((3,), (5, 3, 2), r"factor of shape \(5, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(scale, factor, message):
    with pytest.raises(ValueError, match=message):
        AmortisedNormal(torch.zeros(3), torch.ones(scale), None if factor is None else torch.ones(factor))


def test_values_outside_are_refused_where_arguments_are_validated():
    with pytest.raises(ValueError, match="support"):
        law((), 3, 0, validate_args=True).log_prob(torch.full((3,), math.nan).double())


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 1e-3, 1e-4])
def test_a_low_rank_density_is_right_in_float32_where_the_scale_is_small(scale):
    rng = torch.Generator().manual_seed(0)
    loc, factor = torch.randn(7, 16, generator=rng), torch.randn(7, 16, 2, generator=rng)
    law = AmortisedNormal(loc, torch.full((1,), scale), factor)
    value = law.rsample((5,))
    covariance = factor.double() @ factor.double().mT + law.scale.double().square() * torch.eye(16)
    exact = MultivariateNormal(loc.double(), covariance).log_prob(value.double())
    found = law.log_prob(value)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e20])
def test_an_element_without_a_density_keeps_that_to_itself(bad):
    loc, scale = torch.zeros(3, 4, requires_grad=True), torch.ones(1)
    factor = torch.ones(3, 4, 2)
    clean = AmortisedNormal(loc, scale, factor).log_prob(torch.ones(3, 4))
    factor[1] = bad
    spoilt = AmortisedNormal(loc, scale, factor, validate_args=False).log_prob(torch.ones(3, 4))
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])
    (gradient,) = torch.autograd.grad(spoilt.sum(), loc)
    assert gradient[[0, 2]].isfinite().all()

"""Reverse models: exact where they are true, valid where they are not."""

import math

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_gaussian import Bank, LinearGaussian, gaussian_reverse_of_linear
from pyro import poutine
from torch import nn
from torch.distributions import MultivariateNormal

from fedbayes.inference.bounds import lower_bound, upper_bound
from fedbayes.inference.mixing import Pushforward, StandardLike
from fedbayes.inference.reverse import GaussianReverse, NoisePosterior
from fedbayes.inference.semi_implicit import SemiImplicitNormal

SEEDS = st.integers(0, 2**32 - 1)


def true_reverse(case):
    return GaussianReverse(gaussian_reverse_of_linear(case.m, case.A, case.s), case.A.shape[1])


def network(case, spread=0.0, seed=0):
    """A linear layer from p to tau; without spread it starts at `tau = N(0, I)`."""
    layer = nn.Linear(len(case.m), GaussianReverse.outputs(case.A.shape[1]), dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return layer


@st.composite
def given_values(draw):
    m, batch, seed = draw(st.integers(1, 5)), draw(st.lists(st.integers(1, 3), max_size=2)), draw(SEEDS)
    rng = torch.Generator().manual_seed(seed)
    raw = 0.5 * torch.randn(*batch, GaussianReverse.outputs(m), generator=rng, dtype=torch.float64)
    tau = GaussianReverse(lambda value: raw, m)(raw)
    eps = torch.randn(draw(st.integers(1, 4)), *batch, m, generator=rng, dtype=torch.float64)
    return tau, eps


@given(given_values())
def test_its_density_and_its_draws_are_torchs(case):
    tau, eps = case
    standard = MultivariateNormal(torch.zeros_like(tau.loc), torch.eye(tau.loc.shape[-1], dtype=torch.float64))
    exact = MultivariateNormal(tau.loc, scale_tril=tau.tril)
    torch.testing.assert_close(tau.log_ratio(eps), standard.log_prob(eps) - exact.log_prob(eps))
    pushed, log_ratio = tau.push(eps)
    torch.testing.assert_close(pushed, tau.loc + torch.einsum("...ij,...j->...i", tau.tril, eps))
    torch.testing.assert_close(log_ratio, tau.log_ratio(pushed))


def test_the_outputs_are_means_then_the_diagonal_then_the_rest_by_rows():
    raw = torch.tensor([10.0, 20.0, 30.0, 0.0, math.log(2), math.log(3), 4.0, 5.0, 6.0])
    tau = GaussianReverse(lambda value: raw, 3)(torch.zeros(1))
    assert tau.loc.tolist() == [10.0, 20.0, 30.0]
    torch.testing.assert_close(tau.tril, torch.tensor([[1.0, 0, 0], [4, 2, 0], [5, 6, 3]]))
    assert [GaussianReverse.outputs(m) for m in (1, 2, 3)] == [2, 5, 9]


@pytest.mark.parametrize("num_extra", [0, 1, 7])
@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"share_extra": True}])
@pytest.mark.parametrize(("d", "e"), [(1, 1), (3, 3), (6, 2), (2, 4)])
def test_the_true_reverse_makes_every_component_exact(num_extra, options, d, e):
    case = LinearGaussian.make(d, e)
    posterior = case.posterior(num_extra, reverse=true_reverse(case), **options)
    p = posterior.rsample((50,))
    torch.testing.assert_close(posterior.log_prob(p), case.q.log_prob(p))
    torch.testing.assert_close(posterior.mixture(p).effective_components, torch.full((50,), num_extra + 1.0).double())
    if num_extra:
        foreign = 3 * torch.randn(50, d, dtype=torch.float64)
        torch.testing.assert_close(posterior.log_prob(foreign), case.q.log_prob(foreign))


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.2, 2), st.floats(0.1, 2), SEEDS, st.integers(0, 3))
def test_the_true_reverse_is_exact_in_every_linear_case(d, e, s, scale, seed, num_extra):
    case = LinearGaussian.make(d, e, s=s, scale=scale, seed=seed)
    posterior = case.posterior(num_extra, reverse=true_reverse(case))
    p = posterior.rsample((20,))
    torch.testing.assert_close(posterior.log_prob(p), case.q.log_prob(p), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_standard_normal_tau_is_plain_inference(chunk, foreign):
    case, found = LinearGaussian.make(), []
    for aimed in (False, True):
        noise = Bank(6)
        reverse = GaussianReverse(network(case), 3, noise) if aimed else None
        posterior = case.posterior(5, noise, reverse=reverse, chunk=chunk)
        p = posterior.rsample((4,))
        found.append((p, posterior.mixture(p, with_origin=not foreign).log_density))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(st.floats(0, 0.7), SEEDS, st.integers(0, 10))
def test_a_wrong_tau_still_bounds_from_both_sides(spread, seed, num_extra):
    case = LinearGaussian.make()
    posterior = case.posterior(num_extra, reverse=GaussianReverse(network(case, spread, seed), 3))
    torch.manual_seed(0)
    value, error = case.estimate(posterior, 2_000)
    assert value <= case.elbo + 5 * error
    if num_extra:
        value, error = case.estimate(posterior, 2_000, upper_bound)
        assert value >= case.elbo - 5 * error


def test_more_draws_of_a_wrong_tau_tighten_both_bounds():
    case = LinearGaussian.make()
    reverse = GaussianReverse(network(case, 0.3, 1), 3)
    for bound, sign in ((lower_bound, 1), (upper_bound, -1)):
        few, many = (case.estimate(case.posterior(k, reverse=reverse), 5_000, bound) for k in (1, 50))
        assert sign * (many[0] - few[0]) > 5 * math.hypot(few[1], many[1])


@pytest.mark.parametrize("num_extra", [0, 3])
@pytest.mark.parametrize("chunk", [None, 1])
def test_gradients_reach_tau_mixing_and_scale(num_extra, chunk):
    case = LinearGaussian.make()
    case.A.requires_grad_()
    layer, scale = network(case, 0.1), torch.tensor(case.s, dtype=torch.float64, requires_grad=True)
    posterior = SemiImplicitNormal(case.mixing(), scale, num_extra, reverse=GaussianReverse(layer, 3), chunk=chunk)
    lower_bound(posterior, case.log_joint, 20).mean().backward()
    for leaf in (case.A, scale, layer.weight, layer.bias):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().min() > 0


def test_chunks_change_neither_bound_nor_gradient():
    case, found = LinearGaussian.make(), []
    for chunk in (None, 1, 3):
        layer, noise = network(case, 0.2), Bank(8)
        reverse = GaussianReverse(layer, 3, noise)
        bound = lower_bound(case.posterior(7, noise, reverse=reverse, chunk=chunk), case.log_joint, 4)
        found.append((bound.detach(), *torch.autograd.grad(bound.sum(), [layer.weight, layer.bias])))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


def test_training_tau_alone_closes_the_gap():
    case = LinearGaussian.make()
    layer = network(case)
    posterior = case.posterior(0, reverse=GaussianReverse(layer, 3))
    before, error = case.estimate(posterior, 10_000)
    assert abs(case.elbo - before - case.information) < 5 * error  # tau = N(0, I): the gap is I, 2.42 nats
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for step in range(400):
        if step == 300:
            optimiser.param_groups[0]["lr"] = 0.01
        optimiser.zero_grad()
        (-lower_bound(posterior, case.log_joint, 200).mean()).backward()
        optimiser.step()
    after, error = case.estimate(posterior, 10_000)
    assert after <= case.elbo + 5 * error
    assert case.elbo - after < (case.elbo - before) / 10


def test_it_is_exact_for_every_client_and_image_of_a_plate():
    case = LinearGaussian.make()
    shift = torch.tensor([0.0, 5.0], dtype=torch.float64).view(2, 1, 1)  # a client's own location
    base = gaussian_reverse_of_linear(case.m, case.A, case.s)
    noise = StandardLike(case.A)
    mixing = Pushforward(lambda eps: case.m + shift + eps @ case.A.T, 3, (2, 1), noise)
    posterior = SemiImplicitNormal(
        mixing,
        torch.tensor(case.s).double(),
        2,
        reverse=GaussianReverse(lambda p: base(p - shift), 3),
        noise=noise,
    )

    def guide():
        with pyro.plate("draws", 5, dim=-3), pyro.plate("clients", 2, dim=-2), pyro.plate("images", 4, dim=-1):
            pyro.sample("p", posterior)

    site = poutine.trace(guide).get_trace().nodes["p"]
    p = site["value"]
    assert p.shape == (5, 2, 4, 3)
    assert p.unique().numel() == p.numel()
    torch.testing.assert_close(site["fn"].log_prob(p), case.q.log_prob(p - shift))


def test_a_clients_tau_learns_from_its_own_draws():
    layers = torch.randn(2, 3, 5).mul(0.1).requires_grad_()  # a linear tau for each of two clients
    mixing = Pushforward(lambda eps: torch.cat([eps, eps.sum(-1, keepdim=True)], -1), 2, (2, 4))
    posterior = SemiImplicitNormal(mixing, torch.ones(()), 3, reverse=GaussianReverse(lambda p: p @ layers, 2))
    p = posterior.rsample((6,))
    (gradient,) = torch.autograd.grad(posterior.log_prob(p)[:, 0].sum(), layers)
    assert gradient[0].abs().min() > 0
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("m", [0, -2, 1.5])
def test_noise_has_a_length(m):
    with pytest.raises(ValueError, match=f"noise_dim .*{m}"):
        GaussianReverse(lambda p: p, m)


def test_a_network_with_another_number_of_outputs_is_refused():
    with pytest.raises(ValueError, match="4 outputs for noise_dim=2"):
        GaussianReverse(lambda p: torch.zeros(4), 2)(torch.zeros(3))


def test_given_value_keeps_the_dtype():
    tau = NoisePosterior(torch.zeros(2), torch.eye(2), torch.zeros(()))
    assert tau.log_ratio(torch.ones(2)).dtype == torch.float32


@pytest.mark.parametrize("extreme", [-120.0, -30.0, 30.0, 120.0, 1e30])
def test_a_network_gone_astray_gives_numbers(extreme):
    raw = torch.full((GaussianReverse.outputs(2),), extreme, requires_grad=True)
    tau = GaussianReverse(lambda value: torch.cat([torch.zeros(2), raw[2:4], torch.zeros(1)]), 2)(torch.zeros(1))
    eps, log_ratio = tau.push(torch.ones(1, 2))
    assert all(one.isfinite().all() for one in (eps, log_ratio, tau.log_ratio(0.1 * torch.ones(2))))
    (gradient,) = torch.autograd.grad(log_ratio.sum(), raw)
    assert gradient.isfinite().all()

r"""The bound against the linear-Gaussian case, where everything is known.

psi = m + A eps,  p | psi ~ N(psi, s^2 I_d)   hence  q(p) = N(m, C),  C = A A^T + s^2 I
prior p ~ N(0, t^2 I_d),  y | p ~ N(H p, r^2 I_n)

ELBO = log N(y; 0, t^2 H H^T + r^2 I) - KL(q || p(p | y)),  L_0 = ELBO - I,  I = 1/2 log det(I + A A^T / s^2)
max(0, I - log(K+1)) <= ELBO - L_K <= log(1 + chi^2 / (K+1)),  chi^2 = e^{2I} - 1
"""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from jaxtyping import TypeCheckError
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from fedbayes.inference.semi_implicit import (
    SemiImplicitNormal,
    effective_components,
    log_mixture,
    mixing_ratio,
    mixing_variances,
)


@dataclass
class LinearGaussian:
    """A case of the module docstring, d = 3, n = 5."""

    m: Tensor
    A: Tensor
    H: Tensor
    y: Tensor
    s: float = 0.25
    t: float = 1.5
    r: float = 0.7

    def mixing(self, shape: torch.Size) -> Tensor:
        return self.m + torch.randn(*shape, 3, dtype=torch.float64) @ self.A.T

    def posterior(self, num_extra: int) -> SemiImplicitNormal:
        return SemiImplicitNormal(self.mixing, torch.tensor([self.s], dtype=torch.float64), num_extra)

    @property
    def q(self) -> MultivariateNormal:
        return MultivariateNormal(self.m, self.A @ self.A.T + self.s**2 * torch.eye(3, dtype=torch.float64))

    @property
    def exact(self) -> MultivariateNormal:
        """p(p | y)."""
        precision = self.H.T @ self.H / self.r**2 + torch.eye(3, dtype=torch.float64) / self.t**2
        mean = torch.linalg.solve(precision, self.H.T @ self.y) / self.r**2
        return MultivariateNormal(mean, precision_matrix=precision)

    @property
    def elbo(self) -> float:
        eye = torch.eye(5, dtype=torch.float64)
        evidence = MultivariateNormal(0 * self.y, self.t**2 * self.H @ self.H.T + self.r**2 * eye).log_prob(self.y)
        return float(evidence - kl_divergence(self.q, self.exact))

    @property
    def information(self) -> float:
        eye = torch.eye(3, dtype=torch.float64)
        return float(0.5 * torch.logdet(eye + self.A @ self.A.T / self.s**2))

    def log_joint(self, p: Tensor) -> Tensor:
        likelihood = Normal(p @ self.H.T, self.r).log_prob(self.y).sum(-1)
        return likelihood + Normal(0.0, self.t).log_prob(p).sum(-1)

    def bound(self, num_extra: int, draws: int) -> tuple[float, float]:
        """L_K and its standard error; log p(y, p) - log q(p) - ELBO has mean zero and takes out most of the noise."""
        posterior = self.posterior(num_extra)
        p = posterior.rsample((draws,))
        terms = self.q.log_prob(p) + self.elbo - posterior.log_prob(p)
        return float(terms.mean()), float(terms.std() / math.sqrt(draws))


@pytest.fixture
def case() -> LinearGaussian:
    rng = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    made = LinearGaussian(normal(3), 0.4 * normal(3, 3), normal(5, 3), normal(5))
    made.m = made.exact.mean + 0.1 * normal(3)
    return made


def unit(batch: tuple[int, ...] = (), event: int = 2, spread: float = 1.0):
    """A mixing of independent normals."""
    return lambda shape: spread * torch.randn(*shape, *batch, event)


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        mixing_variances(torch.randn(4, 3, 2), torch.ones(5, 2))


def test_log_mixture_by_hand():
    components = torch.tensor([[0.5, 1e-30], [0.1, 0.3]]).log()
    torch.testing.assert_close(log_mixture(components).exp(), torch.tensor([0.3, 0.15]))


def test_effective_components_lie_between_one_and_all():
    assert effective_components(torch.zeros(11, 3)).tolist() == pytest.approx([11.0] * 3)
    assert effective_components(torch.tensor([0.0, -200.0, -300.0])).item() == pytest.approx(1.0)
    weights = torch.tensor([0.5, 0.25, 0.25])
    assert effective_components(weights.log() + 7).item() == pytest.approx(1 / 0.375)
    some = effective_components(5 * torch.randn(11, 1000))
    assert 1 <= some.min() <= some.max() <= 11


def test_mixing_ratio_by_hand():
    # Image 0: entries vary by 2 and 0, image 1 not at all; sigma^2 = 0.25 in each of two entries.
    psi = torch.tensor([[[1.0, 5.0], [3.0, 4.0]], [[-1.0, 5.0], [3.0, 4.0]]])
    mixing, conditional = mixing_variances(psi, torch.full((1, 1), 0.5))
    assert mixing.tolist() == pytest.approx([2.0, 0.0])
    assert conditional.tolist() == pytest.approx([0.5, 0.5])
    assert mixing_ratio(1.0, 0.5) == pytest.approx(2 / 3), "means first; the mean of the images' ratios is 0.4"
    _, each = mixing_variances(psi, torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    assert each.tolist() == pytest.approx([5.0, 2.0])


def test_its_own_draw_is_told_from_others_by_identity():
    posterior = SemiImplicitNormal(unit((4,)), torch.ones(1), 0)
    value = posterior.rsample()
    assert value.shape == (4, 2)
    expected = Normal(posterior.psi, 1.0).log_prob(value).sum(-1)
    torch.testing.assert_close(posterior.log_prob(value), expected)
    with pytest.raises(ValueError, match="needs num_extra of at least 1, got 0"):
        posterior.log_prob(value.clone())
    posterior.rsample()
    with pytest.raises(ValueError, match="needs num_extra of at least 1"):
        posterior.log_prob(value)  # no longer the last draw


def test_asking_twice_gives_one_number_and_a_new_draw_another():
    posterior = SemiImplicitNormal(unit((4,)), torch.ones(1), 3)
    value = posterior.rsample((5,))
    first = posterior.log_prob(value)
    assert first.shape == (5, 4)
    assert torch.equal(posterior.log_prob(value), first)
    assert posterior.log_components(value) is posterior.log_components(value)
    foreign = value.clone()
    assert posterior.log_components(foreign).shape == (3, 5, 4)
    assert torch.equal(posterior.log_prob(foreign), posterior.log_prob(foreign))
    assert posterior.log_components(posterior.rsample((5,))).shape == (4, 5, 4)


def test_the_first_component_is_the_one_that_generated_the_draw():
    seen = []

    def mixing(shape):
        seen.append(torch.randn(*shape, 4, 2))
        return seen[-1]

    posterior = SemiImplicitNormal(mixing, torch.full((1,), 0.3), 2)
    value = posterior.rsample()
    components = posterior.log_components(value)
    for psi, component in zip([seen[0], *seen[1]], components, strict=True):
        torch.testing.assert_close(component, Normal(psi, 0.3).log_prob(value).sum(-1))


def test_two_draws_are_independent():
    # Cov(p, p') would be Var(psi) = 1 if they shared their psi.
    posterior = SemiImplicitNormal(unit((20_000,)), torch.full((1,), 0.1), 1)
    first, second = posterior.rsample(), posterior.rsample()
    assert abs((first * second).mean().item()) < 0.03
    assert first.var().item() == pytest.approx(1.01, rel=0.03)


def test_a_foreign_value_with_fewer_dimensions_than_the_batch_broadcasts():
    posterior = SemiImplicitNormal(unit((2, 5)), torch.ones(1), 3)
    assert posterior.log_prob(torch.zeros(5, 2)).shape == (2, 5)
    assert posterior.log_prob(torch.zeros(2)).shape == (2, 5)


def test_draws_have_the_precision_of_the_scale():
    posterior = SemiImplicitNormal(
        lambda shape: torch.zeros(*shape, 1000, dtype=torch.float64), torch.ones(1).double(), 0
    )
    value = posterior.rsample()
    assert value.dtype == torch.float64
    assert not torch.equal(value, value.float().double())


def test_num_extra_below_zero_is_refused():
    with pytest.raises(ValueError, match="num_extra must be at least 0, got -1"):
        SemiImplicitNormal(unit(), torch.ones(1), -1)


@pytest.mark.parametrize(
    ("old", "new"),
    [((), (5,)), ((3,), (4, 3)), ((1,), (6,)), ((1, 3), (5, 3)), ((3, 1), (3, 5)), ((1, 3, 1), (2, 4, 3, 5))],
)
def test_expanding_draws_afresh_for_every_new_element(old, new):
    places = torch.arange(math.prod(old), dtype=torch.float32).view(*old, 1)  # tells the old elements apart
    posterior = SemiImplicitNormal(lambda shape: 100 * places + torch.randn(*shape, *old, 2), torch.ones(1), 2)
    grown = posterior.expand(torch.Size(new))
    assert grown.batch_shape == new
    assert grown.psi.shape == (*new, 2)
    assert grown.psi.unique().numel() == 2 * math.prod(new)
    torch.testing.assert_close((grown.psi / 100).round(), places.expand(*new, 2))
    value = grown.rsample((7,))
    assert value.shape == (7, *new, 2)
    components = grown.log_components(value)
    assert components.shape == (3, 7, *new)
    assert components.unique().numel() == components.numel()
    assert posterior.expand(posterior.batch_shape) is posterior


def test_only_a_size_of_one_can_be_stretched():
    with pytest.raises(ValueError, match="only size 1 can grow"):
        SemiImplicitNormal(unit((2,)), torch.ones(1), 0).expand(torch.Size((3,)))


def test_a_scale_for_each_element_stays_with_it():
    scale = torch.tensor([[1e-4], [1.0]])
    grown = SemiImplicitNormal(unit((2,)), scale, 1).expand(torch.Size((500, 2)))
    off = (grown.rsample() - grown.psi).std((0, 2))
    torch.testing.assert_close(off, scale[:, 0], rtol=0.1, atol=0)


def test_in_pyro_plates_a_minibatch_counts_as_the_whole():
    def program(size, batch):
        def model():
            with pyro.plate("data", size, subsample=torch.arange(batch)):
                p = pyro.sample("p", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("y", dist.Normal(p.sum(-1), 1.0), obs=torch.ones(batch))

        def guide():
            with pyro.plate("data", size, subsample=torch.arange(batch)):
                pyro.sample("p", SemiImplicitNormal(unit(), torch.full((1,), 0.5), 3))

        return model, guide

    losses = []
    for size in (5, 20):
        torch.manual_seed(7)
        losses.append(Trace_ELBO().loss(*program(size, 5)))
    assert losses[1] == pytest.approx(4 * losses[0])
    trace = poutine.trace(program(5, 5)[1]).get_trace()
    assert trace.nodes["p"]["value"].shape == (5, 2)
    assert trace.nodes["p"]["value"].unique().numel() == 10


def test_l0_is_the_elbo_less_the_information_in_plain_pyro(case):
    def model():
        p = pyro.sample("p", dist.Normal(torch.zeros(3).double(), case.t).to_event(1))
        pyro.sample("y", dist.Normal(p @ case.H.T, case.r).to_event(1), obs=case.y)

    for num_extra, draws in ((0, 40_000), (10, 20_000)):
        elbo = Trace_ELBO(num_particles=draws, vectorize_particles=True, max_plate_nesting=0)
        value = -elbo.loss(model, lambda k=num_extra: pyro.sample("p", case.posterior(k)))
        expected, error = (case.elbo - case.information, 0.0) if num_extra == 0 else case.bound(10, 20_000)
        p = case.posterior(0).rsample((draws,))
        noise = (case.log_joint(p) - case.q.log_prob(p)).std().item() + 1  # no less than an integrand's spread
        assert abs(value - expected) < 4 * math.hypot(noise / math.sqrt(draws), error)


def test_the_bound_rises_to_the_elbo_with_k(case):
    exact = case.elbo - case.information
    found = {k: case.bound(k, draws) for k, draws in ((0, 40_000), (10, 20_000), (100, 4_000))}
    value, error = found[0]
    assert abs(value - exact) < 4 * error
    assert error < 0.01
    chi2 = math.expm1(2 * case.information)
    for k, (value, error) in found.items():
        gap = case.elbo - value
        assert max(0.0, case.information - math.log(k + 1)) - 4 * error < gap < math.log1p(chi2 / (k + 1)) + 4 * error
    for low, high in ((0, 10), (10, 100)):
        assert found[high][0] - found[low][0] > 4 * math.hypot(found[high][1], found[low][1])
    assert found[100][0] <= case.elbo + 4 * found[100][1]


def test_no_draw_is_credited_with_more_than_log_of_the_components(case):
    for k in (0, 1, 10):
        posterior = case.posterior(k)
        components = posterior.log_components(posterior.rsample((5000,)))
        credit = components[0] - log_mixture(components)
        assert credit.max() <= math.log(k + 1) + 1e-12
        effective = effective_components(components)
        assert 1 - 1e-12 <= effective.min() <= effective.max() <= k + 1 + 1e-12


def test_the_gradient_of_l0_pulls_the_mixing_to_a_point(case):
    # d L_0 / d A = -Lambda A, Lambda the exact posterior's precision: at K = 0 nothing rewards a mixing.
    case.A.requires_grad_()
    posterior = case.posterior(0)
    p = posterior.rsample((200_000,))
    (gradient,) = torch.autograd.grad((case.log_joint(p) - posterior.log_prob(p)).mean(), case.A)
    expected = -case.exact.precision_matrix @ case.A.detach()
    torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.1)


def test_gradients_reach_mixing_and_scale():
    shift, scale = torch.zeros(2, requires_grad=True), torch.ones(1, requires_grad=True)
    spread = torch.ones(2, requires_grad=True)
    posterior = SemiImplicitNormal(lambda shape: shift + spread * torch.randn(*shape, 4, 2), scale, 3)
    p = posterior.rsample()
    (Normal(1.0, 2.0).log_prob(p).sum() - posterior.log_prob(p).sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().min() > 0 for leaf in (shift, spread, scale))

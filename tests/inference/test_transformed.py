"""Constrained latents: a semi-implicit posterior behind a transform has the bound of the one before it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import Normal, kl_divergence
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

import fedbayes.inference
from fedbayes.inference import Pushforward, SemiImplicitNormal, lower_bound

WIDTH, SCALE = 1.5, 0.5
MARGINAL = Normal(0.0, (WIDTH**2 + SCALE**2) ** 0.5)


def posterior(num_extra, batch=()):
    return SemiImplicitNormal(Pushforward(lambda eps: WIDTH * eps, 1, batch), SCALE, num_extra)


@pytest.mark.parametrize(
    "transforms",
    [[ExpTransform()], [SigmoidTransform()], [AffineTransform(3.0, 0.1), ExpTransform()], [ExpTransform(cache_size=1)]],
)
def test_pyros_loss_is_an_upper_bound_of_the_divergence_and_tight_for_large_k(transforms):
    # KL is invariant under the transform: KL(h | N(0, 1)) in closed form.
    exact = kl_divergence(MARGINAL, Normal(0.0, 1.0)).item()

    def model():
        with pyro.plate("values", 2000):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0).to_event(1), transforms))

    def guide(num_extra):
        with pyro.plate("values", 2000):
            pyro.sample("z", dist.TransformedDistribution(posterior(num_extra), transforms))

    losses = {}
    for num_extra in (0, 1, 300):
        torch.manual_seed(0)
        losses[num_extra] = Trace_ELBO().loss(model, lambda k=num_extra: guide(k)) / 2000
    conditional = kl_divergence(Normal(0.0, SCALE), Normal(0.0, 1.0)).item() + WIDTH**2 / 2  # E_psi KL, which K = 0 has
    assert losses[0] == pytest.approx(conditional, abs=0.1)
    assert losses[0] > losses[1] > losses[300]
    assert losses[300] == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("num_extra", [0, 3])
def test_each_of_several_draws_has_its_origin_in_the_mixture(num_extra):
    base = posterior(num_extra, (50,))
    values = [dist.TransformedDistribution(base, [ExpTransform()]).rsample() for _ in range(3)]
    for value in values:
        assert base.mixture(value.log()).components == num_extra + 1
        assert base.mixture(value.log()).log_origin is not None
    if num_extra:
        assert base.mixture(values[0].log() + 0.1).components == num_extra


def test_the_loss_of_a_positive_latent_does_not_run_away():
    torch.manual_seed(0)
    parameters = [torch.randn(2, 3).requires_grad_(), torch.zeros((), requires_grad=True)]
    for _ in range(100):
        mixing = Pushforward(lambda eps: eps @ parameters[0], 2)
        h = dist.TransformedDistribution(SemiImplicitNormal(mixing, parameters[1].exp(), 5), [ExpTransform()])
        target = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [ExpTransform()])
        loss = -lower_bound(h, target.log_prob, 64).mean()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 0.1 * gradient
    assert -0.1 < loss.item() < 0.3, "a divergence, which is zero at the best"


def test_moments_without_a_formula_say_how_to_estimate_them():
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=rf"rsample.*{'mean' if moment == 'mean' else 'var'}\(0\)"):
            getattr(posterior(1), moment)
    with pytest.raises(AttributeError, match="SemiImplicitNormal"):
        _ = fedbayes.inference.SemiImplicit

"""The objective of each client against Pyro's own, and clients against their neighbours."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from fedbayes.inference.elbo import elbo
from fedbayes.inference.semi_implicit import SemiImplicitNormal

CLIENTS, IMAGES, CODE, CLASSES, DRAWS = 3, 4, 2, 5, 6
EVEN = torch.full((CLIENTS, IMAGES), 1 / IMAGES)


class Programs:
    """A model and a guide whose noise is the same at every call, so that two evaluations can be compared."""

    def __init__(self, num_extra=3, spread=0.7, clients=slice(None)):
        rng = torch.Generator().manual_seed(0)
        self.location = torch.randn(CLIENTS, IMAGES, CODE, generator=rng)[clients].requires_grad_()
        self.readout = torch.randn(CLIENTS, CODE, CLASSES, generator=rng)[clients].requires_grad_()
        self.scale = torch.full((CLIENTS, 1, 1), 0.5)[clients].requires_grad_()
        self.labels = (torch.arange(CLIENTS * IMAGES).view(CLIENTS, IMAGES) % CLASSES)[clients]
        self.num_extra, self.spread, self.clients = num_extra, spread, clients

    def draws(self):
        """Normal draws for the chosen clients, equal whichever others are there."""
        rng = torch.Generator().manual_seed(1)

        def normal(shape):
            full = torch.randn(*shape[:-3], CLIENTS, IMAGES, CODE, generator=rng)
            return full[..., self.clients, :, :]

        return normal

    def plates(self):
        count = len(self.location)
        return pyro.plate("clients", count, dim=-2), pyro.plate("images", IMAGES, dim=-1)

    def model(self, weights=None, beta=1.0):
        clients, images = self.plates()
        one = torch.ones(())
        with clients, images, poutine.scale(scale=one if weights is None else weights):
            with poutine.scale(scale=beta):
                code = pyro.sample("code", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            pyro.sample("label", dist.Categorical(logits=code @ self.readout), obs=self.labels)

    def guide(self, weights=None, beta=1.0):
        noise = self.draws()
        shape = self.location.shape

        def mixing(lead):
            return self.location + self.spread * noise((*lead, *shape))

        clients, images = self.plates()
        one = torch.ones(())
        with clients, images, poutine.scale(scale=one if weights is None else weights), poutine.scale(scale=beta):
            pyro.sample("code", SemiImplicitNormal(mixing, self.scale, self.num_extra, noise=noise))


def evaluate(programs, weights=EVEN, beta=1.0, draws=DRAWS):
    return elbo(programs.model, programs.guide, samples=draws, weights=weights, beta=beta)


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("num_extra", [0, 3])
def test_clients_add_up_to_pyros_loss(num_extra, beta):
    weights = torch.rand(CLIENTS, IMAGES) + 0.1
    programs = Programs(num_extra)
    ours = evaluate(programs, weights, beta)
    plain = Trace_ELBO(num_particles=DRAWS, vectorize_particles=True, max_plate_nesting=2)
    pyros = plain.differentiable_loss(programs.model, programs.guide, weights, beta)
    assert ours.loss.shape == (CLIENTS,)
    torch.testing.assert_close(ours.loss.sum(), pyros)
    leaves = [programs.location, programs.readout, programs.scale]
    gradients = [torch.autograd.grad(loss, leaves) for loss in (ours.loss.sum(), pyros)]
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_a_client_alone_has_the_same_objective():
    together = evaluate(Programs())
    for c in range(CLIENTS):
        alone = evaluate(Programs(clients=slice(c, c + 1)), EVEN[:1])
        for name, value in alone.metrics().items():
            torch.testing.assert_close(getattr(together, name)[c : c + 1], value, msg=name)


def test_a_clients_nan_stays_its_own():
    clean, spoilt = Programs(), Programs()
    with torch.no_grad():
        spoilt.readout[1] = torch.nan
        spoilt.location[1] = torch.nan
    with pyro.validation_enabled(False):
        losses = [evaluate(programs) for programs in (clean, spoilt)]
    gradients = [
        torch.autograd.grad(objective.loss.sum(), [programs.location, programs.readout, programs.scale])
        for objective, programs in zip(losses, (clean, spoilt), strict=True)
    ]
    assert losses[1].loss[1].isnan()
    torch.testing.assert_close(losses[0].loss[[0, 2]], losses[1].loss[[0, 2]])
    for good, bad in zip(*gradients, strict=True):
        torch.testing.assert_close(good[[0, 2]], bad[[0, 2]])


def test_padding_counts_for_nothing_even_when_it_is_nan():
    weights = EVEN.clone()
    weights[0] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    weights[2] = 0.0  # no images at all
    padded = weights == 0
    results = []
    for fill in (0.0, torch.nan, torch.inf):
        programs = Programs()
        with torch.no_grad():
            programs.location[padded] = fill
        with pyro.validation_enabled(False):
            objective = evaluate(programs, weights)
        (gradient,) = torch.autograd.grad(objective.loss.sum(), programs.location)
        results.append((objective.metrics(), gradient[~padded]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    assert all(value[2] == 0 for value in results[0][0].values())


def test_beta_weighs_the_kl_and_zero_leaves_it_out():
    half, none = evaluate(Programs(), beta=0.5), evaluate(Programs(), beta=0.0)
    torch.testing.assert_close(half.loss, -half.log_likelihood + 0.5 * half.kl)
    torch.testing.assert_close(none.loss, -none.log_likelihood)
    torch.testing.assert_close(none.kl, half.kl)
    programs = Programs()
    with torch.no_grad():
        programs.scale.fill_(0.0)  # a density without width: an infinite KL must not reach the loss at beta = 0
    with pyro.validation_enabled(False):
        assert evaluate(programs, beta=0.0).loss.isfinite().all()


def test_the_kl_of_a_gaussian_is_met_on_average():
    programs = Programs(num_extra=0, spread=0.0)
    mean, sd, draws = programs.location.detach(), 0.5, 40_000
    exact = (0.5 * (mean.square() + sd**2 - 1) - math.log(sd)).sum(-1)  # (C, B), KL(N(m, s^2) || N(0, 1))
    # log q - log p = (m + s e)^2 / 2 - e^2 / 2 - log s, whose variance per entry is (s^2 - 1)^2 / 2 + (m s)^2
    variance = ((sd**2 - 1) ** 2 / 2 + (mean * sd).square()).sum(-1)
    error = (variance.mean(1) / IMAGES / draws).sqrt()
    found = evaluate(programs, draws=draws).kl.detach()
    assert ((found - exact.mean(1)).abs() < 4 * error).all()


def test_diagnostics_of_the_mixture():
    wide, collapsed = evaluate(Programs(spread=50.0)), evaluate(Programs(spread=0.0))
    torch.testing.assert_close(collapsed.effective_components, torch.full((CLIENTS,), 4.0))
    torch.testing.assert_close(collapsed.bound_saturation, torch.zeros(CLIENTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(wide.effective_components, torch.ones(CLIENTS), rtol=0, atol=0.2)
    torch.testing.assert_close(wide.bound_saturation, torch.ones(CLIENTS), rtol=0, atol=0.2)
    lone = evaluate(Programs(num_extra=0))
    assert lone.bound_saturation is None
    torch.testing.assert_close(lone.effective_components, torch.ones(CLIENTS))
    assert not any(value.requires_grad for value in wide.metrics().values())


def test_programs_without_a_posterior_have_a_likelihood_alone():
    logits = torch.randn(CLIENTS, IMAGES, CLASSES, requires_grad=True)
    labels = torch.ones(CLIENTS, IMAGES, dtype=torch.long)

    def model():
        with pyro.plate("clients", CLIENTS, dim=-2), pyro.plate("images", IMAGES, dim=-1):
            pyro.sample("label", dist.Categorical(logits=logits), obs=labels)

    objective = elbo(model, lambda: None, samples=1, weights=EVEN, beta=1.0)
    expected = logits.log_softmax(-1)[..., 1].mean(1)
    torch.testing.assert_close(objective.loss, -expected)
    assert objective.metrics().keys() == {"loss", "log_likelihood"}

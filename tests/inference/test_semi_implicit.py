"""The interface: what a draw remembers, the shapes it serves, and how it stands in Pyro."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_gaussian import Bank
from posteriors import no_aim, pushed, unit
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Independent, Normal

from fedbayes.inference.mixing import Pushforward, StandardLike
from fedbayes.inference.semi_implicit import SemiImplicitNormal

SIZES = st.lists(st.integers(1, 3), max_size=2)


@st.composite
def settings_of(draw):
    """A posterior that writes down every psi it is given, and the sample shape to ask it for."""
    batch, event, lead = draw(SIZES), draw(SIZES), draw(SIZES)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    path, share, seen = draw(st.booleans()), draw(st.booleans()), []
    like = torch.zeros((), dtype=dtype)
    torch.manual_seed(draw(st.integers(0, 2**32)))

    def write_down(psi):
        seen.append(psi.detach())
        return psi

    if draw(st.booleans()):
        readout = torch.randn(3, *event, dtype=dtype)
        mixing = Pushforward(
            lambda eps: write_down(torch.tensordot(eps, readout, 1)), 3, tuple(batch), StandardLike(like)
        )
        chunk = draw(st.sampled_from([None, 1, 2, 7]))
    else:
        mixing = lambda shape: write_down(torch.randn((*shape, *batch, *event), dtype=dtype))  # noqa: E731
        chunk = draw(st.sampled_from([None, 2])) if path else None
    ones = (1,) * len(event)
    shape = draw(st.sampled_from([(), tuple(event), ones, (*batch, *ones), (*batch, *event)]))
    scale = draw(st.floats(0.01, 10)) * torch.rand(shape, dtype=dtype).add(0.5)
    posterior = SemiImplicitNormal(
        mixing,
        float(scale) if shape == () and draw(st.booleans()) else scale,
        draw(st.integers(0, 5)),
        len(event),
        chunk=chunk,
        path_gradient=path,
        share_extra=share,
        validate_args=True,
    )
    return posterior, tuple(lead), dtype, seen


@given(settings_of(), st.booleans())
def test_it_is_the_mixture_of_the_psi_that_it_drew(case, foreign):
    posterior, lead, dtype, seen = case
    batch, event = posterior.batch_shape, len(posterior.event_shape)
    p = posterior.rsample(lead)
    assert p.shape == (*lead, *batch, *posterior.event_shape)
    assert p.dtype == dtype
    own, before = seen[-1], len(seen)
    if posterior.num_extra == 0 and foreign:
        with pytest.raises(ValueError, match="num_extra of at least 1"):
            posterior.log_prob(p + 1)
        return
    value = p + 1 if foreign else p
    mixture = posterior.mixture(value)
    places = (1,) * len(lead) if posterior.share_extra else lead
    extra = [own.new_empty(0, *places, *own.shape[len(lead) :]), *seen[before:]]
    psi = list(torch.cat(extra)) if foreign else [own, *torch.cat(extra)]
    assert mixture.components == len(psi) == posterior.num_extra + (not foreign)
    terms = [Independent(Normal(one, posterior.scale.expand_as(one)), event).log_prob(value) for one in psi]
    terms = torch.stack([term.expand((*lead, *batch)) for term in terms])
    expected = terms.logsumexp(0) - math.log(len(psi))
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(posterior.log_prob(value), expected, **tolerance)
    torch.testing.assert_close(mixture.effective_components, 1 / terms.softmax(0).square().sum(0), **tolerance)
    assert (mixture.log_origin is None) == foreign
    assert torch.equal(posterior.log_prob(value), posterior.log_prob(value))
    assert posterior.mixture(value) is mixture


def test_a_draw_is_told_from_other_values_also_by_its_numbers():
    posterior = SemiImplicitNormal(unit((4,)), torch.ones(1), 0)
    value = posterior.rsample()
    expected = Normal(posterior.psi, 1.0).log_prob(value).sum(-1)
    torch.testing.assert_close(posterior.log_prob(value), expected)
    torch.testing.assert_close(posterior.log_prob(value.detach().exp().log()), expected)
    with pytest.raises(ValueError, match="num_extra of at least 1"):
        posterior.log_prob(value + 0.01)
    psi, first = posterior.psi, posterior.log_prob(value)
    second = posterior.rsample()
    assert torch.equal(posterior.log_prob(value), first), "an earlier draw is still its own"
    assert not torch.equal(posterior.log_prob(second), Normal(psi, 1.0).log_prob(second).sum(-1))


def test_a_new_draw_has_a_new_mixture():
    posterior = SemiImplicitNormal(unit((4,)), torch.ones(1), 3)
    value = posterior.rsample((5,))
    first = posterior.mixture(value)
    assert (first.components, posterior.mixture(value, with_origin=False).components) == (4, 3)
    assert posterior.mixture(posterior.rsample((5,))) is not first


@pytest.mark.parametrize("mixing", [unit((20_000,)), pushed((20_000,))])
def test_two_draws_are_independent(mixing):
    # Cov(p, p') would be Var(psi) = 1 if they shared their psi.
    posterior = SemiImplicitNormal(mixing, torch.full((1,), 0.1), 1)
    first, second = posterior.rsample(), posterior.rsample()
    assert abs((first * second).mean().item()) < 0.03
    assert first.var().item() == pytest.approx(1.01, rel=0.03)


@pytest.mark.parametrize("options", [{}, {"path_gradient": True}, {"chunk": 2}, {"reverse": no_aim()}])
def test_a_foreign_value_with_fewer_dimensions_than_the_batch_broadcasts(options):
    posterior = SemiImplicitNormal(pushed((2, 5)), torch.ones(1), 3, **options)
    assert posterior.log_prob(torch.zeros(5, 2)).shape == (2, 5)
    assert posterior.log_prob(torch.zeros(2)).shape == (2, 5)


def test_sharing_draws_the_extra_psi_once_for_the_sample_shape():
    asked = []

    def mixing(shape):
        asked.append(tuple(shape))
        return torch.randn(*shape, 4, 2)

    posterior = SemiImplicitNormal(mixing, torch.ones(1), 3, share_extra=True)
    posterior.log_prob(posterior.rsample((50, 6)))
    assert asked == [(), (50, 6), (3, 1, 1)]


def test_noise_makes_every_draw():
    found = []
    for _ in range(2):
        bank = Bank(3)
        posterior = SemiImplicitNormal(Pushforward(lambda eps: eps, 2, (4,), bank), torch.ones(1), 3, noise=bank)
        p = posterior.rsample((5,))
        found.append((p, posterior.log_prob(p)))
        assert bank.served == 2 * 4 * (1 + 5 + 5 + 3 * 5)  # psi_0 for the shapes, psi_0, p, psi_1 .. psi_3
        torch.rand(1)  # the global generator has no part in it
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("mixing", [unit, pushed])
@pytest.mark.parametrize(("old", "new"), [((), (5,)), ((3,), (4, 3)), ((3, 1), (3, 5)), ((1, 3, 1), (2, 4, 3, 5))])
def test_expanding_draws_afresh_for_every_new_element(mixing, old, new):
    scale = torch.rand(*old, 1) + 0.5
    posterior = SemiImplicitNormal(mixing(old), scale, 2, share_extra=True, path_gradient=True)
    grown = posterior.expand(torch.Size(new))
    assert grown.batch_shape == new
    assert grown.psi.unique().numel() == 2 * math.prod(new)
    value = grown.rsample((7,))
    assert value.shape == (7, *new, 2)
    assert value.unique().numel() == value.numel()
    assert grown.log_prob(value).shape == (7, *new)
    assert posterior.expand(posterior.batch_shape) is posterior
    assert (grown.num_extra, grown.share_extra, grown.path_gradient) == (2, True, True)


def test_a_scale_for_each_element_stays_with_it():
    scale = torch.tensor([[1e-4], [1.0]])
    grown = SemiImplicitNormal(unit((2,)), scale, 1).expand(torch.Size((500, 2)))
    off = (grown.rsample() - grown.psi).std((0, 2))
    torch.testing.assert_close(off, scale[:, 0], rtol=0.1, atol=0)


def program(size, batch, mixing=None, **options):
    def model():
        with pyro.plate("data", size, subsample=torch.arange(batch)):
            p = pyro.sample("p", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(p.sum(-1), 1.0), obs=torch.ones(batch))

    def guide():
        with pyro.plate("data", size, subsample=torch.arange(batch)):
            pyro.sample("p", SemiImplicitNormal(mixing or unit(), torch.full((1,), 0.5), 3, **options))

    return model, guide


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("options", [{}, {"path_gradient": True}, {"mixing": pushed(), "reverse": no_aim()}])
def test_pyros_objectives_are_the_bound(objective, options):
    for size in (5, 20):  # a minibatch of 5 counts as the whole
        model, guide = program(size, 5, **options)
        torch.manual_seed(7)
        loss = objective(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        value = loss.differentiable_loss(model, guide).item()
        torch.manual_seed(7)
        with pyro.plate("num_particles_vectorized", 4, dim=-2):
            site = poutine.trace(guide).get_trace().nodes["p"]
        p, h = site["value"], site["fn"]
        joint = Normal(0.0, 1.0).log_prob(p).sum(-1) + Normal(p.sum(-1), 1.0).log_prob(torch.ones(5))
        assert p.shape == (4, 5, 2)
        assert p.unique().numel() == 40
        assert value == pytest.approx(-(size / 5) * (joint - h.log_prob(p)).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"chunk": 1}, {"path_gradient": True}])
def test_a_clients_gradient_and_nan_stay_its_own(options):
    found = []
    for spoil in (False, True):
        noise = Bank(1, dtype=torch.float32)
        shift = torch.zeros(3, 1, 2).index_fill_(0, torch.tensor(1), math.nan if spoil else 0.0).requires_grad_()
        mixing = Pushforward(lambda eps, shift=shift: eps + shift, 2, (3, 4), noise)
        scale = torch.ones(3, 1, 1, requires_grad=True)
        posterior = SemiImplicitNormal(mixing, scale, 3, noise=noise, validate_args=False, **options)
        p = posterior.rsample((5,))
        terms = p.square().sum(-1) - posterior.log_prob(p)
        found.append([terms, *torch.autograd.grad(terms.sum(), (shift, scale), retain_graph=True)])
        own = torch.autograd.grad(terms[:, 0].sum(), (shift, scale))
        assert all((gradient[2] == 0).all() and gradient[0].abs().min() > 0 for gradient in own)
    assert torch.equal(found[0][0][:, [0, 2]], found[1][0][:, [0, 2]])
    assert found[1][0][:, 1].isnan().all()
    for clean, spoilt in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(clean[[0, 2]], spoilt[[0, 2]])


def test_a_batch_of_nothing_is_served():
    posterior = SemiImplicitNormal(unit((0,)), 0.5, 2, validate_args=False)  # torch's check fails on nothing
    assert posterior.log_prob(posterior.rsample((3,))).shape == (3, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"path_gradient": True}, {"reverse": no_aim()}])
def test_on_a_gpu_draws_stay_there_and_agree(options):
    found = []
    for device in ("cpu", "cuda"):
        bank = Bank(2)
        noise = lambda shape, bank=bank, device=device: bank(shape).to(device)  # noqa: E731
        scale = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)
        if "reverse" in options:
            options["reverse"].noise = noise
        posterior = SemiImplicitNormal(
            Pushforward(lambda eps: 2 * eps, 2, (3,), noise), scale, 5, noise=noise, **options
        )
        p = posterior.rsample((4,))
        terms = p.sum(-1) - posterior.log_prob(p)
        assert terms.device.type == device
        found.append((terms.cpu(), torch.autograd.grad(terms.sum(), scale)[0].cpu()))
    torch.testing.assert_close(found[1], found[0])
    posterior = SemiImplicitNormal(lambda shape: torch.randn(*shape, 3, device="cuda"), 0.5, 2)
    assert posterior.rsample().is_cuda


def test_a_number_asked_without_gradients_is_found_anew_with_them():
    spread = torch.ones(2, requires_grad=True)
    posterior = SemiImplicitNormal(lambda shape: spread * torch.randn(*shape, 2), 0.5, 3)
    value = posterior.rsample()
    with torch.no_grad():
        first = posterior.log_prob(value)
        assert torch.equal(posterior.log_prob(value), first)
    second = posterior.log_prob(value)
    assert second.requires_grad
    assert posterior.log_prob(value).equal(second)
    with torch.no_grad():
        assert posterior.log_prob(value).equal(second)


def test_one_object_at_several_sites_is_a_lower_bound_at_each():
    net = torch.nn.Linear(2, 2)

    def model():
        for i in range(4):
            pyro.sample(f"p{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide(together):
        made = [SemiImplicitNormal(Pushforward(net, 2), 0.3, 3) for _ in range(1 if together else 4)]
        for i in range(4):
            pyro.sample(f"p{i}", made[i % len(made)])

    def bound(together):
        losses = torch.tensor([-Trace_ELBO().loss(model, lambda: guide(together)) for _ in range(400)])
        return losses.mean(), losses.std() / 20

    (one, error), (many, other) = bound(True), bound(False)
    assert one < 0
    assert abs(one - many) < 4 * (error + other)


def test_what_was_made_without_gradients_draws_with_them():
    shift = torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        posterior = SemiImplicitNormal(lambda shape: shift + torch.randn(*shape, 2), 0.5, 2)
    assert posterior.rsample().requires_grad


def test_noise_takes_after_the_network():
    posterior = SemiImplicitNormal(Pushforward(torch.nn.Linear(3, 2).double(), 3), 0.5, 2)
    value = posterior.rsample((4,))
    assert value.dtype == posterior.log_prob(value).dtype == torch.float64

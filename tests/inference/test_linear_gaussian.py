"""Both bounds and their gradients against the linear-Gaussian case, where everything is known; see its docstring."""

import math
from dataclasses import replace
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_gaussian import Bank, LinearGaussian
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.autograd.graph import saved_tensors_hooks

from fedbayes.inference.bounds import lower_bound, upper_bound
from fedbayes.inference.mixing import Pushforward
from fedbayes.inference.semi_implicit import SemiImplicitNormal

# log Z, ELBO, I, chi^2, U_1 (exact), and Monte Carlo L_K of an independent implementation (four digits)
TABLE = {
    "d=1": (
        {"d": 1, "e": 1, "n": 2, "s": 0.3, "scale": 0.9},
        (-4.590028, -4.643226, 0.450933, 1.464, -3.6300),
        {0: -5.0939, 1: -4.8957, 10: -4.6968, 100: -4.6504, 1000: -4.6438},
    ),
    "d=3": (
        {"s": 0.25, "scale": 0.6},
        (-8.668048, -15.220537, 2.421395, 125.8, 1.6615),
        {0: -17.6401, 1: -17.0478, 10: -15.9303, 100: -15.3542, 1000: -15.2387},
    ),
    "d=10": (
        {"d": 10, "e": 10, "n": 12, "s": 0.2, "scale": 0.3},
        (-30.129128, -42.939497, 4.787281, 14393, -25.4306),
        {0: -47.7233, 1: -47.0551, 10: -45.4894, 100: -43.9640, 1000: -43.2294},
    ),
    "d=10, rank 2": (
        {"d": 10, "e": 2, "n": 12, "s": 0.2, "scale": 0.3},
        (-30.129128, -41.605976, 2.075434, 62.5, -28.6619),
        {0: -43.6760, 1: -43.1128, 10: -42.1314, 100: -41.6966, 1000: -41.6155},
    ),
}
DRAWS = {0: 40_000, 1: 40_000, 10: 20_000, 100: 6_000, 1000: 1_500}
THEIRS = {0: 200_000, 1: 200_000, 10: 200_000, 100: 40_000, 1000: 10_000}  # draws behind the table
each_case = pytest.mark.parametrize("name", TABLE)


@each_case
def test_the_closed_forms_are_the_tables(name):
    recipe, (*six_digits, chi2, upper), _ = TABLE[name]
    case = LinearGaussian.make(**recipe)
    assert [case.log_evidence, case.elbo, case.information] == pytest.approx(six_digits, rel=0, abs=6e-7)
    assert case.chi2 == pytest.approx(chi2, rel=5e-4)
    assert case.upper_1 == pytest.approx(upper, rel=0, abs=6e-5)
    assert case.chi2 == pytest.approx(math.expm1(2 * case.information))
    # ELBO term by term, without the exact posterior
    C, H, m = case.q.covariance_matrix, case.H, case.m
    n, d = H.shape
    likelihood = -n / 2 * math.log(2 * math.pi * case.r**2) - (
        (case.y - H @ m).square().sum() + torch.trace(H @ C @ H.T)
    ) / (2 * case.r**2)
    prior = -d / 2 * math.log(2 * math.pi * case.t**2) - (m.square().sum() + torch.trace(C)) / (2 * case.t**2)
    assert case.elbo == pytest.approx(float(likelihood + prior + case.q.entropy()))


@each_case
def test_l_k_and_u_1_are_the_tables_and_keep_to_their_bracket(name):
    recipe, (*_, upper), table = TABLE[name]
    case = LinearGaussian.make(**recipe)
    found = {}
    for k, draws in DRAWS.items():
        found[k] = value, error = case.estimate(case.posterior(k), draws)
        theirs = error * math.sqrt(draws / THEIRS[k]) + 5e-5
        assert abs(value - table[k]) < 5 * math.hypot(error, theirs), k
        gap, low, high = case.elbo - value, case.information - math.log(k + 1), math.log1p(case.chi2 / (k + 1))
        assert max(0.0, low) - 5 * error <= gap <= min(case.information, high) + 5 * error, k
        assert value <= case.log_evidence + 5 * error
    assert abs(found[0][0] - (case.elbo - case.information)) < 5 * found[0][1]
    for low, high in pairwise(DRAWS):
        assert found[high][0] - found[low][0] > -5 * math.hypot(found[high][1], found[low][1])
    value, error = case.estimate(case.posterior(1), 40_000, upper_bound)
    assert abs(value - upper) < 5 * error
    assert abs(value - case.upper_1) < 5 * error


def test_the_control_variate_has_mean_zero():
    case = LinearGaussian.make()
    terms = case.control(case.posterior(0).rsample((100_000,)))
    assert abs(terms.mean()) < 5 * terms.std() / math.sqrt(len(terms))
    assert terms.std() > 1


def test_upper_bounds_fall_with_k_and_stay_above():
    case = LinearGaussian.make()
    found = [case.estimate(case.posterior(k), 5_000, upper_bound) for k in (1, 10, 100)]
    for (value, error), (less, its) in pairwise(found):
        assert value - less > 5 * math.hypot(error, its)
    assert found[-1][0] > case.elbo - 5 * found[-1][1]
    with pytest.raises(ValueError, match="needs num_extra of at least 1, got 0"):
        upper_bound(case.posterior(0), case.log_joint, 5)


@st.composite
def cases(draw):
    d, e, n = (draw(st.integers(1, 4)) for _ in range(3))
    s, t, r, scale = (draw(st.floats(low, high)) for low, high in ((0.2, 1.5), (0.5, 2), (0.5, 2), (0.0, 1.5)))
    return LinearGaussian.make(d, e, n, s, t, r, scale, draw(st.integers(0, 2**32)))


@settings(max_examples=50)
@given(cases(), st.integers(0, 20), st.booleans(), st.booleans(), st.sampled_from([None, 1, 3]))
def test_no_draw_is_credited_with_more_than_log_of_the_components(case, k, path, share, chunk):
    posterior = case.posterior(k, path_gradient=path, share_extra=share, chunk=chunk)
    mixture = posterior.mixture(posterior.rsample((50,)))
    assert (mixture.log_origin - mixture.log_density).max() <= math.log(k + 1) + 1e-12
    assert mixture.effective_components.min() >= 1 - 1e-9
    assert mixture.effective_components.max() <= k + 1 + 1e-9
    assert (mixture.bound_saturation is None) == (k == 0)


@settings(max_examples=60)  # a search without end would meet any number of sigmas
@given(cases(), st.integers(0, 20), st.integers(0, 2**32))
def test_the_bracket_holds_in_every_case(case, k, seed):
    torch.manual_seed(seed)
    value, error = case.estimate(case.posterior(k), 4_000)
    gap, low, high = case.elbo - value, case.information - math.log(k + 1), math.log1p(case.chi2 / (k + 1))
    tolerance = 5 * error + 1e-9
    assert max(0.0, low) - tolerance <= gap <= min(case.information, high) + tolerance
    assert value <= case.log_evidence + tolerance


def program(case):
    d = len(case.m)

    def model():
        p = pyro.sample("p", dist.Normal(torch.zeros(d).double(), case.t).to_event(1))
        pyro.sample("y", dist.Normal(p @ case.H.T, case.r).to_event(1), obs=case.y)

    return model


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_plain_pyro_computes_the_bound(objective):
    case = LinearGaussian.make()
    for k, draws in ((0, 40_000), (10, 20_000)):
        elbo = objective(num_particles=draws, vectorize_particles=True, max_plate_nesting=0)
        with torch.no_grad():
            value = -elbo.loss(program(case), lambda k=k: pyro.sample("p", case.posterior(k)))
            terms = lower_bound(case.posterior(k), case.log_joint, draws)
        expected, error = (case.elbo - case.information, 0.0) if k == 0 else case.estimate(case.posterior(k), draws)
        assert abs(value - expected) < 5 * math.hypot(float(terms.std()) / math.sqrt(draws), error)


def replicated(case, count):
    """Copies of the parameters in a batch: one backward pass gives as many independent gradients."""
    s = torch.full((count, 1), case.s, dtype=torch.float64)
    leaves = [case.m.expand(count, -1).clone(), case.A.expand(count, -1, -1).clone(), s]
    return [leaf.requires_grad_() for leaf in leaves]


def gradients(case, num_extra, draws, count, seed, **options):
    """Of L_K in m, A and s, `count` of each."""
    m, A, s = replicated(case, count)
    noise = Bank(seed, size=(num_extra + 3) * draws * count * 4)
    mixing = Pushforward(lambda eps: m + torch.einsum("bij,...bj->...bi", A, eps), A.shape[-1], (count,), noise)
    posterior = SemiImplicitNormal(mixing, s, num_extra, noise=noise, **options)
    return torch.autograd.grad(lower_bound(posterior, case.log_joint, draws).mean(0).sum(), (m, A, s))


def agrees(found, expected, sharp):
    """Whether the mean over replicates is within five standard errors, themselves small."""
    off = found - expected
    error = off.std(0) / math.sqrt(len(off))
    assert (off.mean(0).abs() <= 5 * error + 1e-12).all()
    assert error.max() < sharp


def test_the_gradient_of_l0_pulls_the_mixing_to_a_point():
    # d L_0 / d A = -Lambda A: at K = 0 nothing rewards a mixing.
    case = LinearGaussian.make()
    expected = -case.precision @ case.A
    _, found, _ = gradients(case, 0, 1_000, 100, 3)
    agrees(found, expected, sharp=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("num_extra", [1, 10])
def test_the_path_gradient_is_the_gradient_on_average(num_extra):
    # Same noise for both: what is left is the part that the path gradient leaves out, whose mean is zero.
    case = LinearGaussian.make()
    plain = gradients(case, num_extra, 500, 100, 7)
    path = gradients(case, num_extra, 500, 100, 7, path_gradient=True)
    for mine, theirs in zip(path, plain, strict=True):
        agrees(mine, theirs, sharp=0.05)  # against 13, 3 and 1, the largest entries of A's, s's and m's at K = 1
        assert (mine - theirs).abs().max() > 0.1, "they differ draw by draw"


@pytest.mark.parametrize("num_extra", [0, 1, 10])
def test_the_path_gradient_is_the_mixtures_own_in_its_argument(num_extra):
    case, found = LinearGaussian.make(), []
    for options in ({}, {"path_gradient": True}, {"path_gradient": True, "chunk": 3}):
        posterior = case.posterior(num_extra, Bank(2), **options)
        value = posterior.rsample((20,)).requires_grad_()
        mixture = posterior.mixture(value)
        (score,) = torch.autograd.grad(mixture.log_density.sum(), value)
        found.append((mixture.log_density.detach(), mixture.effective_components, score))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 4, 12, 50])
def test_chunks_change_neither_bound_nor_gradient(chunk):
    case = LinearGaussian.make()
    whole, parts = (gradients(case, 12, 5, 2, 1, chunk=size) for size in (None, chunk))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    path, its_parts = (gradients(case, 12, 5, 2, 1, path_gradient=True, chunk=size) for size in (None, chunk))
    torch.testing.assert_close(its_parts, path, rtol=1e-10, atol=1e-10)


def bytes_kept(case, num_extra, **options):
    """What backward needs from the forward pass of ten draws."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    case.A.requires_grad_()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = lower_bound(case.posterior(num_extra, **options), case.log_joint, 10).sum()
    loss.backward()
    return sum(kept.values())


def test_memory_for_backward_grows_with_k_only_without_chunks():
    case = LinearGaussian.make()
    assert bytes_kept(case, 1000) > 8 * bytes_kept(case, 100)
    noise = 900 * 10 * 3 * 8  # more components, draws, noise dimensions, bytes
    joining = 18 * 10 * 8  # more chunks, draws, bytes
    assert bytes_kept(case, 1000, chunk=50) <= bytes_kept(case, 100, chunk=50) + noise + 4 * joining
    assert bytes_kept(case, 1000) - bytes_kept(case, 100) > 2 * noise
    assert bytes_kept(case, 1000, path_gradient=True) == bytes_kept(case, 100, path_gradient=True)
    assert bytes_kept(case, 1000, path_gradient=True, chunk=50) == bytes_kept(case, 100, path_gradient=True)


def test_float32_agrees_with_float64():
    wide, found = LinearGaussian.make(), []
    narrow = replace(wide, m=wide.m.float(), A=wide.A.float(), H=wide.H.float(), y=wide.y.float())
    for case, dtype in ((wide, torch.float64), (narrow, torch.float32)):
        noise = Bank(4)
        posterior = case.posterior(10, lambda shape, noise=noise, dtype=dtype: noise(shape).to(dtype))
        found.append(lower_bound(posterior, case.log_joint, 100))
        assert found[-1].dtype == dtype
    torch.testing.assert_close(found[1].double(), found[0], rtol=1e-3, atol=1e-3)

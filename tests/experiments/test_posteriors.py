"""The posteriors by hand; quadrature, log Z and the judgement of a fit where the answer is known."""

import json
import math

import posterior_targets as targets
import pytest
import semi_implicit_posteriors as fits
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

LOG_Z = 1.5
LOC, COVARIANCE = torch.tensor([1.0, -2.0]).double(), torch.tensor([[1.0, 0.9], [0.9, 4.0]]).double()
GAUSSIAN = MultivariateNormal(LOC, COVARIANCE)


def unnormalised(p):
    return GAUSSIAN.log_prob(p.double()) + LOG_Z


def test_logistic_joint_by_hand():
    design, labels = torch.tensor([[1.0, 2.0], [1.0, -1.0]]).double(), torch.tensor([1.0, 0.0]).double()
    p = torch.tensor([0.5, -0.25]).double()  # x^T p = 0 and 0.75
    likelihood = -math.log(2) - math.log(1 + math.exp(0.75))
    prior = -0.5 * (0.25 + 0.0625) / 4 - math.log(2 * math.pi * 4)
    found = targets.logistic_joint(design, labels, prior_sd=2.0)(p)
    torch.testing.assert_close(float(found), likelihood + prior)


def test_count_joint_by_hand():
    # One leaf each with 0, 1 and 2 mites at r = 2, prob = 1/2: masses 1/4, 1/4, 3/16. Exponential and flat priors.
    p = torch.tensor([math.log(2), 0.0]).double()
    jacobian = 2 * 0.25
    found = targets.count_joint((1, 1, 1), a=1.0, b=1.0, c=1.0)(p)
    torch.testing.assert_close(float(found), math.log(3 / 256) - 2 + math.log(jacobian))


def test_data_are_those_of_the_paper():
    assert (sum(targets.MITES), sum(x * leaves for x, leaves in enumerate(targets.MITES))) == (150, 172)
    design, labels = targets.waveforms()
    assert design.shape == (400, 22)
    assert 100 < labels.sum() < 170  # a third of the rows


def test_quadrature_of_a_gaussian_is_exact():
    found = targets.quadrature(unnormalised, (-8.0, -20.0), (10.0, 16.0), 200)
    assert abs(found.log_z - LOG_Z) < 1e-9
    assert found.error < 1e-9
    torch.testing.assert_close(torch.tensor(found.mean).double(), LOC)
    torch.testing.assert_close(torch.tensor(found.sd).double(), torch.tensor([1.0, 2.0]).double())
    assert found.correlation[0][1] == pytest.approx(0.45)


def test_quadrature_of_the_counts_does_not_depend_on_its_grid():
    coarse, fine = (
        targets.quadrature(targets.count_joint(), (-2.5, -4.0), (5.0, 4.0), points) for points in (300, 450)
    )
    assert coarse.log_z == pytest.approx(fine.log_z, abs=1e-6)
    assert fine.notes["mass on the rim"] < 1e-6


def test_laplace_finds_a_gaussian():
    found = targets.laplace(unnormalised, 2)
    torch.testing.assert_close(found.loc, LOC)
    torch.testing.assert_close(found.covariance_matrix, COVARIANCE)


def test_evidence_of_a_gaussian_both_ways():
    shifted = MultivariateNormal(LOC + 0.3, 0.8 * COVARIANCE)
    log_z, error, share, weighted = targets.log_evidence(unnormalised, shifted, 20_000)
    assert 0.001 < error < 0.02
    assert abs(log_z - LOG_Z) < 4 * error
    assert 0.3 < share < 1
    assert max(abs(torch.tensor(weighted.mean) - LOC)) < 0.1
    backwards, error = targets.log_evidence_from_draws(unnormalised, shifted, GAUSSIAN.sample((20_000,)))
    assert 0.001 < error < 0.02
    assert abs(backwards - LOG_Z) < 4 * error


def test_distances_by_hand():
    exact = targets.moments(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    other = targets.moments(torch.tensor([[1.0, 0.0], [3.0, 8.0]]))
    values = list(targets.distances(other, exact).values())
    assert values == pytest.approx([1.0, 1.0, 2.0, 0.0])  # means off by (1, 1) sd; sd as it is and doubled


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_of_a_fit_that_is_gaussian(monkeypatch, reverse):
    monkeypatch.setattr(fits, "COMPONENTS", 20)
    monkeypatch.setattr(fits, "REVERSE_COMPONENTS", 5)
    q = fits.SemiImplicit(2, reverse)
    with torch.no_grad():
        for parameter in q.mixing.parameters():
            parameter.zero_()  # the mixing is a point, so that q = N(0, scale^2 I) and every bound is exact
        q.log_scale.fill_(math.log(0.7))
    exact = fits.Reference(LOG_Z, 0.0, LOC.tolist(), [1.0, 2.0], [[1.0, 0.45], [0.45, 1.0]], {})
    found = fits.judged(q, unnormalised, 3, exact)
    is_gaussian = MultivariateNormal(torch.zeros(2).double(), 0.49 * torch.eye(2).double())
    low, high, error = found["kl"]
    assert low == pytest.approx(high, abs=1e-4)
    assert abs(high - float(kl_divergence(is_gaussian, GAUSSIAN))) < 4 * error
    assert found["mixing_ratio"] == 0


def test_fit_raises_the_bound_and_the_plain_model_starts_at_the_reverse_one():
    torch.manual_seed(0)
    q = fits.SemiImplicit(2, reverse=True)
    p = q(50).rsample((100,))
    assert torch.equal(q.tau(p), torch.zeros(100, 65))
    wide = Normal(0.0, 1.0)

    def log_joint(p):
        return wide.log_prob(p).sum(-1)

    before = fits.lower_bound(q(5), log_joint, 500).mean()
    fits.fit(q, log_joint, 5, 200)
    after = fits.lower_bound(q(5), log_joint, 500).mean()
    assert before + 0.5 < after < 0.1


def test_a_file_that_is_there_is_not_made_again(tmp_path):
    first = fits.kept(tmp_path / "a.json", lambda: {"x": 1})
    again = fits.kept(tmp_path / "a.json", lambda: pytest.fail("made again"))
    assert first == again == json.loads((tmp_path / "a.json").read_text())

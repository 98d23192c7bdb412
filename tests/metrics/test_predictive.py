"""Predictions and their scores against closed forms and torchmetrics."""

import math

import pytest
import torch
from torch.distributions import Beta, Categorical, Dirichlet

from fedbayes.metrics.predictive import Predictive, brier, negative_log_likelihood, predictive

LOG_ZERO = -1e4


def of(logits) -> Predictive:
    return Predictive(*predictive(logits))


def calibrated(count: int, classes: int = 10):
    """Predictions whose labels are drawn from them."""
    probabilities = Dirichlet(torch.full((classes,), 0.5, dtype=torch.float64)).sample((count,))
    return probabilities, Categorical(probabilities).sample()


def test_two_certain_draws_that_disagree_are_all_prompt_uncertainty():
    predictive = of(torch.tensor([[[0.0, LOG_ZERO]], [[LOG_ZERO, 0.0]]]))
    assert predictive.probabilities.tolist() == [[0.5, 0.5]]
    assert predictive.prompt_uncertainty.item() == pytest.approx(math.log(2))
    assert predictive.expected_entropy.item() == 0


def test_equal_draws_have_no_prompt_uncertainty():
    predictive = of(torch.randn(1, 50, 7).expand(4, 50, 7))
    torch.testing.assert_close(predictive.prompt_uncertainty, torch.zeros(50), rtol=0, atol=1e-6)
    assert predictive.prompt_uncertainty.min() >= 0
    torch.testing.assert_close(predictive.entropy, predictive.expected_entropy)
    undecided = of(torch.zeros(3, 1, 4))
    assert undecided.entropy.item() == pytest.approx(math.log(4))


def test_the_entropy_of_beta_draws_splits_as_in_closed_form():
    p = Beta(torch.tensor(2.0).double(), torch.tensor(5.0).double()).sample((200_000, 1))
    predictive = of(torch.stack([p, 1 - p], -1).log())
    assert predictive.entropy.item() == pytest.approx(0.59827, abs=2e-3)
    assert predictive.expected_entropy.item() == pytest.approx(0.53333, abs=2e-3)
    assert predictive.prompt_uncertainty.item() == pytest.approx(0.06494, abs=2e-3)


def test_the_predictive_is_the_mean_of_probabilities_and_not_of_logits():
    mean, _ = predictive(torch.tensor([[[0.0, 0.0]], [[math.log(9.0), 0.0]]]))
    torch.testing.assert_close(mean, torch.tensor([[0.7, 0.3]]))


def test_confidence_is_that_of_the_predicted_class():
    predictions = of(torch.randn(2, 7, 3))
    assert torch.equal(predictions.probabilities[torch.arange(7), predictions.predicted], predictions.confidence)


def test_a_calibrated_sampler_scores_its_own_uncertainty():
    probabilities, labels = calibrated(100_000)
    nll, score = negative_log_likelihood(probabilities, labels), brier(probabilities, labels)
    entropy, spread = Categorical(probabilities).entropy(), 1 - probabilities.square().sum(1)
    for score_of_draw, exact in ((nll, entropy), (score, spread)):
        difference = score_of_draw - exact
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(labels))


def test_brier_and_nll_by_hand():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    labels = torch.tensor([1, 0])
    assert brier(probabilities, labels).tolist() == pytest.approx([0.25 + 0.49 + 0.04, 2.0])
    assert negative_log_likelihood(probabilities, labels)[0].item() == pytest.approx(-math.log(0.3))


def test_a_probability_of_zero_costs_the_same_in_every_dtype():
    costs = [
        negative_log_likelihood(torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([1])).item()
        for dtype in (torch.float32, torch.float64)
    ]
    assert costs == pytest.approx([-math.log(torch.finfo(torch.float32).tiny)] * 2)

"""Class priors: the formula by hand, EM's fixed points, and heads that skewed clients learn with and without."""

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from fedbayes.inference.class_prior import class_prior, estimate_prior


def test_prior_by_hand():
    prior = class_prior(tensor([[3, 1, 0], [0, 0, 0]]), 0.5)
    assert prior[0].tolist() == pytest.approx([3.5 / 5.5, 1.5 / 5.5, 0.5 / 5.5])
    assert prior[1].tolist() == pytest.approx([1 / 3] * 3)


def test_estimate_of_images_that_tell_their_class_is_their_frequency():
    predictions = F.one_hot(tensor([0, 0, 0, 1])).double()
    prior = tensor([0.2, 0.8], dtype=torch.float64)
    assert estimate_prior(predictions, prior, 0).tolist() == pytest.approx([0.75, 0.25])
    assert estimate_prior(predictions, prior, 0.5).tolist() == pytest.approx([(3 + 0.4) / 6, (1 + 1.6) / 6])


def test_estimate_is_the_root_of_the_likelihood_s_derivative():
    """Two classes, two kinds of images: `n` times ratio g and `m` times ratio h have a maximum in closed form."""
    n, m, g, h = 30, 70, 4.0, 0.5  # p(x | 1) / p(x | 0) of the two kinds
    exact = (n * (g - 1) + m * (h - 1)) / (n + m) / ((1 - h) * (g - 1))
    ratios = tensor([g] * n + [h] * m, dtype=torch.float64)
    prior = tensor([0.5, 0.5], dtype=torch.float64)
    predictions = torch.stack([1 / (1 + ratios), ratios / (1 + ratios)], 1)
    assert estimate_prior(predictions, prior, 0)[1].item() == pytest.approx(exact, abs=1e-5)


def test_without_a_shift_the_estimate_is_the_prior():
    x = gaussian_images(tensor([0.7, 0.2, 0.1]), 20_000, seed=0)[0]
    prior = tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    predictions = (-(x[:, None] - MEANS).square() / 2 + prior.log()).softmax(1)
    assert (estimate_prior(predictions, prior) - prior).abs().max() < 0.01


MEANS = tensor([-1.5, 0.0, 1.5], dtype=torch.float64)


def gaussian_images(prior, count, seed):
    """Numbers x ~ N(mean of the class, 1) and their classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(prior.float(), count, replacement=True, generator=rng)
    return MEANS[labels] + torch.randn(count, generator=rng, dtype=torch.float64), labels


@pytest.mark.parametrize("is_adjusted", [True, False])
def test_skewed_clients_learn_the_bayes_optimal_classifier_with_their_priors_alone(is_adjusted):
    """Classes are N(m, 1) for everybody, so `f(x) = m x - m^2 / 2` with each client's log prior is Bayes-optimal."""
    priors = tensor([[0.9, 0.08, 0.02], [0.02, 0.08, 0.9]], dtype=torch.float64)
    clients = [gaussian_images(prior, 20_000, seed) for seed, prior in enumerate(priors)]
    offsets = [
        class_prior(labels.bincount(minlength=3), 0.5).log() if is_adjusted else torch.zeros(3) for _, labels in clients
    ]
    weight, bias = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        total = sum(
            F.cross_entropy(x[:, None] * weight + bias + offset, labels)
            for (x, labels), offset in zip(clients, offsets, strict=True)
        )
        total.backward()
        return total

    solver.step(loss)
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    gaps = [
        (
            (x[:, None] * weight + bias + offset).softmax(1)
            - (x[:, None] * MEANS - MEANS**2 / 2 + prior.log()).softmax(1)
        )
        for offset, prior in zip(offsets, priors, strict=True)
    ]
    largest = max(gap.abs().max().item() for gap in gaps)
    assert largest < 0.03 if is_adjusted else largest > 0.3

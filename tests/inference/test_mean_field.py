"""Independent Gaussians against torch, and products of posteriors against a conjugate linear regression."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fedbayes.inference.mean_field import Natural, at_least, diagonal, divergence, product, rho_of, std_of

CLIENTS, WEIGHTS = 5, 4


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_rho_and_sigma_are_each_others_inverse_from_tiny_to_large():
    std = torch.logspace(-6, 2.5, 50, dtype=torch.float64)
    torch.testing.assert_close(std_of(rho_of(std)), std, rtol=1e-12, atol=0)
    assert std_of(torch.zeros(1)).item() == pytest.approx(0.6931472)


def test_the_divergence_is_torchs_summed_over_each_clients_weights():
    mean, other = double(3, 2, 4), double(3, 2, 4)
    std, other_std = double(3, 2, 4).exp(), double(3, 2, 4).exp()
    expected = kl_divergence(Normal(mean, std), Normal(other, other_std)).sum((1, 2))
    torch.testing.assert_close(divergence(mean, std, other, other_std), expected)
    assert not divergence(mean, std, mean, std).any()


def regression(images):
    """A client's design and outcomes; each has another number of images, scale, noise and correlation."""
    data = []
    for m, n in enumerate(images):
        design = double(n, WEIGHTS) @ double(WEIGHTS, WEIGHTS) * (1 + m)
        data.append((design, double(n) + m, 0.5 + m))
    return data


def posterior(prior, data):
    """Of the weights of a linear regression with known noise, in natural parameters."""
    precision, shift = prior.precision.clone(), prior.shift.clone()
    for design, y, noise in data:
        precision, shift = precision + design.T @ design / noise**2, shift + design.T @ y / noise**2
    return Natural(precision, shift)


def test_five_heterogeneous_clients_posteriors_combine_into_that_of_the_pooled_data():
    root = double(WEIGHTS, WEIGHTS)
    prior = Natural(root @ root.T + torch.eye(WEIGHTS, dtype=torch.float64), double(WEIGHTS))
    data = regression((2, 7, 11, 1, 30))
    clients = [posterior(prior, [client]) for client in data]
    combined, pooled = product([prior, *(client.over(prior) for client in clients)]), posterior(prior, data)
    torch.testing.assert_close(combined.precision, pooled.precision, rtol=1e-10, atol=0)
    mean = torch.linalg.solve(combined.precision, combined.shift)
    torch.testing.assert_close(mean, torch.linalg.solve(pooled.precision, pooled.shift), rtol=1e-10, atol=1e-10)
    # By the formula itself: the prior is in each posterior, so it is taken out of all but one.
    by_hand = sum(client.precision for client in clients) - (CLIENTS - 1) * prior.precision
    torch.testing.assert_close(combined.precision, by_hand, rtol=1e-10, atol=0)
    assert (product(clients).precision - pooled.precision).norm() > 1, "the prior of each client is not to be counted"


def test_a_prior_that_has_moved_on_does_not_count_the_images_twice():
    prior = Natural(torch.eye(WEIGHTS, dtype=torch.float64), double(WEIGHTS))
    data = regression((3, 9))
    pooled = posterior(prior, data)
    again = product([prior, *(posterior(pooled, [client]).over(pooled) for client in data)])
    torch.testing.assert_close(again.precision, pooled.precision, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again.shift, pooled.shift, rtol=1e-10, atol=1e-10)


def test_a_precision_that_is_too_low_or_negative_becomes_the_floor():
    """By hand: around 1, `eta - Lambda around` is 3, 3 and 0, which a precision of 2 turns into 1 + 1.5, 1 + 1.5, 1."""
    factor = Natural(torch.tensor([1.0, -4.0, 0.0]), torch.tensor([4.0, -1.0, 0.0]))
    mean, std = at_least(factor, torch.full((3,), 2.0), torch.ones(3))
    assert mean.tolist() == [2.5, 2.5, 1.0]
    torch.testing.assert_close(std, torch.full((3,), 2**-0.5))
    mean, std = double(6), double(6).exp()
    unraised = at_least(diagonal(mean, std), torch.full((6,), 1e-6, dtype=torch.float64), double(6))
    torch.testing.assert_close(unraised, (mean, std))
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        at_least(Natural(torch.ones(1), torch.ones(1)), torch.zeros(1), torch.zeros(1))

"""The epsilon that is reported is the accountant's, and lies between closed forms, an attack and a published bound."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from strategies.private import spent


def epsilon(*settings):
    """After the last round."""
    return spent(*settings)[-1]


def exact_epsilon(mu, delta):
    """Of the Gaussian mechanism (Balle and Wang, ICML 2018, arXiv 1805.06530), by bisection."""

    def delta_of(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)

    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "rounds"), [(2.0, 1), (8.0, 1), (8.0, 20), (20.0, 100)])
def test_epsilon_without_sampling_bounds_the_exact_one_from_above_and_closely(noise, rounds):
    """T rounds of noise z are one Gaussian mechanism with mu = 2 sqrt(T) / z."""
    exact = exact_epsilon(2 * math.sqrt(rounds) / noise, 1e-3)
    assert exact <= epsilon(noise, 100, 100, rounds, 1e-3) <= 1.25 * exact + 0.05


def sampled_at_most(noise, q, rounds, delta):
    """By Theorem 9 of Wang, Balle and Kasiviswanathan (AISTATS 2019, arXiv 1808.00087), at whole orders, and the
    conversion of Canonne, Kamath and Steinke (NeurIPS 2020, arXiv 2004.00010, Proposition 12)."""
    best = math.inf
    for order in range(2, 200):
        logs = [0.0]
        for j in range(2, order + 1):
            gaussian = j / (2 * (noise / 2) ** 2)  # Renyi divergence of order j, in units of the sensitivity
            term = math.log(2) + (j - 1) * gaussian
            if j == 2:
                term = min(term, math.log(4 * math.expm1(gaussian)))
            logs.append(j * math.log(q) + math.log(math.comb(order, j)) + term)
        renyi = np.logaddexp.reduce(logs) / (order - 1)
        best = min(best, rounds * renyi + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return best


def sampled_at_least(noise, q, rounds, delta):
    """Of two federations in which only one client steps, and steps +C or -C: what any accountant must reach.

    The loss log p/q of one release, discretised downwards, convolved `rounds` times.
    """
    deviation = noise / 2
    x = np.linspace(-1 - 12 * deviation, 1 + 12 * deviation, 400_001)
    plus = (1 - q) * norm.pdf(x, 0, deviation) + q * norm.pdf(x, 0.5, deviation)
    minus = (1 - q) * norm.pdf(x, 0, deviation) + q * norm.pdf(x, -0.5, deviation)
    step = 1e-4
    cells = np.floor(np.log(plus / minus) / step).astype(int)
    low = cells.min()
    mass = np.bincount(cells - low, weights=plus * (x[1] - x[0]))
    size = 1 << int(np.ceil(np.log2(len(mass) * rounds)))
    whole = np.fft.irfft(np.fft.rfft(mass, size) ** rounds, size)
    losses = (np.arange(size) + low * rounds) * step

    def delta_of(eps):
        over = losses > eps
        return float(np.sum(whole[over] * -np.expm1(eps - losses[over])))

    below, above = 0.0, float(losses[-1])
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if delta_of(middle) > delta else (below, middle)
    return below


@pytest.mark.parametrize(
    ("noise", "clients", "per_round", "rounds"), [(4.0, 1000, 50, 1), (4.0, 1000, 50, 9), (2.0, 100, 10, 15)]
)
def test_epsilon_with_sampling_lies_between_an_attack_and_the_published_bound(noise, clients, per_round, rounds):
    settings = noise, per_round / clients, rounds, 1e-3
    bound = sampled_at_most(*settings)
    reported = epsilon(noise, clients, per_round, rounds, 1e-3)
    assert max(sampled_at_least(*settings), 0.8 * bound) <= reported <= bound + 1e-9


def test_more_noise_fewer_rounds_and_fewer_clients_a_round_cost_less():
    assert epsilon(4.0, 100, 10, 10, 1e-2) < epsilon(2.0, 100, 10, 10, 1e-2)
    assert epsilon(4.0, 100, 10, 5, 1e-2) < epsilon(4.0, 100, 10, 10, 1e-2)
    assert epsilon(4.0, 100, 10, 10, 1e-2) < epsilon(4.0, 100, 50, 10, 1e-2)

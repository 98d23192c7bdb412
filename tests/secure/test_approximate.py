"""Euler softmax and Fourier sigmoid: near the functions, and the published costs to the bit."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.special import softmax as exact_softmax
from two_parties import counts, run

from fedbayes.secure.approximate import fourier_coefficients, sigmoid, softmax
from fedbayes.secure.rings import Ring, decode, encode

RING, FRACTION = Ring(64), 14

# Table 3 of Zheng et al., ACSAC 2023: classes, steps, bits offline, bits online.
TABLE_3 = [
    (10, 8, 10_240, 31_744),
    (10, 16, 20_480, 63_488),
    (10, 32, 40_960, 126_976),
    (10, 64, 81_920, 253_952),
    (100, 8, 102_400, 308_224),
    (100, 16, 204_800, 616_448),
    (100, 32, 409_600, 1_232_896),
    (100, 64, 819_200, 2_465_792),
    (1000, 8, 1_024_000, 3_073_024),
    (1000, 16, 2_048_000, 6_146_048),
    (1000, 32, 4_096_000, 12_292_096),
    (1000, 64, 8_192_000, 24_584_192),
]
# Table 4: period, terms, bits offline, bits online.
TABLE_4 = [(4, 5, 640, 36), (4, 8, 1024, 36), (5, 5, 640, 38), (5, 8, 1024, 38)]


def approximate(protocol, x, **options):
    """The protocol's result on real numbers, and the transcript."""
    secret = encode(x, RING, FRACTION)
    result, transcript = run(lambda party, s: protocol(party, RING, s, FRACTION, **options), RING, (RING, secret))
    return decode(result, RING, FRACTION), transcript


@pytest.mark.parametrize(("classes", "steps", "offline", "online"), TABLE_3)
def test_costs_of_the_published_table_3(classes, steps, offline, online):
    result, transcript = approximate(softmax, np.zeros((1, classes)), steps=steps)
    assert counts(transcript) == (online, 2 * steps, offline)
    assert result == pytest.approx(1 / classes, abs=2e-3)


@pytest.mark.parametrize(("period", "terms", "offline", "online"), TABLE_4)
def test_costs_of_the_published_table_4(period, terms, offline, online):
    _, transcript = approximate(sigmoid, np.zeros(1), period=period, terms=terms)
    assert counts(transcript) == (online, 1, offline)


def test_the_published_coefficients_to_all_their_digits():
    published = [0.61727893, -0.03416704, 0.16933091, -0.04596946, 0.08159136]
    assert fourier_coefficients(5, 5).round(8).tolist() == published


def in_floats(x, steps):
    """Euler's steps without shares."""
    g = np.full(x.shape, 1 / x.shape[-1])
    for _ in range(steps):
        g = g + (x - (x * g).sum(-1, keepdims=True)) * g / steps
    return g


@pytest.mark.parametrize("steps", [8, 32])
def test_softmax_is_that_of_eulers_steps_which_is_near_the_exact_one(steps):
    x = np.random.default_rng(steps).normal(0, 1, (50, 10))
    result, _ = approximate(softmax, x, steps=steps)
    assert np.abs(result - in_floats(x, steps)).max() < steps * 10 * 2.0**-FRACTION
    assert np.abs(result - exact_softmax(x, axis=-1)).max() < 0.6 / steps


def test_softmax_needs_more_steps_than_the_logits_are_apart():
    x = np.array([[0.0, 20.0]])
    assert np.abs(approximate(softmax, x, steps=8)[0] - exact_softmax(x)).max() > 0.3
    assert approximate(softmax, x, steps=64)[0] == pytest.approx(exact_softmax(x), abs=1e-2)
    with pytest.raises(ValueError, match="steps=12"):
        approximate(softmax, x, steps=12)


def test_sigmoid_is_the_series_to_a_few_units_and_near_the_function_inside():
    x = np.linspace(-16, 16, 4001, endpoint=False)
    result, _ = approximate(sigmoid, x)
    k = np.arange(1, 6)
    series = 0.5 + np.sin(2 * np.pi * k * x[:, None] / 32) @ fourier_coefficients(5, 5)
    assert np.abs(result - series).max() < 10 * 2.0**-FRACTION
    inside = np.abs(x) < 12
    assert 0.04 < np.abs(result - expit(x))[inside].max() < 0.06


def test_sigmoid_wraps_beyond_half_its_period():
    result, _ = approximate(sigmoid, np.array([15.9, 16.1]))
    assert result[0] > 0.5 > result[1]


@pytest.mark.parametrize(("classes", "published"), [(10, 3.0e-4), (100, 1.0e-3)])
def test_the_published_divergence_of_sixteen_steps(classes, published):
    """Normal logits, 20 bits behind the point: with 14 of them rounding 1 / classes loses as much mass again."""
    x, fraction = np.random.default_rng(0).normal(0, 1, (400, classes)), 20
    secret = encode(x, RING, fraction)
    shared, _ = run(lambda party, s: softmax(party, RING, s, fraction, 16), RING, (RING, secret))
    exact, result = exact_softmax(x, axis=-1), decode(shared, RING, fraction)
    divergence = (exact * np.log(exact / result)).sum(axis=-1).mean()
    assert divergence == pytest.approx(published, rel=0.15)

"""Softmax by Euler steps and sigmoid by a Fourier series, on fixed-point numbers [1].

Both need a bound on their inputs, which nothing here checks. Softmax is right while the largest and the smallest logit
are at most `steps` apart. Sigmoid is periodic: inputs beyond half the period wrap, and near that edge it is off by up
to 0.5.

[1] Zheng et al., Secure Softmax/Sigmoid for machine-learning computation, ACSAC 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.secure.arithmetic import truncate
from fedbayes.secure.bilinear import product
from fedbayes.secure.dealer import AbstractCorrelation, Arrays
from fedbayes.secure.party import Party
from fedbayes.secure.rings import Elements, Form, Ring, Shape, encode


def softmax(party: Party, ring: Ring, x: Elements, fraction: int, steps: int) -> Elements:
    """Return a share of the softmax along the last axis, of `count` fixed-point numbers.

    f(t) = softmax(t x) solves f' = (x - <x, f>) f with f(0) = 1 / count; `steps` Euler steps lead to t = 1. Two
    rounds a step. Online (6 count + 2) k steps bits, offline 2 count k steps, in a ring of k bits.

    Args:
        party: who runs it.
        ring: where the numbers lie.
        x: share of the logits.
        fraction: bits behind the point.
        steps: a power of 2.

    Raises:
        ValueError: if `steps` is not a power of 2, by which a share can be divided by dropping bits.
    """
    if steps < 1 or steps & (steps - 1):
        raise ValueError(f"steps={steps} must be a power of 2.")
    start = encode(np.full(x.shape, (party.index == 0) / x.shape[-1]), ring, fraction)
    with party.protocol("softmax"):
        g = start
        for _ in range(steps):
            o = truncate(party, ring, product(party, ring, x, g), fraction + steps.bit_length() - 1)  # x g / steps
            mean = ring.reduce(o.sum(axis=-1, keepdims=True, dtype=o.dtype))
            correction = truncate(party, ring, product(party, ring, mean, g), fraction)
            g = ring.subtract(ring.add(g, o), correction)
    return g


@final
@dataclass(frozen=True)
class Waves(AbstractCorrelation):
    """A uniform angle t in shares, and the shares of sin and cos of 2 pi k t for k = 1 .. terms, in fixed point."""

    angle: int
    terms: int
    bits: int
    fraction: int
    batch: Shape

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return t0 and party 0's waves; t1."""
        angle = (Ring(self.angle), self.batch)
        return [angle, *self.corrections()], [angle]

    def corrections(self) -> Sequence[Form]:
        """Return the form of party 1's waves: sin and cos, and the terms."""
        return [(Ring(self.bits), (*self.batch, 2, self.terms))]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return the waves less party 0's share."""
        ring = Ring(self.bits)
        t = Ring(self.angle).add(first[0], second[0])
        return [ring.subtract(encode(waves(t, self.angle, self.terms), ring, self.fraction), first[1])]


def waves(t: Elements, angle: int, terms: int) -> np.ndarray:
    """Return sin and cos of `2 pi k t / 2^angle` for k = 1 .. terms: `(..., 2, terms)`."""
    phase = 2 * np.pi * np.arange(1, terms + 1) * t[..., None].astype(np.float64) / 2.0**angle
    return np.stack([np.sin(phase), np.cos(phase)], axis=-2)


def sigmoid(party: Party, ring: Ring, x: Elements, fraction: int, period: int = 5, terms: int = 5) -> Elements:
    """Return a share of the sigmoid of fixed-point numbers from -2^(period-1) to 2^(period-1).

    One round, for sin(a + b) = sin a cos b + cos a sin b: only x - t is opened, whatever the number of terms. Online
    2 (period + fraction) bits, offline 2 terms k, in a ring of k bits.

    Args:
        party: who runs it.
        ring: where the numbers lie.
        x: share of the numbers.
        fraction: bits behind the point.
        period: binary logarithm of the period.
        terms: how many sines.
    """
    angle = period + fraction
    circle = Ring(angle)
    with party.protocol("sigmoid"):
        t, shares = party.deal(Waves(angle, terms, ring.bits, fraction, x.shape))
        (d,) = party.open((circle, circle.subtract(circle.reduce(x), t)))
    weighted = encode(fourier_coefficients(period, terms) * waves(d, angle, terms), ring, fraction)
    # sin k d cos k t + cos k d sin k t: the known factor has its two rows the other way round.
    series = ring.reduce((weighted * shares[..., ::-1, :]).sum(axis=(-2, -1), dtype=ring.dtype))
    half = encode(np.full(x.shape, 0.5 * (party.index == 0)), ring, fraction)
    return ring.add(truncate(party, ring, series, fraction), half)


def fourier_coefficients(period: int, terms: int) -> np.ndarray:
    """Return b_k of sigmoid(x) = 1/2 + sum_k b_k sin(2 pi k x / 2^period), k = 1 .. terms.

    They are a discrete transform of 256 samples, as in the code of [1]; the integrals differ in the fifth digit.
    """
    x = np.linspace(-(2.0 ** (period - 1)), 2.0 ** (period - 1), 256, endpoint=False)
    odd = 1 / (1 + np.exp(-x)) - 0.5
    odd[0] = 0  # the jump between two periods
    k = np.arange(1, terms + 1)
    return np.asarray((-1.0) ** (k + 1) * np.fft.fft(odd).imag[k] / 128)

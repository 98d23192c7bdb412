"""Private prediction: a client's features and a federation's linear classifier, both in shares.

The client computes features by the public ViT. It and the owner of the classifier each give the two parties shares of
fixed-point numbers. The parties multiply by one extended triple (Morse-STF, see `bilinear`), add the bias, and find the
largest score by a tournament of comparisons (see `arithmetic.argmax`). Each sends the client its share of the place.
Nothing is truncated, so the classes are those of the same whole numbers in the clear.
"""

import time
from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.errors import ConfigError
from fedbayes.secure.arithmetic import COMPARISONS, argmax
from fedbayes.secure.bilinear import matmul
from fedbayes.secure.dealer import Dealer
from fedbayes.secure.party import Party, in_threads
from fedbayes.secure.rings import Elements, Ring, encode, size_in_bits
from fedbayes.secure.stream import SEED, Shares, expanded
from fedbayes.secure.transcript import Transcript

RING = Ring(48)
FRACTION = 12
"""Fractional bits of features and of weights; scores have twice as many."""
LARGEST_FEATURE = 128.0
HIGHEST = 2 ** (RING.bits - 3)
"""Scores stay below it in absolute value, so that comparisons of two of them are right."""


@final
@dataclass(frozen=True, eq=False)
class QuantisedLinear:
    """Whole numbers for `z @ weights + bias`: weights `(d, classes)` with `FRACTION` bits behind the point, bias twice.

    A class that is never predicted has weights 0 and the bias `-HIGHEST`, which is below every other score.
    """

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray, bias: np.ndarray) -> "QuantisedLinear":
        """Round a classifier; a bias of -inf rules a class out.

        Raises:
            ConfigError: if scores of features below `LARGEST_FEATURE` could leave the range of the ring.
        """
        is_used = np.isfinite(bias)
        weights, bias = np.where(is_used, weights, 0), np.where(is_used, bias, 0)
        largest = float((LARGEST_FEATURE * np.abs(weights).sum(0) + np.abs(bias)).max(initial=0))
        limit = HIGHEST / 4.0**FRACTION
        if not largest < limit / 2:  # half is left for rounding
            raise ConfigError(
                f"private=True: scores of this head may reach {largest:g}, and {RING.bits} bits hold {limit / 2:g}; "
                "train with smaller weights (optim.weight_decay), or predict without private."
            )
        rounded = np.rint(bias * 4.0**FRACTION).astype(np.int64)
        return cls(np.rint(weights * 2.0**FRACTION).astype(np.int64), np.where(is_used, rounded, -HIGHEST))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the scores `(N, classes)` of features `(N, d)` in the clear, int64: what the shares add up to."""
        result: np.ndarray = quantised(features) @ self.weights + self.bias
        return result


def quantised(features: np.ndarray) -> np.ndarray:
    """Return features with `FRACTION` bits behind the point, int64.

    Raises:
        ConfigError: if one is not below `LARGEST_FEATURE` in absolute value.
    """
    largest = float(np.abs(features).max(initial=0))
    if not largest < LARGEST_FEATURE:
        raise ConfigError(
            f"private=True: a feature is {largest:g}, and features below {LARGEST_FEATURE:g} fit; "
            "choose another backbone, or predict without private."
        )
    return RING.signed(encode(features, RING, FRACTION))


@final
@dataclass(frozen=True, eq=False)
class Classes:
    """Predicted classes `(N,)`, and the cost of the prediction of all N images.

    Attributes:
        classes: places of the largest scores, `(N,)`.
        transcript: bits, bytes, messages and rounds by phase and protocol, as party 0 counted them.
        input_bits: what client and owner send to the parties: a vector to one and a seed to the other, for each.
        output_bits: what the parties send to the client.
        seconds: of both parties and the dealer together, in threads of one process.
    """

    classes: np.ndarray
    transcript: Transcript
    input_bits: int
    output_bits: int
    seconds: float


def scores(party: Party, features: Elements, weights: Elements, bias: Elements) -> Elements:
    """Return a share of `features @ weights + bias`; one round, 2 (|features| + |weights|) elements online."""
    return RING.add(matmul(party, RING, features, weights), bias)


def predict(
    features: np.ndarray, classifier: QuantisedLinear, compare: str = "tree", dealer: Dealer | None = None
) -> Classes:
    """Predict features `(N, d)` of a client on shares, both parties in threads of this process.

    Args:
        features: of the client's images, floating.
        classifier: of the owner.
        compare: which comparison, a key of `arithmetic.COMPARISONS`.
        dealer: of correlated randomness; None draws seeds from the operating system.
    """
    secrets = [RING.reduce(a) for a in (quantised(features), classifier.weights, classifier.bias)]
    shared = [Shares.split(RING, secret) for secret in secrets]
    places = Ring(max(1, (len(classifier.bias) - 1).bit_length()))

    def program(party: Party) -> tuple[Elements, Transcript]:
        shares = [
            expanded(RING, secret.vector.shape, secret.seed) if party.index == 0 else secret.vector for secret in shared
        ]
        place, _ = argmax(party, RING, scores(party, *shares), COMPARISONS[compare])
        return places.reduce(place), party.transcript

    start = time.perf_counter()
    (first, transcript), (second, _) = in_threads(program, dealer)
    return Classes(
        classes=places.add(first, second).astype(np.int64),
        transcript=transcript,
        input_bits=size_in_bits([(RING, secret.shape) for secret in secrets]) + 8 * SEED * len(secrets),
        output_bits=2 * size_in_bits([(places, first.shape)]),
        seconds=time.perf_counter() - start,
    )

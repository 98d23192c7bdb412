"""How clients share their steps: fixed point, ring and aggregate, as both sides must know it."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.arrays import Arrays, base
from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.secure.aggregates import Rule
from fedbayes.secure.arithmetic import COMPARISONS
from fedbayes.secure.rings import Elements, Ring, decode, encode

AGGREGATES = ("mean", "krum", "multi_krum", "median", "trimmed_mean")
VECTOR, SEEDED = "share/0", "share/1"
"""Names of a client's two shares in its reply: a vector, and the seed of the other vector."""
FEWEST = 3  # replies; the sum of two shows each client the other's step


def flat(start: Arrays, learnt: Arrays) -> np.ndarray:
    """Return a step from where it started as one vector, float64, arrays in the order of their names."""
    return np.concatenate([(learnt[name] - base(start, name, learnt[name])).ravel() for name in sorted(learnt)])


def with_step(start: Arrays, form: Arrays, step: np.ndarray) -> Arrays:
    """Return parameters of a form after a step that `flat` gave."""
    names = sorted(form)
    parts = np.split(step, np.cumsum([form[name].size for name in names])[:-1])
    return {
        name: np.asarray(base(start, name, form[name]) + part.reshape(form[name].shape), dtype=form[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }


@final
@dataclass(frozen=True, kw_only=True)
class Sharing:
    """`privacy.secure` in `conf/config.yaml` explains the settings.

    Raises:
        ConfigError: if a value is out of range.
    """

    aggregate: str
    malicious_fraction: float
    bound: float | None
    ring: int
    fraction: int
    range: float
    weights: str
    compare: str

    def __post_init__(self) -> None:
        place = "privacy.secure"
        require_choice(f"{place}.aggregate", self.aggregate, AGGREGATES)
        if self.ring not in (32, 64):
            raise ConfigError(f"{place}.ring={self.ring} must be 32 or 64.")
        require_choice(f"{place}.weights", self.weights, ("public", "alike"))
        require_choice(f"{place}.compare", self.compare, tuple(COMPARISONS))
        require_whole(f"{place}.fraction", self.fraction, 1, 40)
        require_number(f"{place}.range", self.range, 2.0**-20, 2.0**20)
        require_number(f"{place}.malicious_fraction", self.malicious_fraction, 0, 0.5)
        if self.malicious_fraction == 0.5:
            raise ConfigError(f"{place}.malicious_fraction=0.5 leaves no honest majority; set it below.")
        if self.bound is not None:
            require_number(f"{place}.bound", self.bound, 0, open_low=True)

    @property
    def judges(self) -> bool:
        """Whether steps are compared, and not only summed."""
        return self.aggregate != "mean" or self.bound is not None

    @property
    def share_ring(self) -> Ring:
        """Where shares lie: for sums a ring with room for them, else the smallest that holds a step."""
        return Ring(self.fraction + max(0, math.ceil(math.log2(self.range))) + 2) if self.judges else Ring(self.ring)

    def encode(self, step: np.ndarray) -> Elements:
        """Return a step in fixed point; entries beyond the range are clipped to it."""
        return encode(np.clip(step, -self.range, self.range), self.share_ring, self.fraction)

    def decode(self, opened: np.ndarray, divisor: int) -> np.ndarray:
        """Return what an opened sum stands for, divided in the clear, float64."""
        return decode(Ring(64).reduce(opened), Ring(64), self.fraction) / divisor

    def rule(self, images: list[int], removed: int) -> Rule:
        """Return how steps of clients with so many images are combined; `removed` malicious ones are allowed for."""
        count = len(images)
        weights = tuple(images) if self.weights == "public" and self.aggregate == "mean" else (1,) * count
        bound = None if self.bound is None else math.floor((self.bound * 2.0**self.fraction) ** 2)
        fewest = 1 if bound is None or self.aggregate == "krum" else FEWEST
        return Rule(self.aggregate, weights, removed, bound, fewest)

    def require_room(self, size: int, weight: int) -> None:
        """Raise a ConfigError if sums of steps, or squares of their lengths, may not fit.

        Args:
            size: numbers in a step.
            weight: sum of the clients' weights in a round.
        """
        largest = math.log2(self.range) + self.fraction
        room = [(63 if self.judges else self.ring - 1) - largest - math.log2(max(weight, 1))]
        if self.aggregate in ("krum", "multi_krum") or self.bound is not None:
            # A distance is up to four squared lengths, and a score the sum of `weight` distances; differences double.
            room.append((59 - math.log2(max(size, 1)) - math.log2(max(weight, 1)) - 2 * largest) / 2)
        if min(room) <= 0:
            raise ConfigError(
                f"privacy.secure.fraction={self.fraction} leaves no room for {size} numbers of up to {self.range:g} "
                f"and weights of {weight} together; set it to {self.fraction + math.floor(min(room)) - 1} or less"
                f"{', or privacy.secure.weights=alike' if self.weights == 'public' and weight > 1 else ''}."
            )

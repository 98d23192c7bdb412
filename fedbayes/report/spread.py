"""Numbers of runs: where they stand in a summary, their mean over runs, and how they are shown."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

MISSING = "–"
"""Stands for a number that a run lacks."""


@final
@dataclass(frozen=True)
class Spread:
    """Mean over runs and its standard error; None for a single run."""

    mean: float
    error: float | None
    count: int

    def text(self, digits: int = 3) -> str:
        """Return it as in `0.800 ± 0.058`."""
        mean = f"{self.mean:,.{digits}f}"
        return mean if self.error is None else f"{mean} ± {self.error:,.{digits}f}"


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard error of the mean; None where there is no number."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Spread(statistics.fmean(values), error, len(values))


def spread_text(values: Sequence[float | None], digits: int = 3) -> str:
    """Return mean ± standard error of the numbers there are, or a dash."""
    return as_text(spread([value for value in values if value is not None]), digits)


def as_text(value: Spread | None, digits: int = 3) -> str:
    """Return a mean with its standard error, or a dash."""
    return MISSING if value is None else value.text(digits)


def number(value: object, digits: int = 3) -> str:
    """Return a number with so many decimals; a dash where there is none."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else MISSING


def size(value: object) -> str:
    """Return bytes in the unit that leaves one to three digits before the point."""
    if not isinstance(value, int | float):
        return MISSING
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(value) // 3), len(units) - 1) if value >= 1 else 0
    return f"{value / 1000**power:,.{1 if power else 0}f} {units[power]}"


def look_up(node: object, path: Sequence[str]) -> float | None:
    """Return the number at a place inside objects of objects; None where there is none."""
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, int | float) and not isinstance(node, bool) else None


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield single values of nested mappings by their dotted names; lists are single values."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

"""What a comparison says of each group of runs: which numbers of `summary.json`, under which names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedbayes.report.groups import Group, Spread, spread


@final
@dataclass(frozen=True)
class Measure:
    """A number of a summary.

    Attributes:
        label: the name of its column, with its unit.
        key: the name of its columns in CSV files.
        path: where it stands in the summary; a leading `state` is "final" or "best".
        better: 1 where more is better, -1 where less is, 0 where neither.
        scale: it is shown multiplied by this.
        digits: decimals shown.
    """

    label: str
    key: str
    path: tuple[str, ...]
    better: int = 0
    scale: float = 1.0
    digits: int = 3

    def of(self, group: Group, state: str) -> Spread | None:
        """Its mean over the seeds of a group, unscaled."""
        return spread(group.values(*self.place(state)))

    def place(self, state: str) -> tuple[str, ...]:
        """Where it stands in the summary."""
        return tuple(state if name == "state" else name for name in self.path)

    def text(self, found: Spread | None) -> str:
        """How it is shown; a dash where there is none."""
        if found is None:
            return "–"
        error = None if found.error is None else found.error * self.scale
        return Spread(found.mean * self.scale, error, found.count).text(self.digits)


MEASURES = (
    Measure("accuracy", "accuracy", ("state", "accuracy", "mean"), 1),
    Measure("NLL (nats)", "nll", ("state", "nll"), -1),
    Measure("ECE", "ece", ("state", "ece"), -1),
    Measure("worst tenth", "accuracy_worst_decile", ("state", "accuracy", "worst_decile"), 1),
    Measure("Brier", "brier", ("state", "brier"), -1),
    Measure("AURC", "aurc", ("state", "aurc"), -1),
    Measure("prompt uncertainty (nats)", "prompt_uncertainty", ("state", "prompt_uncertainty")),
    Measure("backdoor success", "backdoor_success", ("state", "backdoor_success"), -1),
    Measure("up (MB)", "bytes_up", ("bytes", "up"), 0, 1e-6, 2),
    Measure("down (MB)", "bytes_down", ("bytes", "down"), 0, 1e-6, 2),
    Measure("time (s)", "seconds_total", ("seconds", "total"), 0, 1.0, 1),
)
HEADLINE = MEASURES[:3]
"""What the terminal shows."""


def best(spreads: Sequence[Sequence[Spread | None]], measures: Sequence[Measure]) -> list[float | None]:
    """The best mean of each measure over groups; None where neither more nor less is better, or there is one group."""
    found: list[float | None] = []
    for index, measure in enumerate(measures):
        means = [spread.mean for row in spreads if (spread := row[index]) is not None]
        choose = max if measure.better > 0 else min
        found.append(choose(means) if measure.better and len(means) > 1 else None)
    return found


def known(measures: Sequence[Measure], groups: Sequence[Group], state: str) -> tuple[Measure, ...]:
    """The measures that at least one group has."""
    return tuple(one for one in measures if any(group.values(*one.place(state)) for group in groups))

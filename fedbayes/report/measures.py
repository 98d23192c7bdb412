"""What a comparison shows of each group of runs: which numbers of `summary.json`, under which names."""

from collections.abc import Sequence
from typing import NamedTuple

from fedbayes.report.groups import Group
from fedbayes.report.spread import Spread, as_text


class Measure(NamedTuple):
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
        """Return its mean over the runs of a group, unscaled."""
        return group.spread(*self.place(state))

    def place(self, state: str) -> tuple[str, ...]:
        """Return where it stands in the summary."""
        return tuple(state if name == "state" else name for name in self.path)

    def text(self, value: Spread | None) -> str:
        """Return how it is shown; a dash where there is none."""
        if value is not None:
            error = None if value.error is None else value.error * self.scale
            value = Spread(value.mean * self.scale, error, value.count)
        return as_text(value, self.digits)


VALIDATION = Measure("validation accuracy", "validation_accuracy", ("validation", "accuracy"), 1)
MEASURES = (
    Measure("accuracy", "accuracy", ("state", "accuracy", "mean"), 1),
    Measure("NLL (nats)", "nll", ("state", "nll"), -1),
    Measure("ECE", "ece", ("state", "ece"), -1),
    Measure("worst decile", "accuracy_worst_decile", ("state", "accuracy", "worst_decile"), 1),
    Measure("Brier", "brier", ("state", "brier"), -1),
    Measure("AURC", "aurc", ("state", "aurc"), -1),
    Measure("prompt uncertainty (nats)", "prompt_uncertainty", ("state", "prompt_uncertainty")),
    Measure("backdoor success", "backdoor_success", ("state", "backdoor_success"), -1),
    Measure("accuracy on the emulator", "emulator_accuracy", ("state", "emulator", "accuracy", "mean"), 1),
    Measure("plugged in minus emulator", "gap_accuracy", ("state", "gap", "accuracy", "mean")),
    Measure("up (MB)", "bytes_up", ("bytes", "up"), 0, 1e-6, 2),
    Measure("down (MB)", "bytes_down", ("bytes", "down"), 0, 1e-6, 2),
    Measure("time (s)", "seconds_total", ("seconds", "total"), 0, 1.0, 1),
    VALIDATION,
    Measure("validation NLL (nats)", "validation_nll", ("validation", "nll"), -1),
)
HEADLINE = MEASURES[:3]
"""What the terminal shows."""
ON_VALIDATION = (VALIDATION, MEASURES[-1])


def known(measures: Sequence[Measure], groups: Sequence[Group], state: str) -> tuple[Measure, ...]:
    """Return the measures that at least one group has."""
    return tuple(measure for measure in measures if any(group.values(*measure.place(state)) for group in groups))

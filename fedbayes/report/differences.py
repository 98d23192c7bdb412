"""Whether groups of runs differ: paired differences on equal test images, with 95 % intervals."""

import math
from collections.abc import Sequence
from pathlib import Path

from fedbayes.errors import RunError
from fedbayes.metrics.paired import SCORES, Difference, paired_difference
from fedbayes.report.groups import Group
from fedbayes.report.measures import Measure
from fedbayes.report.spread import Spread
from fedbayes.report.tables import Cell, Table
from fedbayes.storage.run_dir import PREDICTIONS

_SCALES = (("accuracy (points)", 100, 2), ("NLL (nats)", 1, 3))
"""Label, scale and decimals of the differences in `SCORES`."""


def pairs(first: Group, second: Group) -> list[tuple[Path, Path]]:
    """Return the runs of two groups that have all seeds in common and kept their predictions."""
    runs = {tuple(seeds.items()): run for seeds, (run, _) in zip(second.seeds, second.runs, strict=True)}
    matched = [(run, runs.get(tuple(seeds.items()))) for seeds, (run, _) in zip(first.seeds, first.runs, strict=True)]
    return [(a, b) for a, b in matched if b and (a / PREDICTIONS).exists() and (b / PREDICTIONS).exists()]


def difference(first: Group, second: Group, score: str) -> Difference | None:
    """Return first group minus second; nothing where their runs cannot be paired."""
    matched = pairs(first, second)
    try:
        return paired_difference(matched, score) if matched else None
    except RunError:  # other images, or a single client
        return None


def differences(groups: Sequence[Group], names: Sequence[str], reference: int, compared: Sequence[int]) -> Table:
    """Return the paired differences of groups to one of them."""
    rows: list[list[str | Cell]] = []
    places = [place for place in compared if place != reference]
    for place in places:
        cells: list[str | Cell] = [names[place], str(len(pairs(groups[place], groups[reference])))]
        for score, (_, scale, digits) in zip(SCORES, _SCALES, strict=True):
            value = difference(groups[place], groups[reference], score)
            if value is None:
                cells.append("–")
                continue
            mean, low, high = (f"{scale * each:+.{digits}f}" for each in (value.mean, value.low, value.high))
            mark = " *" if value.is_clear else ""
            cells.append(Cell(f"{mean} [{low}, {high}]{mark}", scale * value.mean, is_best=value.is_clear))
        rows.append(cells)
    caption = (
        f"Differences to {names[reference]} after the last round, paired by test image: mean [95 % interval over "
        "clients and images]; * the interval excludes 0"
    )
    return Table(caption, ["group", "pairs of runs", *(label for label, *_ in _SCALES)], rows, 1, places, (0, 0, 1, -1))


def best_row(
    groups: Sequence[Group], spreads: Sequence[Sequence[Spread | None]], column: int, measure: Measure, state: str
) -> int | None:
    """Return the row with the best mean of a measure, if it is clearly better than the second best.

    Clearly: the 95 % interval of the difference excludes 0. It is the paired one where there is one, else that of two
    means with their standard errors; single runs without predictions differ clearly where they are shown differently.
    """
    values = [(row, value) for row, each in enumerate(spreads) if (value := each[column]) is not None]
    if not measure.better or len(values) < 2:
        return None
    (best, first), (other, second), *_ = sorted(values, key=lambda pair: -measure.better * pair[1].mean)
    if measure.text(first) == measure.text(second):
        return None
    paired = (
        difference(groups[best], groups[other], measure.key) if state == "final" and measure.key in SCORES else None
    )
    if paired is not None:
        return best if paired.is_clear else None
    error = math.hypot(first.error or 0.0, second.error or 0.0)
    return best if abs(first.mean - second.mean) > 1.96 * error else None

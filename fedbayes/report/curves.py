"""Learning curves from the rows of `metrics.jsonl`, of one run or averaged over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.report.groups import Spread, spread
from fedbayes.report.page import legend
from fedbayes.report.svg import Chart, padded, swatch

Rows = Sequence[Mapping[str, Any]]

LEARNING = (
    ("train", "loss", "Train loss", "nats per image"),
    ("validation", "accuracy", "Validation accuracy", "share right, mean over clients"),
    ("validation", "nll", "Validation NLL", "nats per image"),
)
"""What a run's learning curves show: phase, name in a row, title and unit."""


def series(rows: Rows, phase: str, name: str) -> dict[int, float]:
    """A number by round, where there is any."""
    found = {
        row["round"]: row[name]
        for row in rows
        if row.get("phase") == phase and row.get("round") is not None and isinstance(row.get(name), int | float)
    }
    return dict(sorted(found.items()))


def middle(clients: Rows, phase: str, name: str) -> list[tuple[int, float, float]]:
    """Rounds, and between what the middle 80 % of the clients lay in each.

    Args:
        clients: rows of `clients.jsonl`.
        phase: theirs.
        name: of the number.
    """
    import numpy as np

    found: dict[int, list[float]] = {}
    for row in clients:
        if row.get("phase") == phase and row.get("round") is not None and isinstance(row.get(name), int | float):
            found.setdefault(row["round"], []).append(row[name])
    ends = {at: np.quantile(values, (0.1, 0.9)).tolist() for at, values in sorted(found.items())}
    return [(at, low, high) for at, (low, high) in ends.items()]


def averaged(runs: Sequence[Rows], phase: str, name: str) -> dict[int, Spread]:
    """Mean and standard error over runs by round, for the rounds that all those have which have any."""
    curves = [curve for curve in (series(rows, phase, name) for rows in runs) if curve]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    found = {at: spread([curve[at] for curve in curves]) for at in sorted(shared)}
    return {at: value for at, value in found.items() if value is not None}


def curve_chart(
    title: str,
    unit: str,
    curves: Sequence[tuple[str, int, int | None, Mapping[int, Spread]]],
    *,
    guide: float | None = None,
    best: int | None = None,
    note: str = "",
) -> str:
    """A chart of lines over rounds, each with a band of ± its standard error.

    Args:
        title: of the chart.
        unit: label of the vertical axis.
        curves: name, series, group (None for none) and values of each line.
        guide: a level to mark.
        best: a round to mark.
        note: HTML below the title.

    Returns:
        A figure; nothing where no line has a value.
    """
    curves = [curve for curve in curves if curve[3]]
    if not curves:
        return ""
    ends = [end for *_, line in curves for found in line.values() for end in _ends(found)]
    if guide is not None:
        ends.append(guide)
    rounds = [at for *_, line in curves for at in line]
    chart = Chart(title, "round", unit, (min(rounds), max(rounds)), padded(ends), whole_x=True)
    if guide is not None:
        chart.guide([(min(rounds), guide), (max(rounds), guide)])
    if best is not None:
        chart.guide([(best, min(ends)), (best, max(ends))])
    for _, number, group, line in curves:
        chart.band([(at, *_ends(found)) for at, found in line.items() if found.error is not None], number, group)
    for name, number, group, line in curves:
        chart.line([(at, found.mean) for at, found in line.items()], number, name, group)
    last = "; ".join(f"{name} {_last(line):.3g}" for name, _, _, line in curves[:12])
    more = "" if len(curves) <= 12 else f" and {len(curves) - 12} more"
    names = legend([(swatch(number), name) for name, number, group, _ in curves if group is None and len(curves) > 1])
    return chart.figure(f"Lines over rounds {min(rounds)} to {max(rounds)}. At the end: {last}{more}.", note, names)


def _ends(found: Spread) -> tuple[float, float]:
    error = found.error or 0.0
    return found.mean - error, found.mean + error


def _last(line: Mapping[int, Spread]) -> float:
    return line[max(line)].mean

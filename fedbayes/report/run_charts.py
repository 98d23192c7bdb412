"""Charts of one run: how it learnt, what that cost, and where the time went."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbayes.report import page
from fedbayes.report.curves import LEARNING, Rows, curve_chart, middle, series
from fedbayes.report.groups import Spread, look_up
from fedbayes.report.result_tables import number
from fedbayes.report.svg import Chart, padded

_SERIES = {"train": 4, "validation": 1}


def learning(rows: Rows, clients: Rows, summary: Mapping[str, Any]) -> str:
    """Train loss, validation accuracy and validation NLL over rounds, with the middle of the clients."""
    best = look_up(summary, ("best", "round"))
    figures = []
    for phase, name, title, unit in LEARNING:
        colour = _SERIES[phase]
        line = series(rows, phase, name)
        if not line:
            continue
        band = [ends for ends in middle(clients, phase, name) if ends[0] in line]
        shown = [*line.values(), *(end for _, *ends in band for end in ends)]
        chart = Chart(title, "round", unit, (min(line), max(line)), padded(shown), whole_x=True)
        chart.band(band, colour)
        notes = ["Band: the middle 80 % of the clients."] if len(band) > 1 else []
        if best is not None and phase == "validation":
            chart.guide([(best, min(shown)), (best, max(shown))])
            notes.append(f"Dashed: best by validation, round {best:.0f}.")
        chart.line(list(line.items()), colour, f"{title}: {number(line[max(line)])} at the end")
        (first, start), (last, end) = min(line.items()), max(line.items())
        alt = f"A line from {number(start)} in round {first} to {number(end)} in round {last}."
        figures.append(chart.figure(alt, " ".join(notes)))
    return page.charts(*figures)


def trade_offs(rows: Rows) -> str:
    """Validation accuracy against ECE and against the bytes sent so far, a dot for each evaluation."""
    accuracy = series(rows, "validation", "accuracy")
    ece = series(rows, "validation", "ece")
    ways = [series(rows, "train", f"bytes_{way}") for way in ("up", "down")]
    sent: dict[int, float] = {}
    total = 0.0
    for at in sorted({at for way in ways for at in way}):
        total += sum(way.get(at, 0.0) for way in ways)
        sent[at] = total
    calibration = _trajectory(
        "Accuracy against ECE",
        "validation ECE",
        [(at, ece[at], accuracy[at]) for at in accuracy if at in ece],
        "A dot for each round that was validated, joined in their order. Upper left is better.",
    )
    spent = _trajectory(
        "Accuracy against bytes sent",
        "bytes so far, both ways, all clients together",
        [(at, sent[at], accuracy[at]) for at in accuracy if at in sent] if total else [],
        "A dot for each round that was validated. Upper left is better.",
    )
    return page.charts(calibration, spent)


def _trajectory(title: str, unit: str, points: Sequence[tuple[int, float, float]], note: str) -> str:
    """Dots of `(round, x, accuracy)` joined in their order, the first and the last with their round beside them."""
    if not points:
        return ""
    xs, ys = [x for _, x, _ in points], [y for *_, y in points]
    chart = Chart(title, unit, "validation accuracy", padded(xs), padded(ys), size=(480, 340))
    chart.line([(x, y) for _, x, y in points], 1, title)
    for place, (at, x, y) in enumerate(points):
        label = f"round {at}" if place in (0, len(points) - 1) else ""
        name = f"round {at}: accuracy {y:.4f}, {unit} {number(x, 4 if x < 1 else 0)}"
        chart.point(x, y, 1, name, radius=3, label=label)
    (first, *start), (last, *end) = points[0], points[-1]
    said = [f"{number(x, 3 if x < 1 else 0)} and accuracy {number(y)}" for x, y in (start, end)]
    return chart.figure(f"From {unit} {said[0]} in round {first} to {said[1]} in round {last}.", note)


def by_round(rows: Rows) -> Sequence[tuple[str, int, Mapping[int, float]]]:
    """Seconds of each phase by round."""
    phases = list(dict.fromkeys(str(row["phase"]) for row in rows if row.get("phase")))
    return [(phase, index, series(rows, phase, "seconds")) for index, phase in enumerate(phases)]


def seconds_by_round(rows: Rows) -> str:
    """A line for the training and each evaluation."""
    lines: list[tuple[str, int, int | None, Mapping[int, Spread]]] = [
        (phase, index + 1, None, {at: Spread(value, None, 1) for at, value in line.items()})
        for phase, index, line in by_round(rows)
        if line
    ]
    return curve_chart("Seconds by round", "seconds", lines) if lines else ""

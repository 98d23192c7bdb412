"""Charts over rounds: how runs learned, what their posterior did, and what accuracy cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedbayes.inference.thresholds import SATURATED
from fedbayes.report.chart import SQUARE, Chart, Series, padded
from fedbayes.report.spread import Spread, look_up, number, spread
from fedbayes.report.style import SOFT

Rows = Sequence[Mapping[str, Any]]
"""Of `metrics.jsonl` or `clients.jsonl`."""
Lines = Sequence[tuple[Series, Mapping[int, Spread]]]
IMPORTANCE = "importance_"
"""Leads the names of blocks' importance in `metrics.jsonl`."""
_PHASES = {"train": 4, "validation": 1}
"""Colours of the lines of a run."""


class Curve(NamedTuple):
    """A number over rounds: its phase and name in `metrics.jsonl`, and title and vertical axis of its chart."""

    phase: str
    name: str
    title: str
    unit: str


LEARNING = (
    Curve("train", "loss", "Train loss", "nats per image"),
    Curve("validation", "accuracy", "Validation accuracy", "accuracy, mean over clients"),
    Curve("validation", "nll", "Validation NLL", "nats per image"),
)
COMPARED = (*LEARNING[1:], LEARNING[0], Curve("validation", "ece", "Validation ECE", "ECE, pooled over clients"))


class Panel(NamedTuple):
    """A chart of the posterior: its lines with a label and a colour each, a note, and a level to mark."""

    name: str
    title: str
    unit: str
    lines: tuple[tuple[str, str, str, int], ...]
    note: str
    guide: float | None = None


_KL = Panel(
    "kl", "KL to the prior, in training", "nats per image", (("train", "kl", "KL", 6),),
    "How far the codes of images are from the prior.",
)  # fmt: skip
_POSTERIOR = (
    Panel(
        "components", "Effective components, in training", "components",
        (("train", "effective_components", "effective components", 5),),
        "How many of the K + 1 components of the bound matter; 1: semi-implicit in name only.",
    ),
    Panel(
        "saturation", "Bound saturation, in training", "fraction of log(K + 1)",
        (("train", "bound_saturation", "saturation", 9),),
        f"Above {SATURATED} (dashed) the bound is limited by K.", SATURATED,
    ),
    Panel(
        "mixing", "Mixing ratio", "fraction of the code's variance",
        (
            ("train", "mixing_ratio_received", "as received by clients", 1),
            ("train", "mixing_ratio_sent", "as sent by clients", 4),
            ("validation", "mixing_ratio", "on validation", 2),
        ),
        "Fraction of the code's variance that comes from the mixing distribution; near 0: collapsed.",
    ),
)  # fmt: skip


def series(rows: Rows, phase: str, name: str) -> dict[int, float]:
    """Return a number by round, where there is any."""
    values = {row["round"]: value for row in rows if (value := _value(row, phase, name)) is not None}
    return dict(sorted(values.items()))


def _value(row: Mapping[str, Any], phase: str, name: str) -> float | None:
    is_asked = row.get("phase") == phase and row.get("round") is not None
    return look_up(row, (name,)) if is_asked else None


def averaged(runs: Sequence[Rows], phase: str, name: str) -> dict[int, Spread]:
    """Return mean and standard error over runs by round, for the rounds that all those have which have any."""
    curves = [curve for curve in (series(rows, phase, name) for rows in runs) if curve]
    shared = set.intersection(*map(set, curves)) if curves else set()
    spreads = ((at, spread([curve[at] for curve in curves])) for at in sorted(shared))
    return {at: value for at, value in spreads if value is not None}


def middle(clients: Rows, phase: str, name: str) -> list[tuple[int, float, float]]:
    """Return rounds of `clients.jsonl`, and the ends of the middle 80 % of the clients in each."""
    import numpy as np

    values: dict[int, list[float]] = {}
    for row in clients:
        if (value := _value(row, phase, name)) is not None:
            values.setdefault(row["round"], []).append(value)
    return [(at, *np.quantile(each, (0.1, 0.9)).tolist()) for at, each in sorted(values.items())]


def curves(name: str, title: str, unit: str, lines: Lines, guide: float | None = None, note: str = "") -> Chart | None:
    """Draw lines over rounds, each with a band of ± its standard error; nothing where no line has a value."""
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    rounds = [at for _, values in lines for at in values]
    chart = Chart(name, title, "round", unit)
    chart.whole_numbers()
    if guide is not None:
        chart.guide([min(rounds), max(rounds)], [guide, guide])
    for entry, values in lines:
        ends = [(at, v.mean - v.error, v.mean + v.error) for at, v in values.items() if v.error is not None]
        chart.band(ends, entry)
    for entry, values in lines:
        chart.line(list(values), [value.mean for value in values.values()], entry, entry.name)
    last = "; ".join(f"{entry.name} {values[max(values)].mean:.3g}" for entry, values in lines[:12])
    more = "" if len(lines) <= 12 else f" and {len(lines) - 12} more"
    chart.description = f"Lines over rounds {min(rounds)} to {max(rounds)}. At the end: {last}{more}."
    chart.note = note
    chart.legend = [entry for entry, _ in lines if len(lines) > 1]
    return chart


def learning(rows: Rows, clients: Rows, best: float | None) -> list[Chart]:
    """Draw loss, accuracy and NLL of a run over rounds, with the middle 80 % of the clients and the best round."""
    charts = []
    for curve in LEARNING:
        values = {at: Spread(value, None, 1) for at, value in series(rows, curve.phase, curve.name).items()}
        entry = Series(_PHASES[curve.phase], curve.title)
        chart = curves(f"{curve.phase}_{curve.name}", curve.title, curve.unit, [(entry, values)])
        if chart is None:
            continue
        ends = [row for row in middle(clients, curve.phase, curve.name) if row[0] in values]
        if len(ends) > 1:
            chart.band(ends, entry)
            chart.note = "Band: the middle 80 % of the clients."
        if best is not None and curve.phase == "validation":
            chart.axes.axvline(best, color=SOFT, linestyle=(0, (5, 4)), linewidth=0.8)
            chart.note = f"{chart.note} Dashed: best by validation, round {best:.0f}.".strip()
        charts.append(chart)
    return charts


def importance(rows: Rows) -> list[Chart]:
    """Draw the importance of each block over rounds; nothing where it is not learnt."""
    blocks = sorted({int(name.removeprefix(IMPORTANCE)) for row in rows for name in row if name.startswith(IMPORTANCE)})
    lines = [
        (Series(place, f"block {b}"), averaged([rows], "train", f"{IMPORTANCE}{b}")) for place, b in enumerate(blocks)
    ]
    note = "A block whose suppression hurts more than that of others becomes more important, and is trained more often."
    chart = curves("importance", "Importance of blocks", "importance, at first 0", lines, note=note)
    return [] if chart is None else [chart]


def compared(groups: Sequence[Sequence[Rows]], names: Sequence[str]) -> list[Chart]:
    """Draw validation accuracy, NLL and ECE and the train loss of groups of runs over rounds, a line for each group."""
    note = "Line: mean over runs; band: ± standard error."
    charts = []
    for curve in COMPARED:
        lines = [(Series(i, names[i], i), averaged(runs, curve.phase, curve.name)) for i, runs in enumerate(groups)]
        charts.append(curves(f"{curve.phase}_{curve.name}", curve.title, curve.unit, lines, note=note))
    return [chart for chart in charts if chart]


def posterior(rows: Rows) -> list[Chart]:
    """Draw what the posterior of a run did over rounds; nothing for a method without one."""
    charts = [
        curves(
            panel.name, panel.title, panel.unit,
            [(Series(place, label), averaged([rows], phase, name)) for phase, name, label, place in panel.lines],
            panel.guide, panel.note,
        )
        for panel in _panels([rows])
    ]  # fmt: skip
    return [chart for chart in charts if chart] if series(rows, "train", "kl") else []


def posteriors(groups: Sequence[Sequence[Rows]], names: Sequence[str]) -> list[Chart]:
    """Draw what the posteriors of several groups of runs did, a line for each group that has one."""
    having = [i for i, runs in enumerate(groups) if any(series(rows, "train", "kl") for rows in runs)]
    charts = []
    for panel in _panels([rows for i in having for rows in groups[i]]):
        for phase, name, label, _ in panel.lines:
            title = panel.title if len(panel.lines) == 1 else f"{panel.title}, {label}"
            lines = [(Series(i, names[i], i), averaged(groups[i], phase, name)) for i in having]
            charts.append(curves(f"{phase}_{name}", title, panel.unit, lines, panel.guide, panel.note))
    return [chart for chart in charts if chart]


def _panels(runs: Sequence[Rows]) -> list[Panel]:
    """The charts; the log of the number of classes is marked in the first where all runs share it."""
    levels = {round(value, 9) for rows in runs for value in series(rows, "train", "log_classes").values()}
    if len(levels) != 1:
        return [_KL, *_POSTERIOR]
    (level,) = levels
    note = f"{_KL.note} Dashed: log of the number of classes, {level:.3f}, all that a label can pay for it."
    return [_KL._replace(note=note, guide=level), *_POSTERIOR]


def trade_offs(rows: Rows) -> list[Chart]:
    """Draw validation accuracy against ECE and against the bytes sent so far, a dot for each evaluation."""
    accuracy, ece = series(rows, "validation", "accuracy"), series(rows, "validation", "ece")
    ways = [series(rows, "train", f"bytes_{way}") for way in ("up", "down")]
    volume: dict[int, float] = {}
    total = 0.0
    for at in sorted({at for way in ways for at in way}):
        total += sum(way.get(at, 0.0) for way in ways)
        volume[at] = total
    note = "A dot for each round that was validated, joined in their order. Upper left is better."
    return [
        _trajectory(f"accuracy_{key}", title, unit, [(at, x[at], accuracy[at]) for at in accuracy if at in x], note)
        for key, title, unit, x in (
            ("ece", "Accuracy against ECE", "validation ECE", ece),
            ("bytes", "Accuracy against bytes sent", "bytes so far, both ways, all clients", volume if total else {}),
        )
        if accuracy.keys() & x.keys()
    ]


def _trajectory(name: str, title: str, unit: str, points: Sequence[tuple[int, float, float]], note: str) -> Chart:
    """Draw dots of `(round, x, accuracy)` joined in their order, the first and the last with their round."""
    entry = Series(1)
    xs, ys = [x for _, x, _ in points], [y for *_, y in points]
    texts = [f"round {at}: accuracy {y:.4f}, {unit} {number(x, 4 if x < 1 else 0)}" for at, x, y in points]
    chart = Chart(name, title, unit, "validation accuracy", SQUARE)
    chart.axes.set(xlim=padded(xs), ylim=padded(ys))
    chart.line(xs, ys, entry, title)
    chart.dots(xs, ys, entry, texts)
    for place in sorted({0, len(points) - 1}):
        chart.label(xs[place], ys[place], f"round {points[place][0]}", entry, below=place == 0)
    chart.description = f"From {texts[0]} to {texts[-1]}."
    chart.note = note
    return chart


def seconds_by_round(rows: Rows) -> list[Chart]:
    """Draw the seconds of training and of each evaluation over rounds."""
    phases = dict.fromkeys(str(row["phase"]) for row in rows if row.get("phase"))
    lines = [
        (Series(i + 1, phase), {at: Spread(value, None, 1) for at, value in series(rows, phase, "seconds").items()})
        for i, phase in enumerate(phases)
    ]
    chart = curves("seconds_by_round", "Seconds by round", "seconds", lines)
    return [] if chart is None else [chart]

"""Charts of a comparison: a line, a dot or a diagram for each group of runs."""

import html
from collections.abc import Sequence

from fedbayes.report import page
from fedbayes.report.comparison import Comparison
from fedbayes.report.confidence_charts import averaged_risk, pooled_bins, reliability, risk_coverage
from fedbayes.report.curves import Rows, averaged, curve_chart
from fedbayes.report.groups import Group, Spread, look_up, spread
from fedbayes.report.measures import Measure, known
from fedbayes.report.phases import phase_chart
from fedbayes.report.posterior_charts import of_groups
from fedbayes.report.result_tables import PHASES
from fedbayes.report.svg import Chart, padded, swatch
from fedbayes.storage.predictions import Predictions

_CURVES = (
    ("validation", "accuracy", "Validation accuracy", "share right, mean over clients"),
    ("validation", "nll", "Validation NLL", "nats per image"),
    ("train", "loss", "Train loss", "nats per image"),
    ("validation", "ece", "Validation ECE", "pooled over clients"),
)
_DIAGNOSTICS = (
    Measure("KL in the last round of training (nats)", "kl", ("train", "kl"), digits=1),
    Measure("prompt uncertainty on test (nats)", "prompt_uncertainty", ("state", "prompt_uncertainty"), digits=4),
    Measure("mixing ratio on test", "mixing_ratio", ("state", "mixing_ratio")),
    Measure("mixing kept by averaging", "mixing_kept", ("state", "mixing_kept")),
    Measure("effective components in training", "effective_components", ("state", "effective_components"), digits=2),
    Measure("bound saturation in training", "bound_saturation", ("state", "bound_saturation")),
)
_MOST_POINTS = 200
_MOST_DIAGRAMS = 12
"""Groups up to which their reliability diagrams stand open."""


def curves(rows: Sequence[Sequence[Rows]], names: Sequence[str]) -> str:
    """Loss, accuracy, NLL and ECE over rounds, a line for each group."""
    figures = []
    for phase, name, title, unit in _CURVES:
        lines = [(names[index], index, index, averaged(runs, phase, name)) for index, runs in enumerate(rows)]
        figures.append(curve_chart(title, unit, lines, note="Line: mean over seeds; band: ± standard error."))
    return _legend(names) + page.charts(*figures) if any(figures) else ""


def _legend(names: Sequence[str], groups: Sequence[int] | None = None) -> str:
    places = range(len(names)) if groups is None else groups
    items = "".join(
        f'<li data-group="{i}">{swatch(i)}{html.escape(name)}</li>' for i, name in zip(places, names, strict=True)
    )
    return f"<ul class=legend>{items}</ul>"


def calibration(table: Comparison, names: Sequence[str]) -> str:
    """Accuracy against ECE and NLL, a dot for each group."""
    accuracy = [_of(group, table.state, "accuracy", "mean") for group in table.groups]
    figures = []
    for key, title, unit in (("ece", "Accuracy against ECE", "ECE"), ("nll", "Accuracy against NLL", "NLL (nats)")):
        other = [_of(group, table.state, key) for group in table.groups]
        note = "Upper left is better. Bars: ± standard error over seeds. Numbers are those of the table."
        far = key == "nll" and all(found is None or found.mean > 0 for found in other)
        note += " The scale of the NLL is logarithmic." if far else ""
        figures.append(_scatter(title, unit, other, accuracy, names, note, log_x=far))
    return page.charts(*figures)


def confidence(table: Comparison, predictions: Sequence[Sequence[Predictions]], names: Sequence[str]) -> str:
    """Risk and coverage, a line for each group, and a reliability diagram of each."""
    aurc = [_text(_of(group, "final", "aurc")) for group in table.groups]
    lines = [(names[i], i, i, averaged_risk(found, _MOST_POINTS), aurc[i]) for i, found in enumerate(predictions)]
    diagrams = []
    for index, group in enumerate(table.groups):
        bins = pooled_bins([(summary.get(table.state) or {}).get("reliability") or {} for _, summary in group.runs])
        ece, floor = (_text(_of(group, table.state, name)) for name in ("ece", "ece_floor"))
        if diagram := reliability(f"Reliability: {names[index]}", bins, ece, floor, small=True):
            diagrams.append(f'<div data-group="{index}">{diagram}</div>')
    note = (
        "<p>Share right in bins of confidence, images of all seeds together. Dashed: perfect calibration. Dots: ± 1 "
        "standard error if calibrated. ECE: mean over seeds, each on its own images.</p>"
    )
    reliable = page.folded(
        "Reliability diagrams", note + page.charts(*diagrams, small=True), opened=len(diagrams) <= _MOST_DIAGRAMS
    )
    risk = risk_coverage(lines)
    return (_legend(names) + page.charts(risk) if risk else "") + (reliable if diagrams else "")


def posterior(table: Comparison, rows: Sequence[Sequence[Rows]], names: Sequence[str]) -> str:
    """What the posteriors did over rounds, and where they ended; nothing where no group has one."""
    drawn = of_groups(rows, names)
    if not drawn:
        return ""
    having = [i for i, group in enumerate(table.groups) if group.values("train", "kl")]
    measures = known(_DIAGNOSTICS, table.groups, table.state)
    lines = [[names[i], *(one.text(one.of(table.groups[i], table.state)) for one in measures)] for i in having]
    head = ["group", *(one.label for one in measures)]
    what = "last round" if table.state == "final" else "round best by validation"
    caption = f"The posterior in the {what}: mean over seeds ± standard error"
    at_end = page.table(caption, head, lines, groups=having) if lines and measures else ""
    legend = _legend([names[i] for i in having], having)
    return f"<p>Lines: mean over seeds; bands: ± standard error.</p>{legend}{drawn}{at_end}"


def sent(table: Comparison, names: Sequence[str]) -> str:
    """Accuracy against all bytes of a run; methods that send nothing stand at the left edge."""
    accuracy = [_of(group, table.state, "accuracy", "mean") for group in table.groups]
    ways = [_sent(group) for group in table.groups]
    least = min((found.mean for found in ways if found is not None and found.mean > 0), default=None)
    if least is None:
        return ""
    silent = [index for index, found in enumerate(ways) if found is not None and found.mean <= 0]
    moved = [Spread(least / 3, None, found.count) if i in silent and found else found for i, found in enumerate(ways)]
    note = "Both ways and all clients together, on a logarithmic scale. Upper left is better."
    if silent:
        note += f" At the left edge, sending nothing: {html.escape(', '.join(names[i] for i in silent))}."
    return page.charts(_scatter("Accuracy against bytes sent", "bytes", moved, accuracy, names, note, log_x=True))


def _sent(group: Group) -> Spread | None:
    ways = [(look_up(summary, ("bytes", "up")), look_up(summary, ("bytes", "down"))) for _, summary in group.runs]
    return spread([up + down for up, down in ways if up is not None and down is not None])


def _scatter(
    title: str,
    unit: str,
    across: Sequence[Spread | None],
    accuracy: Sequence[Spread | None],
    names: Sequence[str],
    note: str,
    *,
    log_x: bool = False,
) -> str:
    dots = [(i, x, y) for i, (x, y) in enumerate(zip(across, accuracy, strict=True)) if x is not None and y is not None]
    if not dots:
        return ""
    xs = [end for _, x, _ in dots for end in (x.mean - (x.error or 0), x.mean + (x.error or 0))]
    ys = [end for _, _, y in dots for end in (y.mean - (y.error or 0), y.mean + (y.error or 0))]
    means = [x.mean for _, x, _ in dots]
    x_range = (min(means) / 1.25, max(means) * 1.4) if log_x else padded(xs)
    chart = Chart(title, unit, "test accuracy, mean over clients", x_range, padded(ys), log_x=log_x, size=(480, 340))
    for index, x, y in dots:
        label, errors = f"{names[index]}: accuracy {y.text()}, {unit} {x.text()}", (x.error, y.error)
        chart.point(x.mean, y.mean, index, label, index, errors=errors, label=str(index + 1))
    top = max(dots, key=lambda dot: dot[2].mean)
    best = f"{names[top[0]]}: {top[2].text()}, {unit} {top[1].text()}"
    alt = f"A dot for each of {len(dots)} groups. The highest accuracy has {best}."
    return chart.figure(alt, note)


def time(groups: Sequence[Group], names: Sequence[str]) -> str:
    """Seconds by phase of each group, mean over seeds."""
    bars = []
    for name, group in zip(names, groups, strict=True):
        found = {phase: spread(group.values("seconds", phase)) for phase in ("total", *PHASES)}
        bars.append((name, {phase: value.mean for phase, value in found.items() if value is not None}))
    return phase_chart(bars, "mean over seeds")


def _of(group: Group, state: str, *path: str) -> Spread | None:
    return spread(group.values(state, *path))


def _text(found: Spread | None) -> str:
    return "–" if found is None else found.text()

"""The page that `fedbayes-report` makes of many runs: one table to sort and filter, and what it looks like drawn."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbayes.tracking import page
from fedbayes.tracking.comparison import Comparison
from fedbayes.tracking.curves import averaged, curve_chart
from fedbayes.tracking.groups import Group, Spread, look_up, spread
from fedbayes.tracking.phases import PHASES, phase_chart
from fedbayes.tracking.run_dir import METRICS, read_rows
from fedbayes.tracking.svg import Chart, padded, swatch

_CURVES = (
    ("validation", "accuracy", "Validation accuracy", "share right, mean over clients"),
    ("validation", "nll", "Validation NLL", "nats per image"),
    ("train", "loss", "Train loss", "nats per image"),
    ("validation", "ece", "Validation ECE", "pooled over clients"),
)


def write_comparison(table: Comparison, path: Path) -> Path:
    """Writes the page of a comparison.

    Args:
        table: of `fedbayes.tracking.comparison.compare`.
        path: of the file; the tables as Markdown, CSV and LaTeX lie beside it, see `write_tables`.

    Returns:
        The path.
    """
    names = [f"{index + 1} {table.name(index)}" for index in range(len(table.rows))]
    runs = sum(len(group.runs) for group in table.groups)
    lead = f"<p>{html.escape(table.heading)}</p>" + "".join(f"<p class=soft>{html.escape(n)}</p>" for n in table.notes)
    links = ", ".join(
        f'<a href="{html.escape(path.with_suffix(end).name)}">{name}</a>'
        for end, name in ((".md", "Markdown"), (".csv", "CSV"), (".tex", "LaTeX"))
    )
    rows = [[read_rows(run / METRICS) for run, _ in group.runs] for group in table.groups]
    text = page.document(
        f"Comparison of {runs} runs in {len(table.rows)} groups",
        lead,
        [
            ("headline", "Results on the test images", _headline(table) + f"<p>The same table as {links}.</p>"),
            ("curves", "Learning curves", _curves(rows, names)),
            ("calibration", "Accuracy and calibration", _scatters(table, names)),
            ("bytes", "Bytes and accuracy", _bytes(table, names)),
            ("time", "Time by phase", _time(table.groups, names)),
            ("runs", "Every run", _runs(table)),
        ],
        script="comparison.js",
    )
    return page.write(path, text)


def _headline(table: Comparison) -> str:
    """The table, with a button in each head and a box to filter by."""
    heads = ["<th scope=col class=number><button type=button>no.</button></th>"]
    better = [0] * (table.texts + 1) + [measure.better for measure in table.measures]
    for index, name in enumerate(table.head):
        kind = "number" if index >= table.texts else "text"
        button = f"<button type=button>{html.escape(name)}</button>"
        heads.append(f'<th scope=col class={kind} data-better="{better[index]}">{button}</th>')
    tops = table.best()
    lines = []
    for index, (row, spreads, group) in enumerate(zip(table.rows, table.spreads, table.groups, strict=True)):
        cells = [f'<td data-value="{index + 1}">{index + 1}</td>']
        for place, cell in enumerate(row[: table.texts]):
            tag, mark = ("th scope=row", swatch(index)) if place == 0 else ("td", "")
            cells.append(f"<{tag} class=text>{mark}{html.escape(cell)}</{tag.split()[0]}>")
        cells.append(f'<td data-value="{len(group.runs)}">{len(group.runs)}</td>')
        for measure, found, top in zip(table.measures, spreads, tops, strict=True):
            value = "" if found is None else f' data-value="{found.mean!r}"'
            css = " class=best" if found is not None and found.mean == top else ""
            cells.append(f"<td{css}{value}>{html.escape(measure.text(found))}</td>")
        name = html.escape(" ".join(row[: table.texts]))
        lines.append(f'<tr data-group="{index}" data-name="{name}">{"".join(cells)}</tr>')
    caption = "Mean over seeds ± standard error; the best mean of a column is bold. The buttons in the head sort."
    made = (
        f"<table class=sortable id=headline-table><caption>{caption}</caption>"
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
    box = (
        "<div class=filter><label for=filter>Show only rows, lines and dots whose name holds</label>"
        "<input id=filter type=search autocomplete=off spellcheck=false>"
        "<span id=count class=soft role=status></span></div>"
    )
    return box + page.scroll("Results on the test images", made)


def _curves(rows: Sequence[Sequence[Sequence[Mapping[str, Any]]]], names: Sequence[str]) -> str:
    figures = []
    for phase, name, title, unit in _CURVES:
        lines = [(names[index], index, index, averaged(runs, phase, name)) for index, runs in enumerate(rows)]
        figures.append(curve_chart(title, unit, lines, note="Line: mean over seeds; band: ± standard error."))
    return _legend(names) + page.charts(*figures) if any(figures) else ""


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<li data-group="{i}">{swatch(i)}{html.escape(name)}</li>' for i, name in enumerate(names))
    return f"<ul class=legend>{items}</ul>"


def _scatters(table: Comparison, names: Sequence[str]) -> str:
    accuracy = [_of(group, table.state, "accuracy", "mean") for group in table.groups]
    figures = []
    for key, title, unit in (("ece", "Accuracy against ECE", "ECE"), ("nll", "Accuracy against NLL", "NLL (nats)")):
        other = [_of(group, table.state, key) for group in table.groups]
        note = "Upper left is better. Bars: ± standard error over seeds. Numbers are those of the table."
        far = key == "nll" and all(found is None or found.mean > 0 for found in other)
        note += " The scale of the NLL is logarithmic." if far else ""
        figures.append(_scatter(title, unit, other, accuracy, names, note, log_x=far))
    return page.charts(*figures)


def _bytes(table: Comparison, names: Sequence[str]) -> str:
    """Accuracy against all bytes of a run; methods that send nothing stand at the left edge."""
    accuracy = [_of(group, table.state, "accuracy", "mean") for group in table.groups]
    sent = [_sent(group) for group in table.groups]
    least = min((found.mean for found in sent if found is not None and found.mean > 0), default=None)
    if least is None:
        return ""
    silent = [index for index, found in enumerate(sent) if found is not None and found.mean <= 0]
    moved = [Spread(least / 3, None, found.count) if i in silent and found else found for i, found in enumerate(sent)]
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
    chart = Chart(title, unit, "test accuracy, mean over clients", x_range, padded(ys), log_x=log_x, size=(560, 360))
    for index, x, y in dots:
        label, errors = f"{names[index]}: accuracy {y.text()}, {unit} {x.text()}", (x.error, y.error)
        chart.point(x.mean, y.mean, index, label, index, errors=errors, label=str(index + 1))
    top = max(dots, key=lambda dot: dot[2].mean)
    best = f"{names[top[0]]}: {top[2].text()}, {unit} {top[1].text()}"
    alt = f"A dot for each of {len(dots)} groups. The highest accuracy has {best}."
    return chart.figure(alt, note)


def _time(groups: Sequence[Group], names: Sequence[str]) -> str:
    bars = []
    for name, group in zip(names, groups, strict=True):
        found = {phase: spread(group.values("seconds", phase)) for phase in ("total", *PHASES)}
        bars.append((name, {phase: value.mean for phase, value in found.items() if value is not None}))
    return phase_chart(bars, "mean over seeds")


def _runs(table: Comparison) -> str:
    """Every run's own numbers, from which the others are made."""
    head = "".join(
        f"<th scope=col>{html.escape(name)}</th>"
        for name in ("run", "group", "seed", *(m.label for m in table.measures))
    )
    lines = []
    for index, group in enumerate(table.groups):
        for run, summary in group.runs:
            cells = [f"<td>{index + 1}</td>", f"<td>{html.escape(str(summary.get('seed', '–')))}</td>"]
            for measure in table.measures:
                value = look_up(summary, measure.place(table.state))
                found = None if value is None else Spread(value, None, 1)
                mark = "" if value is None else f' data-value="{value!r}"'
                cells.append(f"<td{mark}>{html.escape(measure.text(found))}</td>")
            lines.append(
                f'<tr data-group="{index}"><th scope=row class=text>{html.escape(run.name)}</th>{"".join(cells)}</tr>'
            )
    made = (
        f"<table id=runs-table><caption>Each run as its summary.json has it</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return page.folded(f"{len(lines)} runs", page.scroll("Every run", made))


def _of(group: Group, state: str, *path: str) -> Spread | None:
    return spread(group.values(state, *path))

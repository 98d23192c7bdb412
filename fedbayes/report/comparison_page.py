"""The page that `fedbayes-report` makes of many runs: one table to sort and filter, and what it looks like drawn."""

import html
from collections.abc import Sequence
from pathlib import Path

from fedbayes.report import comparison_charts, comparison_maps, page
from fedbayes.report.comparison import Comparison
from fedbayes.report.groups import Spread, look_up
from fedbayes.report.svg import swatch
from fedbayes.storage.predictions import read_predictions
from fedbayes.storage.run_dir import METRICS, PARTITION, read_json, read_rows


def write_comparison(table: Comparison, path: Path) -> Path:
    """Writes the page of a comparison.

    Args:
        table: of `fedbayes.report.comparison.compare`.
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
    text = page.document(
        f"Comparison of {runs} runs in {len(table.rows)} groups",
        lead,
        [
            ("headline", "Results on the test images", _headline(table) + f"<p>The same table as {links}.</p>"),
            *_sections(table, names),
            ("runs", "Every run", _runs(table)),
        ],
        scripts=("sorting.js", "filter.js"),
    )
    return page.write(path, text)


def _sections(table: Comparison, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """What is drawn from the files of the runs: an identifier, a heading and HTML of each section."""
    rows = [[read_rows(run / METRICS) for run, _ in group.runs] for group in table.groups]
    partitions = [[read_json(run / PARTITION) for run, _ in group.runs] for group in table.groups]
    predictions = [[found for run, _ in group.runs if (found := read_predictions(run))] for group in table.groups]
    maps = comparison_maps.domains(table, names) + comparison_maps.clients(predictions, partitions, names)
    return [
        ("curves", "Learning curves", comparison_charts.curves(rows, names)),
        ("domains", "Methods, clients and domains", maps),
        ("calibration", "Accuracy and calibration", comparison_charts.calibration(table, names)),
        ("confidence", "Is their confidence right?", comparison_charts.confidence(table, predictions, names)),
        ("posterior", "The posterior over rounds", comparison_charts.posterior(table, rows, names)),
        ("partition", "Who holds what", comparison_maps.partitions(table.groups, partitions)),
        ("bytes", "Bytes and accuracy", comparison_charts.sent(table, names)),
        ("time", "Time by phase", comparison_charts.time(table.groups, names)),
    ]


def _headline(table: Comparison) -> str:
    """The table, with a button in each head and a box to filter by."""
    better = [0] * (table.texts + 1) + [measure.better for measure in table.measures]
    heads = page.heads(("no.", *table.head), sortable=True, texts=table.texts + 1, better=[0, *better])
    tops = table.best()
    lines = []
    for index, (row, spreads, group) in enumerate(zip(table.rows, table.spreads, table.groups, strict=True)):
        cells = [f'<td data-value="{index + 1}">{index + 1}</td>']
        for place, cell in enumerate(row[: table.texts]):
            tag, mark = ("th scope=row", swatch(index)) if place == 0 else ("td", "")
            text = html.escape(cell).replace("_", "_<wbr>")  # where a name may break on a phone
            cells.append(f"<{tag} class=text>{mark}{text}</{tag.split()[0]}>")
        cells.append(f'<td data-value="{len(group.runs)}">{len(group.runs)}</td>')
        for measure, found, top in zip(table.measures, spreads, tops, strict=True):
            value = "" if found is None else f' data-value="{found.mean!r}"'
            css = " class=best" if found is not None and found.mean == top else ""
            cells.append(f"<td{css}{value}>{html.escape(measure.text(found))}</td>")
        name = html.escape(" ".join(row[: table.texts]))
        lines.append(f'<tr data-group="{index}" data-name="{name}">{"".join(cells)}</tr>')
    caption = "Mean over seeds ± standard error; the best mean of a column is bold. The buttons in the head sort. "
    caption += "Time is that of the whole run, its set-up included."
    made = (
        f"<table class=sortable id=headline-table>{page.caption_of(caption)}"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
    box = (
        "<div class=filter><label for=filter>Show only rows, lines and dots whose name holds</label>"
        "<input id=filter type=search autocomplete=off spellcheck=false>"
        "<span id=count class=soft role=status></span></div>"
    )
    return box + page.scroll("Results on the test images", made)


def _runs(table: Comparison) -> str:
    """Every run's own numbers, from which the others are made."""
    head = ("run", "group", "seed", *(measure.label for measure in table.measures))
    better = [0, 0, 0, *(measure.better for measure in table.measures)]
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
        f"<table class=sortable id=runs-table>{page.caption_of('Each run as its summary.json has it')}"
        f"<thead><tr>{page.heads(head, sortable=True, better=better)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return page.folded(f"{len(lines)} runs", page.scroll("Every run", made))

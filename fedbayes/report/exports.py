"""The tables of a run or of a comparison as files for other programs: Markdown, CSV with every digit, and LaTeX."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbayes.report.comparison import Comparison, as_markdown
from fedbayes.report.groups import flatten
from fedbayes.report.result_tables import (
    DOMAIN_HEAD,
    EACH_CLIENT,
    EACH_DOMAIN,
    RESULTS,
    client_rows,
    cost_rows,
    domain_rows,
    result_rows,
    title,
)
from fedbayes.report.table_formats import booktabs, inert, inline, markdown
from fedbayes.storage import files
from fedbayes.storage.names import SUBJECT
from fedbayes.storage.run_dir import REPORT


def as_csv(table: Comparison) -> str:
    """The comparison as CSV: for each measure the unscaled mean over seeds and its standard error, unrounded.

    The accuracy in each domain follows, in columns such as `accuracy/ink`. A standard error of one seed alone, and what
    a group lacks, is an empty field.
    """
    domains, by_domain = table.domains()
    keys = [*(measure.key for measure in table.measures), *(f"accuracy/{name}" for name in domains)]
    numbers = [name for key in keys for name in (key, f"{key}_se")]
    rows = []
    for group, spreads, accuracies in zip(table.groups, table.spreads, by_domain, strict=True):
        cells: list[object] = [*group.names, ", ".join(group.settings), len(group.runs)]
        for found in (*spreads, *accuracies):
            cells += ["", ""] if found is None else [found.mean, "" if found.error is None else found.error]
        rows.append(cells)
    return _csv([*SUBJECT, "settings", "seeds", *numbers], rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def as_latex(table: Comparison) -> str:
    """The comparison as a LaTeX table; it needs the package booktabs. The best mean of each column is bold."""
    tops = table.best()
    bold = {
        (row, column)
        for row, spreads in enumerate(table.spreads)
        for column, (found, top) in enumerate(zip(spreads, tops, strict=True), table.texts + 1)
        if found is not None and found.mean == top
    }
    return booktabs(table.head, table.rows, table.texts, bold, (table.heading, *table.notes))


def write_tables(table: Comparison, page: Path) -> list[Path]:
    """Writes the table and that of domains beside their page, as Markdown, CSV and LaTeX files of the same name.

    Returns:
        The files.
    """
    shown, typeset = as_markdown(table) + "\n", as_latex(table)
    domains, spreads = table.domains()
    if domains:
        caption = "Test accuracy in each domain after the last round, all clients' images together"
        head = (*table.head[: table.texts], *domains)
        rows = [
            [*row[: table.texts], *("–" if found is None else found.text() for found in accuracies)]
            for row, accuracies in zip(table.rows, spreads, strict=True)
        ]
        shown += f"\n{caption}:\n\n{markdown(head, rows, table.texts)}\n"
        typeset += "\n" + booktabs(head, rows, table.texts, notes=(caption,))
    return _write(page, {".md": shown, ".csv": as_csv(table), ".tex": typeset})


def write_run_tables(run_dir: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Writes the tables of a run's results beside its page, as Markdown, CSV and LaTeX files of the same name.

    The CSV has a line for each number of the summary's results, under the summary's names: `table` says whether it is
    of the last round ("final"), of the round best by validation ("best"), of a domain or a client (`name` says which),
    or of the run's bytes or seconds.

    Args:
        run_dir: where they go.
        summary: the object of `summary.json`.

    Returns:
        The files.
    """
    tables = [
        (RESULTS, *result_rows(summary)),
        (EACH_DOMAIN, DOMAIN_HEAD, domain_rows(summary)),
        (EACH_CLIENT, *client_rows(summary)),
        ("Costs", ("what", "how much"), cost_rows(summary)),
    ]
    tables = [one for one in tables if one[2]]
    sections = [f"## {caption}\n\n{markdown(head, rows)}\n" for caption, head, rows in tables]
    texts = {
        ".md": "\n".join([f"# {inline(title(summary))}\n", *sections]),
        ".csv": _csv(("table", "name", "measure", "value"), _numbers(summary)),
        ".tex": "\n".join(booktabs(head, rows, notes=(title(summary), caption)) for caption, head, rows in tables),
    }
    return _write(run_dir / REPORT, texts)


def _numbers(summary: Mapping[str, Any]) -> Iterator[tuple[str, object, str, float]]:
    parts: list[tuple[str, object, Mapping[str, Any]]] = [
        (name, "", summary.get(name) or {}) for name in ("final", "best", "bytes", "seconds")
    ]
    parts += [("domain", name, row) for name, row in (summary.get("per_domain") or {}).items()]
    parts += [("client", row.get("partition", ""), row) for row in summary.get("per_client") or []]
    for table, name, row in parts:
        for measure, value in flatten(row):
            if isinstance(value, int | float) and not isinstance(value, bool) and measure != "partition":
                yield table, name, measure, value


def _write(page: Path, texts: Mapping[str, str]) -> list[Path]:
    for end, text in texts.items():
        files.replace(page.with_suffix(end), text)
    return [page.with_suffix(end) for end in texts]

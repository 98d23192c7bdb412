r"""A comparison's table as files for other programs: CSV with every digit, and LaTeX for the package booktabs."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from fedbayes.tracking.comparison import Comparison, as_markdown
from fedbayes.tracking.groups import NAMES

_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "β": r"$\beta$",
}


def as_csv(table: Comparison) -> str:
    """The comparison as CSV: for each measure the unscaled mean over seeds and its standard error, unrounded.

    A standard error of one seed alone, and what a group lacks, is an empty field.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = [name for measure in table.measures for name in (measure.key, f"{measure.key}_se")]
    writer.writerow([*NAMES, "settings", "seeds", *numbers])
    for group, spreads in zip(table.groups, table.spreads, strict=True):
        cells: list[object] = [*group.names, ", ".join(group.settings), len(group.runs)]
        for found in spreads:
            cells += ["", ""] if found is None else [found.mean, "" if found.error is None else found.error]
        writer.writerow([_inert(cell) for cell in cells])
    return text.getvalue()


def _inert(cell: object) -> object:
    """A name that a spreadsheet would take for a formula, as text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def as_latex(table: Comparison) -> str:
    """The comparison as a LaTeX table; it needs the package booktabs. The best mean of each column is bold."""
    marks = "l" * table.texts + "r" * (len(table.head) - table.texts)
    tops = table.best()
    lines = [f"% {note}" for note in (table.heading, *table.notes) if note]
    lines += [r"\begin{tabular}{" + marks + "}", r"\toprule", _line([latex(name) for name in table.head]), r"\midrule"]
    first = table.texts + 1
    for row, spreads in zip(table.rows, table.spreads, strict=True):
        cells = [latex(cell) for cell in row]
        for index, (found, top) in enumerate(zip(spreads, tops, strict=True), first):
            if found is not None and found.mean == top:
                cells[index] = r"\textbf{" + cells[index] + "}"
        lines.append(_line(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """A text with LaTeX's special signs written out."""
    return "".join(_LATEX.get(sign, sign) for sign in text.replace("\n", " "))


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def write_tables(table: Comparison, page: Path) -> list[Path]:
    """Writes the table beside its page, as Markdown, CSV and LaTeX files of the same name.

    Returns:
        The files.
    """
    texts = {".md": as_markdown(table) + "\n", ".csv": as_csv(table), ".tex": as_latex(table)}
    for end, text in texts.items():
        page.with_suffix(end).write_text(text, encoding="utf-8")
    return [page.with_suffix(end) for end in texts]

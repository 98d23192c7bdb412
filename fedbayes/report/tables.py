"""Tables of texts: templates show them in pages, and other programs get them as Markdown, LaTeX (booktabs) and CSV.

Pandas would write all three, but its import takes as long as matplotlib's, at the end of every run.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from fedbayes.report.spread import number, size
from fedbayes.storage import files
from fedbayes.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
FORMATS = {".md": "Markdown", ".csv": "CSV", ".tex": "LaTeX"}
_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "β": r"$\beta$",
}
_CODE = re.compile(r"(?<!`)(`[^`\\|]+`)(?!`)")
_ACTIVE = re.compile(r"[\\|<&\[*`]|!(?=\[)|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown would act on; a `_` inside a word it leaves alone."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?")


class Cell(NamedTuple):
    """A cell: its text, the value to sort it by, how dark it is shaded (0 to 1), and whether it stands out."""

    text: str
    value: float | None = None
    heat: float | None = None
    is_best: bool = False


@final
@dataclass(frozen=True)
class Table:
    """A table whose first columns are texts and whose others are numbers.

    Attributes:
        caption: says what it shows.
        head: names of the columns.
        rows: cells, or their texts.
        texts: how many of the first columns are texts.
        groups: of a comparison, which rows belong to.
        better: 1 for a column where more is better: a first click sorts the largest to the top.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    texts: int = 1
    groups: Sequence[int] = ()
    better: Sequence[int] = ()

    def cells(self) -> list[list[Cell]]:
        """Return the rows with nothing but cells in them."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def as_markdown(self) -> str:
        """Return a Markdown table without its caption."""
        marks = ["---" if index < self.texts else "---:" for index in range(len(self.head))]
        rows = [[markdown(cell.text) for cell in row] for row in self.cells()]
        lines = [[*map(markdown, self.head)], marks, *rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def as_latex(self, *notes: str) -> str:
        """Return a LaTeX table; it needs the package booktabs. Notes become comments above it."""
        rows = [
            [rf"\textbf{{{latex(cell.text)}}}" if cell.is_best else latex(cell.text) for cell in row]
            for row in self.cells()
        ]
        lines = [f"% {visible(' '.join(note.split()))}" for note in notes if note]
        lines += [rf"\begin{{tabular}}{{{'l' * self.texts}{'r' * (len(self.head) - self.texts)}}}", r"\toprule"]
        lines += [" & ".join(map(latex, self.head)) + r" \\", r"\midrule"]
        lines += [" & ".join(row) + r" \\" for row in rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def heat_table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[tuple[str, Sequence[tuple[str, float | None]]]],
    ends: tuple[float, float] = (0.0, 1.0),
    groups: Sequence[int] = (),
) -> Table:
    """Return a table whose cells are shaded by their values.

    Args:
        caption: says what it shows.
        head: names of the columns, that of the rows first.
        rows: a name, and for each cell its text and its value; None for an empty one.
        ends: the values that are not shaded at all and shaded most.
        groups: of a comparison, which rows belong to.
    """
    low, width = ends[0], (ends[1] - ends[0]) or 1.0
    cells: list[list[str | Cell]] = [
        [name, *(Cell("–") if v is None else Cell(text, v, round((v - low) / width, 3)) for text, v in row)]
        for name, row in rows
    ]
    return Table(caption, head, cells, groups=groups)


@cache
def environment() -> "Environment":
    """Return the templates of all pages; whatever they show is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"number": number, "size": size}
    templates.globals["file"] = lambda name: (TEMPLATES / name).read_text(encoding="utf-8")
    return templates


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Write a page from its template, whole or not at all, and return its path.

    Raises:
        ValueError: if the content is not what a run writes.
    """
    from jinja2 import TemplateError

    try:
        text = environment().get_template(template).render(**content)
    except TemplateError as error:
        raise ValueError(f"{template} cannot show it: {error}") from error
    files.replace(path, text)
    return path


def write_files(page: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write texts beside a page, as files of the same name with the endings that they have as keys."""
    for end, text in texts.items():
        files.replace(page.with_suffix(end), text)
    return [page.with_suffix(end) for end in texts]


def as_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV file of names and numbers, all digits of these."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([inert(cell) for cell in row] for row in (head, *rows))
    return text.getvalue()


def markdown(text: str) -> str:
    """Return a text for Markdown: it neither becomes markup nor ends its line. Code in single backticks stays code."""
    parts = _CODE.split(visible(text))  # every second part is code
    return "".join(part if index % 2 else _ACTIVE.sub(r"\\\g<0>", part) for index, part in enumerate(parts))


def latex(text: str) -> str:
    """Return a text with LaTeX's special signs written out; at a row's begin it is no argument of the row before."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in visible(text.replace("\n", " ")))
    return f"{{}}{escaped}" if escaped.lstrip()[:1] in ("[", "*") else escaped


def inert(cell: object) -> object:
    """Return a cell of a CSV file: a name that a spreadsheet would take for a formula, as text."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell[:1] in ("\t", "\r", "\n") or cell.lstrip()[:1] in ("=", "+", "-", "@") else cell

r"""Tables of texts as Markdown and as LaTeX for the package booktabs."""

import re
from collections.abc import Collection, Mapping, Sequence

from fedbayes.text import visible

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


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table.

    Args:
        head: names of the columns.
        rows: their cells.
        texts: how many of the first columns are texts; the others are numbers.
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(inline, cells)) + " |"

    marks = ["---" if index < texts else "---:" for index in range(len(head))]
    return "\n".join([line(head), line(marks), *map(line, rows)])


def inline(text: str) -> str:
    """A text within Markdown: it neither becomes markup nor ends its line. Code in single backticks stays code."""
    parts = _CODE.split(visible(text))  # every second one is code
    return "".join(part if index % 2 else _ACTIVE.sub(r"\\\g<0>", part) for index, part in enumerate(parts))


def booktabs(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: int = 1,
    bold: Collection[tuple[int, int]] = (),
    notes: Sequence[str] = (),
) -> str:
    """A LaTeX table; it needs the package booktabs.

    Args:
        head: names of the columns.
        rows: their cells.
        texts: how many of the first columns are texts; the others are numbers.
        bold: row and column of cells that stand out.
        notes: comments above it.
    """

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    marks = "l" * texts + "r" * (len(head) - texts)
    lines = [f"% {visible(' '.join(note.split()))}" for note in notes if note]
    lines += [r"\begin{tabular}{" + marks + "}", r"\toprule", line([latex(name) for name in head]), r"\midrule"]
    for place, row in enumerate(rows):
        cells = [latex(cell) for cell in row]
        lines.append(line([rf"\textbf{{{c}}}" if (place, i) in bold else c for i, c in enumerate(cells)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """A text with LaTeX's special signs written out; what begins a row is no argument of the end of the one before."""
    made = "".join(_LATEX.get(sign, sign) for sign in visible(text.replace("\n", " ")))
    return f"{{}}{made}" if made.lstrip()[:1] in ("[", "*") else made


def inert(cell: object) -> object:
    """A cell of a CSV file: a name that a spreadsheet would take for a formula, as text."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell[:1] in ("\t", "\r", "\n") or cell.lstrip()[:1] in ("=", "+", "-", "@") else cell

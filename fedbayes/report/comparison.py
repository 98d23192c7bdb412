"""Many runs side by side: those that differ in nothing but their seeds make one row, with the spread over seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedbayes.report.groups import Group, Spread, find_runs, group, spread, unfinished
from fedbayes.report.measures import HEADLINE, Measure, best, known
from fedbayes.report.table_formats import inline, markdown
from fedbayes.storage.names import SUBJECT
from fedbayes.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Comparison", "as_markdown", "as_table", "compare", "find_runs"]


@final
@dataclass(frozen=True)
class Comparison:
    """A table of groups of runs.

    Attributes:
        heading: what all groups have in common.
        head: the names of the columns: texts, the number of seeds, then one for each measure.
        rows: a row of texts per group.
        notes: what a reader should know, a line each.
        state: "final" or "best".
        groups: the runs behind each row.
        measures: of the last columns.
        spreads: what each row has of each measure.
    """

    heading: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    state: str
    groups: tuple[Group, ...]
    measures: tuple[Measure, ...]
    spreads: tuple[tuple[Spread | None, ...], ...]

    @property
    def texts(self) -> int:
        """How many of the first columns are texts; the others are numbers."""
        return len(self.head) - len(self.measures) - 1

    def best(self) -> list[float | None]:
        """The best mean of each measure; all None where groups differ in more than methods and settings."""
        same = len({one.names[1:] for one in self.groups}) == 1 and not any(one.unlike for one in self.groups)
        return best(self.spreads, self.measures) if same else [None] * len(self.measures)

    def domains(self) -> tuple[list[str], list[list[Spread | None]]]:
        """Names of domains, and of each group the test accuracy in each of them after the last round."""
        names = list(dict.fromkeys(d for one in self.groups for _, summary in one.runs for d in _domains(summary)))
        return names, [[spread(one.values("per_domain", name, "accuracy")) for name in names] for one in self.groups]

    def name(self, row: int) -> str:
        """A row's texts in a line, as in `pfedbayespt, num_extra=10`."""
        return ", ".join(text for text in self.rows[row][: self.texts] if text != "–") or "run"


def compare(runs: Sequence[Path], state: str = "final", measures: Sequence[Measure] = HEADLINE) -> Comparison:
    """Groups runs that are equal up to seeds.

    Args:
        runs: directories of finished runs.
        state: "final" for the last round, "best" for the round best by validation.
        measures: the columns; beyond those of the headline, only those that some run has are shown.

    Returns:
        Each measure per group: the mean over seeds ± its standard error.

    Raises:
        RunError: if a file of a run is broken.
    """
    groups, repeated = group(runs)
    shown = (*HEADLINE, *known([one for one in measures if one not in HEADLINE], groups, state))
    table = []
    for one in groups:
        spreads = tuple(measure.of(one, state) for measure in shown)
        texts = (*one.names, ", ".join(one.settings) or "–", str(len(one.runs)))
        cells = (*texts, *(measure.text(found) for measure, found in zip(shown, spreads, strict=True)))
        table.append((cells, one, spreads))
    table.sort(key=lambda entry: _natural(entry[0]))
    rows = [entry[0] for entry in table]
    head = (*SUBJECT, "settings", "seeds", *(measure.label for measure in shown))
    # What is the same in every row is said once, above the table.
    common = [index for index in range(1, len(SUBJECT) + 1) if len({row[index] for row in rows}) == 1]
    heading = ", ".join(f"{head[index]} {rows[0][index]}" for index in common if rows[0][index] != "–")
    kept = [index for index in range(len(head)) if index not in common]
    what = "the last round" if state == "final" else "the round best by validation"
    notes = [f"Test images, {what}: mean over seeds ± standard error; accuracy is the mean over clients."]
    if repeated:
        notes.append(f"{repeated} older runs with the same seeds and settings are left out.")
    if unlike := sorted({name for one in groups for name in one.unlike}):
        notes.append(f"Rows are not of one experiment, so no best is marked; they differ in {', '.join(unlike)}.")
    notes += unfinished(runs)
    return Comparison(
        heading=heading,
        head=tuple(head[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in rows),
        notes=tuple(notes),
        state=state,
        groups=tuple(entry[1] for entry in table),
        measures=shown,
        spreads=tuple(entry[2] for entry in table),
    )


def as_table(table: Comparison) -> "RenderableType":
    """The comparison for the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD,
        title=escape(visible(table.heading)) or None,
        title_justify="left",
        caption=escape("\n".join(map(visible, table.notes))),
        caption_justify="left",
        pad_edge=False,
    )
    for index, name in enumerate(table.head):
        right = index >= table.texts
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right or name == "method")
    for row in table.rows:
        made.add_row(*(escape(visible(cell)) for cell in row))
    return made


def as_markdown(table: Comparison) -> str:
    """The comparison as a Markdown table."""
    above = [inline(table.heading), ""] if table.heading else []
    return "\n".join([*above, markdown(table.head, table.rows, table.texts), "", *map(inline, table.notes)])


def _domains(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    return summary.get("per_domain") or {}


def _natural(row: Sequence[str]) -> list[tuple[float, str]]:
    """A key that sorts `num_extra=2` before `num_extra=10`."""
    parts = [part for cell in row for part in re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", cell)]
    return [(float(part), "") if part[:1].isdigit() else (-1.0, part) for part in parts]

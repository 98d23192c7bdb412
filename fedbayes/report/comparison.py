"""Many runs side by side: those that differ in nothing but their seeds make one row, with the spread between them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

from fedbayes.report.groups import Group, find_runs, group, unfinished
from fedbayes.report.spread import Spread, shown
from fedbayes.report.tables import Cell, Table, as_csv, markdown, write_files
from fedbayes.storage.names import SUBJECT
from fedbayes.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Comparison", "Measure", "compare", "find_runs"]


class Measure(NamedTuple):
    """A number of a summary.

    Attributes:
        label: the name of its column, with its unit.
        key: the name of its columns in CSV files.
        path: where it stands in the summary; a leading `state` is "final" or "best".
        better: 1 where more is better, -1 where less is, 0 where neither.
        scale: it is shown multiplied by this.
        digits: decimals shown.
    """

    label: str
    key: str
    path: tuple[str, ...]
    better: int = 0
    scale: float = 1.0
    digits: int = 3

    def of(self, group: Group, state: str) -> Spread | None:
        """Return its mean over the runs of a group, unscaled."""
        return group.spread(*self.place(state))

    def place(self, state: str) -> tuple[str, ...]:
        """Return where it stands in the summary."""
        return tuple(state if name == "state" else name for name in self.path)

    def text(self, value: Spread | None) -> str:
        """Return how it is shown; a dash where there is none."""
        if value is None:
            return "–"
        error = None if value.error is None else value.error * self.scale
        return Spread(value.mean * self.scale, error, value.count).text(self.digits)


MEASURES = (
    Measure("accuracy", "accuracy", ("state", "accuracy", "mean"), 1),
    Measure("NLL (nats)", "nll", ("state", "nll"), -1),
    Measure("ECE", "ece", ("state", "ece"), -1),
    Measure("worst decile", "accuracy_worst_decile", ("state", "accuracy", "worst_decile"), 1),
    Measure("Brier", "brier", ("state", "brier"), -1),
    Measure("AURC", "aurc", ("state", "aurc"), -1),
    Measure("prompt uncertainty (nats)", "prompt_uncertainty", ("state", "prompt_uncertainty")),
    Measure("backdoor success", "backdoor_success", ("state", "backdoor_success"), -1),
    Measure("up (MB)", "bytes_up", ("bytes", "up"), 0, 1e-6, 2),
    Measure("down (MB)", "bytes_down", ("bytes", "down"), 0, 1e-6, 2),
    Measure("time (s)", "seconds_total", ("seconds", "total"), 0, 1.0, 1),
)
HEADLINE = MEASURES[:3]
"""What the terminal shows."""


@final
@dataclass(frozen=True)
class Comparison:
    """A table of groups of runs.

    Attributes:
        heading: what all groups have in common.
        table: a row per group; texts, the number of runs, then a column for each measure.
        notes: what a reader should know, a line each.
        state: "final" or "best".
        groups: the runs behind each row.
        measures: of the last columns.
        spreads: each measure of each row.
    """

    heading: str
    table: Table
    notes: tuple[str, ...]
    state: str
    groups: tuple[Group, ...]
    measures: tuple[Measure, ...]
    spreads: tuple[tuple[Spread | None, ...], ...]

    def domains(self) -> tuple[list[str], list[list[Spread | None]]]:
        """Return the names of domains, and of each group the test accuracy in each of them after the last round."""
        names = dict.fromkeys(d for one in self.groups for _, run in one.runs for d in run.get("per_domain") or {})
        return list(names), [[one.spread("per_domain", name, "accuracy") for name in names] for one in self.groups]

    def names(self) -> list[str]:
        """Return each row's number and texts in a line, as in `2 pfedbayespt, num_extra=10`."""
        rows = [[cell.text for cell in row[: self.table.texts]] for row in self.table.cells()]
        texts = [", ".join(text for text in row if text != "–") or "run" for row in rows]
        return [f"{index + 1} {text}" for index, text in enumerate(texts)]

    def as_markdown(self) -> str:
        """Return the comparison as a Markdown table."""
        above = [markdown(self.heading), ""] if self.heading else []
        return "\n".join([*above, self.table.as_markdown(), "", *map(markdown, self.notes)])

    def as_latex(self) -> str:
        """Return the comparison as a LaTeX table."""
        return self.table.as_latex(self.heading, *self.notes)

    def as_csv(self) -> str:
        """Return the comparison as CSV: for each measure the unscaled mean and its standard error, unrounded.

        The accuracy in each domain follows, in columns such as `accuracy/ink`. A standard error of a single run, and
        what a group lacks, is an empty field.
        """
        domains, accuracies = self.domains()
        keys = [*(measure.key for measure in self.measures), *(f"accuracy/{name}" for name in domains)]
        rows = []
        for one, spreads, by_domain in zip(self.groups, self.spreads, accuracies, strict=True):
            cells: list[object] = [*one.names, ", ".join(one.settings), len(one.runs)]
            for value in (*spreads, *by_domain):
                cells += ["", ""] if value is None else [value.mean, "" if value.error is None else value.error]
            rows.append(cells)
        return as_csv([*SUBJECT, "settings", "runs", *(name for key in keys for name in (key, f"{key}_se"))], rows)

    def for_terminal(self) -> "RenderableType":
        """Return the comparison for the terminal."""
        from rich.markup import escape

        from fedbayes.report.results import rich_table

        return rich_table(
            self.table,
            title=escape(visible(self.heading)) or None,
            title_justify="left",
            caption=escape("\n".join(map(visible, self.notes))),
            caption_justify="left",
        )

    def write_tables(self, page: Path) -> list[Path]:
        """Write the table and that of domains beside their page, as Markdown, CSV and LaTeX, and return the files."""
        text, typeset = self.as_markdown() + "\n", self.as_latex()
        names, spreads = self.domains()
        if names:
            caption = "Test accuracy in each domain after the last round, all clients' images together"
            texts = self.table.texts
            rows = [[*row[:texts], *map(shown, values)] for row, values in zip(self.table.rows, spreads, strict=True)]
            table = Table(caption, (*self.table.head[:texts], *names), rows, texts)
            text += f"\n{caption}:\n\n{table.as_markdown()}\n"
            typeset += "\n" + table.as_latex(caption)
        return write_files(page, {".md": text, ".csv": self.as_csv(), ".tex": typeset})


def compare(runs: Sequence[Path], state: str = "final", measures: Sequence[Measure] = HEADLINE) -> Comparison:
    """Group runs that are equal up to seeds.

    Args:
        runs: directories of finished runs.
        state: "final" for the last round, "best" for the round best by validation.
        measures: the columns; beyond those of the headline, only those that some run has are shown.

    Returns:
        Each measure per group: the mean over runs ± its standard error.

    Raises:
        RunError: if a file of a run is broken.
    """
    groups, repeated = group(runs)
    groups.sort(key=lambda one: _natural((*one.names, ", ".join(one.settings) or "–")))
    columns = (*HEADLINE, *known([one for one in measures if one not in HEADLINE], groups, state))
    spreads = tuple(tuple(measure.of(one, state) for measure in columns) for one in groups)
    unlike = sorted({name for one in groups for name in one.unlike})
    is_alike = len({one.names[1:] for one in groups}) == 1 and not unlike
    best = _best(spreads, columns) if is_alike else [None] * len(columns)
    rows = []
    for one, values in zip(groups, spreads, strict=True):
        cells: list[str | Cell] = [*one.names, ", ".join(one.settings) or "–", str(len(one.runs))]
        for measure, value, top in zip(columns, values, best, strict=True):
            mean = None if value is None else value.mean
            cells.append(Cell(measure.text(value), mean, is_best=mean is not None and mean == top))
        rows.append(cells)
    head = (*SUBJECT, "settings", "runs", *(measure.label for measure in columns))
    # What is the same in every row is said once, above the table.
    common = [index for index in range(1, len(SUBJECT) + 1) if len({row[index] for row in rows}) == 1]
    heading = ", ".join(f"{head[index]} {rows[0][index]}" for index in common if rows[0][index] != "–")
    shown = [index for index in range(len(head)) if index not in common]
    moment = "the last round" if state == "final" else "the round best by validation"
    notes = [f"Test images, {moment}: mean over runs ± standard error; accuracy is the mean over clients."]
    if repeated:
        notes.append(f"{repeated} older runs with the same seeds and settings are left out.")
    if unlike:
        notes.append(f"Rows are not of one experiment, so no best is marked; they differ in {', '.join(unlike)}.")
    table = Table(
        "Results on the test images",
        [head[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        len(shown) - len(columns) - 1,
        range(len(rows)),
        [0] * (len(shown) - len(columns)) + [measure.better for measure in columns],
    )
    return Comparison(heading, table, (*notes, *unfinished(runs)), state, tuple(groups), columns, spreads)


def known(measures: Sequence[Measure], groups: Sequence[Group], state: str) -> tuple[Measure, ...]:
    """Return the measures that at least one group has."""
    return tuple(one for one in measures if any(group.values(*one.place(state)) for group in groups))


def _best(spreads: Sequence[Sequence[Spread | None]], measures: Sequence[Measure]) -> list[float | None]:
    """The best mean of each measure; None where neither more nor less is better, or there is one group."""
    best: list[float | None] = []
    for measure, column in zip(measures, zip(*spreads, strict=True), strict=True):
        means = [value.mean for value in column if value is not None]
        choose = max if measure.better > 0 else min
        best.append(choose(means) if measure.better and len(means) > 1 else None)
    return best


def _natural(row: Sequence[str]) -> list[tuple[float, str]]:
    """A key that sorts `num_extra=2` before `num_extra=10`."""
    parts = [part for cell in row for part in re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", cell)]
    return [(float(part), "") if part[:1].isdigit() else (-1.0, part) for part in parts]

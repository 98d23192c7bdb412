"""Many runs side by side: those that differ in nothing but their seeds make one row, with the spread between them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from fedbayes.errors import RunError
from fedbayes.report.differences import best_row, differences
from fedbayes.report.groups import Group, find_runs, group_runs, trials, unfinished
from fedbayes.report.measures import HEADLINE, ON_VALIDATION, VALIDATION, Measure, known
from fedbayes.report.spread import Spread, as_text
from fedbayes.report.tables import Cell, Table, as_csv, markdown, write_files
from fedbayes.storage.names import SUBJECT
from fedbayes.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Comparison", "Measure", "compare", "find_runs"]


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
        losers: whether a row is a trial that a search has not chosen, whose test images are not looked at.
        reference: number of the row that is subtracted in paired differences.
    """

    heading: str
    table: Table
    notes: tuple[str, ...]
    state: str
    groups: tuple[Group, ...]
    measures: tuple[Measure, ...]
    spreads: tuple[tuple[Spread | None, ...], ...]
    losers: tuple[bool, ...]
    reference: int | None = None

    def of(self, *path: str) -> list[Spread | None]:
        """Return a number of each group's test images; nothing of trials that a search has not chosen."""
        pairs = zip(self.groups, self.losers, strict=True)
        return [None if is_loser else group.spread(*path) for group, is_loser in pairs]

    def differences(self) -> Table:
        """Return the paired differences of all groups to the reference, by default the one with the best accuracy."""
        means = [-1.0 if value is None else value.mean for value in self.of(self.state, "accuracy", "mean")]
        row = means.index(max(means)) if self.reference is None else self.reference - 1
        places = [place for place, is_loser in enumerate(self.losers) if not is_loser or place == row]
        return differences(self.groups, self.names(), row, places)

    def domains(self) -> tuple[list[str], list[list[Spread | None]]]:
        """Return the names of domains, and of each group the test accuracy in each of them after the last round."""
        names = dict.fromkeys(d for group in self.groups for _, run in group.runs for d in run.get("per_domain") or {})
        columns = [self.of("per_domain", name, "accuracy") for name in names]
        return list(names), [[column[row] for column in columns] for row in range(len(self.groups))]

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
        for group, spreads, by_domain in zip(self.groups, self.spreads, accuracies, strict=True):
            cells: list[object] = [*group.names, ", ".join(group.settings), len(group.runs)]
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
            rows = [[*row[:texts], *map(as_text, values)] for row, values in zip(self.table.rows, spreads, strict=True)]
            table = Table(caption, (*self.table.head[:texts], *names), rows, texts)
            text += f"\n{caption}:\n\n{table.as_markdown()}\n"
            typeset += "\n" + table.as_latex(caption)
        return write_files(page, {".md": text, ".csv": self.as_csv(), ".tex": typeset})


def compare(
    runs: Sequence[Path],
    state: str = "final",
    measures: Sequence[Measure] = HEADLINE,
    reference: int | None = None,
) -> Comparison:
    """Group runs that are equal up to seeds.

    Args:
        runs: directories of finished runs.
        state: "final" for the last round, "best" for the round best by validation.
        reference: number of the row that is subtracted in paired differences; None for the best accuracy.
        measures: the columns; beyond those of the headline, only those that some run has are shown.

    Returns:
        Each measure per group: the mean over runs ± its standard error.

    Raises:
        RunError: if a file of a run is broken, or no row has the reference's number.
    """
    groups, repeated = group_runs(runs)
    groups.sort(key=lambda group: _natural((*group.names, ", ".join(group.settings) or "–")))
    searched = trials(runs)
    if reference is not None and not 1 <= reference <= len(groups):
        raise RunError(f"--reference={reference} must be in 1..{len(groups)}, the numbers of the comparison's rows.")
    losers = [all(searched.get(run) is False for run, _ in group.runs) for group in groups]
    first = (VALIDATION,) if searched else ()
    more = [measure for measure in measures if measure not in (*HEADLINE, *first)]
    columns = (*first, *HEADLINE, *known(more, groups, state))
    spreads = tuple(
        tuple(None if is_loser and measure not in ON_VALIDATION else measure.of(group, state) for measure in columns)
        for group, is_loser in zip(groups, losers, strict=True)
    )
    unlike = sorted({name for group in groups for name in group.unlike})
    is_alike = len({group.names[1:] for group in groups}) == 1 and not unlike
    best = [
        best_row(groups, spreads, place, measure, state) if is_alike else None for place, measure in enumerate(columns)
    ]
    rows = []
    for row, (group, values) in enumerate(zip(groups, spreads, strict=True)):
        settings = ", ".join(group.settings) or "–"
        if any(searched.get(run) for run, _ in group.runs):
            settings += " (best on validation)"
        cells: list[str | Cell] = [*group.names, settings, str(len(group.runs))]
        for measure, value, top in zip(columns, values, best, strict=True):
            cells.append(Cell(measure.text(value), None if value is None else value.mean, is_best=row == top))
        rows.append(cells)
    head = (*SUBJECT, "settings", "runs", *(measure.label for measure in columns))
    # What is the same in every row is said once, above the table.
    common = [index for index in range(1, len(SUBJECT) + 1) if len({row[index] for row in rows}) == 1]
    heading = ", ".join(f"{head[index]} {rows[0][index]}" for index in common if rows[0][index] != "–")
    columns_of_table = [index for index in range(len(head)) if index not in common]
    table = Table(
        "Results on the test images",
        [head[index] for index in columns_of_table],
        [[row[index] for index in columns_of_table] for row in rows],
        len(columns_of_table) - len(columns) - 1,
        range(len(rows)),
        [0] * (len(columns_of_table) - len(columns)) + [measure.better for measure in columns],
    )
    moment = "the last round" if state == "final" else "the round best by validation"
    notes = [f"Test images, {moment}: mean over runs ± standard error; accuracy is the mean over clients."]
    notes += _varied(groups)
    if searched:
        notes.append("Trials of a search: test images are shown of the winner by validation alone.")
    if repeated:
        notes.append(f"{repeated} older runs with the same seeds and settings are left out.")
    if unlike:
        notes.append(f"Rows are not of one experiment, so no best is marked; they differ in {', '.join(unlike)}.")
    return Comparison(
        heading, table, (*notes, *unfinished(runs)), state, tuple(groups), columns, spreads, tuple(losers), reference
    )


def _varied(groups: Sequence[Group]) -> list[str]:
    """What differs between the runs of a row, a line for each kind of row."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for row, group in enumerate(groups, start=1):
        if len(group.runs) > 1:
            kinds.setdefault(group.varied, []).append(row)
    lines = []
    for varied, rows in kinds.items():
        where = "of a row" if len(kinds) == 1 else f"of row {', '.join(map(str, rows))}"
        line = f"Runs {where} differ in {' and '.join(varied) or 'no seed'}"
        has_partitions = any(name.startswith("partition") for name in varied)
        lines.append(line + ("." if has_partitions else ", not in their partition: ± tells nothing of other images."))
    return lines


def _natural(row: Sequence[str]) -> list[tuple[float, str]]:
    """A key that sorts `num_extra=2` before `num_extra=10`."""
    parts = [part for cell in row for part in re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", cell)]
    return [(float(part), "") if part[:1].isdigit() else (-1.0, part) for part in parts]

"""Many runs side by side: those that differ in nothing but their seeds make one row, with the spread over seeds."""

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedbayes.errors import RunError
from fedbayes.tracking.run_dir import CONFIG, METRICS, SUMMARY, read_json

if TYPE_CHECKING:
    from rich.console import RenderableType

_NAMES = ("method", "data", "partition", "backbone")
_NUMBERS = ("seeds", "accuracy", "NLL (nats)", "ECE")
# Where a run lies, and how it is shown and saved, does not make it another experiment.
_ASIDE = ("run_dir", "resume", "dry_run", "tracking", "checkpoint", "hydra")


@final
@dataclass(frozen=True)
class Comparison:
    """A table of groups of runs.

    Attributes:
        heading: what all groups have in common.
        head: the names of the columns.
        rows: a row of texts per group.
        notes: what a reader should know, a line each.
    """

    heading: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The finished runs in and below some folders, each once.

    Args:
        folders: run directories, or folders that hold some at any depth.

    Raises:
        RunError: if a folder is missing or holds no finished run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder; name a run directory, or a folder that holds some.")
        runs = sorted(path.parent for path in folder.rglob(SUMMARY))
        if not runs:
            begun = sum(1 for _ in folder.rglob(METRICS))
            state = f"{begun} unfinished" if begun else f"no {SUMMARY} in or below it"
            raise RunError(f"{folder} holds no finished run ({state}); name a folder of finished runs.")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def compare(runs: Sequence[Path], state: str = "final") -> Comparison:
    """Groups runs that are equal up to seeds.

    Args:
        runs: directories of finished runs.
        state: "final" for the last round, "best" for the round best by validation.

    Returns:
        Test accuracy (mean over clients), NLL and ECE per group: the mean over seeds ± its standard error.

    Raises:
        RunError: if a file of a run is broken.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[str, Any]]] = {}
    settings: dict[tuple[Any, ...], dict[str, str]] = {}
    repeated = 0
    for run in sorted(runs, key=lambda run: (run / SUMMARY).stat().st_mtime):
        summary = read_json(run / SUMMARY)
        flat = dict(_flatten(_config(run)))
        names = tuple(str(summary.get(name) or "–") for name in _NAMES)
        fixed = {key: value for key, value in flat.items() if not _is_seed(key)}
        seeds = (str(summary.get("seed")), *(f"{key}={value}" for key, value in sorted(flat.items()) if _is_seed(key)))
        key = (names, tuple(sorted(fixed.items())))
        settings[key] = fixed
        group = groups.setdefault(key, {})
        repeated += seeds in group  # the same run again would make the standard error look smaller than it is
        group[seeds] = summary
    rows = []
    for key, group in groups.items():
        results = [summary.get(state) or {} for summary in group.values()]
        rows.append(
            (
                *key[0],
                ", ".join(_differences(key, settings)) or "–",
                str(len(group)),
                _spread([(result.get("accuracy") or {}).get("mean") for result in results]),
                _spread([result.get("nll") for result in results]),
                _spread([result.get("ece") for result in results]),
            )
        )
    rows.sort(key=_natural)
    head = (*_NAMES, "settings", *_NUMBERS)
    # What is the same in every row is said once, above the table.
    common = [index for index in range(1, len(_NAMES) + 1) if len({row[index] for row in rows}) == 1]
    heading = ", ".join(f"{head[index]} {rows[0][index]}" for index in common if rows[0][index] != "–")
    kept = [index for index in range(len(head)) if index not in common]
    what = "the last round" if state == "final" else "the round best by validation"
    notes = [f"Test images, {what}: mean over seeds ± standard error; accuracy is the mean over clients."]
    if repeated:
        notes.append(f"{repeated} older runs with the same seeds and settings are left out.")
    return Comparison(
        heading=heading,
        head=tuple(head[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in rows),
        notes=tuple(notes),
    )


def as_table(table: Comparison) -> "RenderableType":
    """The comparison for the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD,
        title=escape(table.heading) or None,
        title_justify="left",
        caption="\n".join(table.notes),
        caption_justify="left",
        pad_edge=False,
    )
    for name in table.head:
        right = name in _NUMBERS
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right or name == "method")
    for row in table.rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def as_markdown(table: Comparison) -> str:
    """The comparison as a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    marks = ["---:" if name in _NUMBERS else "---" for name in table.head]
    lines = [line(table.head), line(marks), *(line(row) for row in table.rows)]
    above = [table.heading, ""] if table.heading else []
    return "\n".join([*above, *lines, "", *table.notes])


def _spread(values: Sequence[float | None]) -> str:
    """Mean ± standard error of the mean; the mean alone of a single run."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known) / math.sqrt(len(known)):.3f}"


def _differences(key: tuple[Any, ...], settings: Mapping[tuple[Any, ...], Mapping[str, str]]) -> list[str]:
    """The settings in which a group differs from others of the same method, data, partition and backbone."""
    rivals = [fixed for other, fixed in settings.items() if other[0] == key[0]]
    own = settings[key]
    names = sorted({name for fixed in rivals for name in fixed})
    names = [name for name in names if any(fixed.get(name) != own.get(name) for fixed in rivals)]
    ends = [name.split(".")[-1] for name in names]
    short = [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]
    return [f"{label}={own.get(name, '–')}" for label, name in zip(short, names, strict=True)]


def _natural(row: Sequence[str]) -> list[tuple[float, str]]:
    """A key that sorts `num_extra=2` before `num_extra=10`."""
    parts = [part for cell in row for part in re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", cell)]
    return [(float(part), "") if part[:1].isdigit() else (-1.0, part) for part in parts]


def _is_seed(key: str) -> bool:
    return key.split(".")[-1] == "seed"


def _config(run: Path) -> Mapping[str, Any]:
    """A run's configuration; empty where it was not kept."""
    import yaml

    path = run / CONFIG
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read ({error}); mend or remove it.") from error
    return {name: value for name, value in (found or {}).items() if name not in _ASIDE}


def _flatten(node: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted names, as texts."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(node)

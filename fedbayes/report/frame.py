"""Runs as one pandas table: `fedbayes.frame(RUN_OR_SWEEP_DIR)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbayes.errors import require_choice
from fedbayes.report.groups import find_runs, read_run, trials
from fedbayes.report.spread import flatten
from fedbayes.storage.names import SUBJECT
from fedbayes.storage.run_dir import CLIENTS, METRICS, read_rows

if TYPE_CHECKING:
    import pandas as pd

NAMES = (*SUBJECT, "seed")
"""Columns that say which run a row is of, after `run`, its directory."""
ROWS = ("summary", "rounds", "clients")


def frame(folders: str | Path | Sequence[str | Path], rows: str = "summary") -> "pd.DataFrame":
    """The finished runs in and below some folders as a table.

    Args:
        folders: a run directory, a sweep directory or a folder that holds some at any depth, or a list of such.
        rows: `summary` for a row per run, whose columns are the numbers of `summary.json` by dotted names such as
            `final.accuracy.mean`, with `validation.accuracy` and `validation.nll` of the round that is best by
            validation, and for trials of a search `is_chosen`; `rounds` for the rows of `metrics.jsonl`; `clients` for
            those of `clients.jsonl`.

    Returns:
        Columns `run`, `method`, `data`, `partition`, `backbone` and `seed`, then those of the rows; what a row lacks is
        NaN. Of `rows="clients"`, the column `client` is the client's number, which its file calls `partition`.

    Raises:
        ConfigError: if there are no such rows.
        RunError: if a folder is missing or holds no finished run.
    """
    import pandas as pd

    require_choice("rows", rows, ROWS)
    several = [folders] if isinstance(folders, str | Path) else folders
    records = []
    runs = find_runs([Path(folder) for folder in several])
    searched = trials(runs)
    for run in runs:
        summary = read_run(run)
        if run in searched:
            summary["is_chosen"] = searched[run]
        labels = {"run": str(run), **{name: summary.get(name) for name in NAMES}}
        records += [{**labels, **row} for row in _rows(run, rows, summary)]
    return pd.DataFrame(records)


def _rows(run: Path, rows: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    if rows == "summary":
        # Lists, such as the clients' results, are left to `rows="clients"`.
        return [{n: value for n, value in flatten(summary) if n not in NAMES and not isinstance(value, list)}]
    if rows == "rounds":
        return read_rows(run / METRICS)
    lines = read_rows(run / CLIENTS, key=("round", "phase", "partition"))
    return [{"client": row.pop("partition"), **row} for row in lines]

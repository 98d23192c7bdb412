"""What a sweep's folder says of its jobs: `sweep.jsonl` as they begin and end, `summary.csv` and `.md` after each.

Jobs may run in processes of their own, side by side; the folder is where they and the command that started them meet.
A job that an exception ends which no input explains leaves the traceback there, in `error-JOB.txt`.
"""

import fcntl
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fedbayes.errors import ConfigError, FedbayesError
from fedbayes.report.tables import Table, as_csv, markdown
from fedbayes.storage import files
from fedbayes.storage.run_dir import FINISHED, METRICS, SWEEP, json_lines, plain, read_jobs, read_rows
from fedbayes.text import visible

TABLE = "summary.csv"
PAGE = "summary.md"
RUNNING, FAILED = "running", "failed"
CHOSEN = "finished, best on validation"
"""The status that tables show of the winner of a search."""
INSTALLED = ("fedbayes", "strategies", "clients", "flwr")
"""Packages of fedbayes's own configuration; whatever else a `_target_` names is a user's."""
_TEST = ("accuracy", "nll", "ece")
_NUMBERS = ("validation", *_TEST, "seconds")


@final
class Watch(Callback):
    """Hydra tells the command here where its sweep goes; `conf/config.yaml` names this class."""

    folder: Path | None = None
    """Of the sweep that this process started last."""
    again: bool = True
    """Whether it can be run again as it was; a search draws other values once a failed job has a result."""
    before: int = 0
    """Rows of its record from earlier sweeps into the same folder."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None) -> None:  # type: ignore[override]
        """Called before the first job, in the process of the command."""
        del config_name  # Hydra passes it by name
        if OmegaConf.select(config, "hydra.sweeper.storage") is not None:
            raise ConfigError(
                f"hydra.sweeper.storage={config.hydra.sweeper.storage} cannot be used: Hydra's sweeper and Flower want "
                "different versions of SQLAlchemy, so a search lives in memory; leave it out."
            )
        Watch.folder = Path(config.hydra.sweep.dir)
        Watch.again = str(config.hydra.runtime.choices["hydra/sweeper"]) == "basic"
        Watch.before = sum(1 for _ in json_lines(Watch.folder / SWEEP))


def job(cfg: DictConfig, hydra: Any, run_dir: Path, work: Callable[[], Mapping[str, Any]]) -> float | None:
    """One job, with a row of the record when it begins and another when it ends, whatever its end.

    Args:
        cfg: of the job.
        hydra: Hydra's own configuration of the job.
        run_dir: where its files go.
        work: runs it; returns the object of its `summary.json`.

    Returns:
        The best score on validation, larger is better, for sweepers that search; None if the job failed, which the
        record and a line on standard error then say. Nothing is raised for it, so that a sweeper goes on with its next
        batch.

    Raises:
        OSError: if the record or a traceback cannot be written.
    """
    folder = Path(hydra.sweep.dir)
    started = time.time()
    row: dict[str, Any] = {
        "job": hydra.job.num,
        "method": cfg.names.method,
        "seed": cfg.seed,
        "overrides": [word for word in hydra.overrides.task if not word.startswith("resume=")],
        "folder": str(_within(folder, run_dir)),
        "status": RUNNING,
        "is_search": str(hydra.runtime.choices["hydra/sweeper"]) != "basic",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    error_file = folder / f"error-{hydra.job.num}.txt"
    error_file.unlink(missing_ok=True)  # of an earlier try
    record(folder, row)
    try:
        summary = work()
    except Exception as error:
        message = one_line(error, user_modules(cfg))
        if not isinstance(error, FedbayesError):
            error_file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            message = f"{message}; traceback in {error_file}"
        print(f"{job_name(row)}: {message}", file=sys.stderr, flush=True)
        with suppress(OSError):  # Hydra has made it, maybe for nothing
            Path(hydra.runtime.output_dir).rmdir()
        written = row["folder"] if run_dir.is_dir() else None
        outcome = {"status": FAILED, "error": message, "seconds": time.time() - started, "folder": written}
        record(folder, {**row, **outcome})
        return None
    last = summary["final"]
    scores = {"accuracy": last["accuracy"]["mean"], "nll": last["nll"], "ece": last["ece"]}
    validation = score(run_dir, cfg.evaluate.best_by)
    numbers = {"validation": validation, **scores, "seconds": summary["seconds"]["total"]}
    record(folder, {**row, "status": FINISHED, **numbers})
    return validation


def score(run_dir: Path, best_by: str) -> float | None:
    """The best on validation of all rounds: accuracy, or minus the NLL in nats; larger is better."""
    rows = [row for row in read_rows(run_dir / METRICS) if row.get("phase") == "validation"]
    values = [row[best_by] for row in rows if row.get(best_by) is not None]
    return max((-value if best_by == "nll" else value for value in values), default=None)


def record(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the record and write the summaries anew; processes do so one after the other."""
    with _locked(folder):
        with files.require_file(folder / SWEEP).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        head, rows = table(read_jobs(folder))
        files.replace(folder / TABLE, as_csv(head, rows))
        files.replace(folder / PAGE, as_page(folder.name, head, rows))


def failures() -> list[str]:
    """The jobs of this process's sweep that did not finish, a line each: number, overrides and error."""
    if Watch.folder is None:
        return []
    return [
        f"{job_name(row)}: {row.get('error', 'broke off')}"
        for row in read_jobs(Watch.folder, Watch.before)
        if row["status"] != FINISHED
    ]


def job_name(row: Mapping[str, Any]) -> str:
    """A job's number and overrides."""
    return f"job {row['job']} ({','.join(row['overrides'])})"


def one_line(error: Exception, modules: Collection[str] = ()) -> str:
    """Kind and text of an error, and whose fault it may be unless a user's input explains it.

    Args:
        error: what ended a job.
        modules: of the user's own, by `user_modules`.
    """
    if isinstance(error, FedbayesError):
        whose = ""
    elif place := _raised(error, modules):
        whose = f"raised in {place}: "
    elif modules:
        whose = f"a fault of {', '.join(modules)} or of fedbayes: "
    else:
        whose = "a fault of fedbayes, please report it: "
    return visible(" ".join(f"{whose}{type(error).__name__}: {error}".split()))


def user_modules(cfg: DictConfig) -> list[str]:
    """The top-level modules that a configuration names and that are neither fedbayes's nor Flower's."""
    return sorted({*re.findall(r"\b_target_: ['\"]?(\w+)", OmegaConf.to_yaml(cfg))} - {*INSTALLED})


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns, and a line per job: what varies between jobs has a column of its own."""
    settings = [dict(word.partition("=")[::2] for word in row["overrides"]) for row in rows]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    varied = [
        key for key in keys if key not in ("method", "seed") and len({setting.get(key) for setting in settings}) > 1
    ]
    chosen = max((row["validation"] for row in rows if row.get("validation") is not None), default=None)
    if any(row.get("is_search") for row in rows):  # test images are shown of the winner by validation alone
        rows = [
            {**row, "status": CHOSEN} if row.get("validation") == chosen else {**row, **dict.fromkeys(_TEST)}
            for row in rows
        ]
    head = ["job", "method", "seed", *varied, *_NUMBERS, "status", "error", "folder"]
    return head, [[{**setting, **row}.get(name) for name in head] for setting, row in zip(settings, rows, strict=True)]


def as_page(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table for reading."""
    where = head.index("status")
    states = [FINISHED if row[where] == CHOSEN else row[where] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (FINISHED, FAILED, RUNNING) if state in states)
    notes = (
        "Validation: the best round's score by evaluate.best_by, where larger is better (accuracy, or minus the NLL). "
        "Test images after the last round: accuracy is the mean over clients, NLL in nats; seconds are those of the "
        "whole job, loading data and model included."
    )
    cells = [["" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    table = Table(title, head, cells, texts=len(head))
    return "\n".join([f"# {markdown(title)}", "", f"{counts}.", "", table.as_markdown(), "", notes, ""])


def _raised(error: BaseException | None, modules: Collection[str]) -> str | None:
    """File and line of the innermost call in one of the modules, that of the first cause if there are several."""
    place = None
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            if str(frame.f_globals.get("__name__")).partition(".")[0] in modules:
                place = f"{frame.f_code.co_filename}, line {line}"
        error = error.__cause__ or error.__context__
    return place


def _within(folder: Path, path: Path) -> Path:
    """The path as seen from the folder if it lies in it, so that both may be moved together."""
    inside, outside = path.absolute(), folder.absolute()
    return inside.relative_to(outside) if inside.is_relative_to(outside) else inside


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a sweep's record to this process for the block."""
    with files.require_file(folder / SWEEP).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

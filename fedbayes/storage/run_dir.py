"""The files of a run's directory: their names, and reading and writing those that describe the run."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from fedbayes.errors import RunError
from fedbayes.storage import files
from fedbayes.storage.names import CHECKPOINTS, CONFIG

METRICS = "metrics.jsonl"
CLIENTS = "clients.jsonl"
SUMMARY = "summary.json"
SECURE = "secure.json"
PARTITION = "partition.json"
INPUTS = "inputs.json"
LOG = "run.log"
REPORT = "report.html"
PLOTS = "plots"
PREDICTIONS = "predictions.safetensors"
GALLERY = "gallery.json"
SWEEP = "sweep.jsonl"  # in the folder that holds the runs
FINISHED = "finished"  # the status of a job in it that has a result
WANDB, TENSORBOARD = "wandb", "tensorboard"
REPORTS = (REPORT, "report.md", "report.csv", "report.tex")
"""A run's page and its tables beside it."""
FILES = (CONFIG, METRICS, CLIENTS, SUMMARY, SECURE, PARTITION, INPUTS, LOG, PREDICTIONS, GALLERY, *REPORTS)
FOLDERS = (PLOTS, CHECKPOINTS, WANDB, TENSORBOARD)
"""Everything that a run leaves in its directory."""
WRITTEN_EARLY = (METRICS, CLIENTS, CONFIG, PARTITION, INPUTS, LOG)
"""What is there before the first round ends."""
_OBJECTS = (
    "attack",
    "final",
    "best",
    "new_clients",
    "train",
    "privacy",
    "secure",
    "per_domain",
    "bytes",
    "seconds",
    "versions",
)

_MOST = 1e100  # of a number in a run's files


def require_own(run_dir: Path) -> None:
    """Raise a RunError where a run has files and folders of its own, and the directory has links, pipes or devices."""
    for path in (*(run_dir / name for name in FILES), *(run_dir / PLOTS).glob("*.*")):
        files.require_file(path)
    for name in FOLDERS:
        files.require_folder(run_dir / name)


def plain(value: object) -> Any:
    """Return the value in JSON's types: NaN and infinity become null, arrays lists, paths text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, scalars included
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def write_json(path: Path, obj: object) -> None:
    """Write a JSON file as `files.replace` does; NaN becomes null."""
    files.replace(path, json.dumps(plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; empty where there is no such file.

    Raises:
        RunError: if the file is a link or huge, or not a JSON object.
    """
    if not files.require_file(path).exists():
        return {}
    try:
        value = json.loads(files.read_text(path), parse_float=_number, parse_int=_number)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove the file or that run.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__}, not an object; remove the file or that run.")
    return value


def _number(text: str) -> float | int:
    """Return a number of a file, or raise a ValueError if it is too large for charts and sums."""
    value = float(text)
    if not abs(value) <= _MOST:
        raise ValueError(f"{text[:20]} is out of range")
    return value if set(text) & set(".eE") else int(text)


def read_rows(path: Path, key: Sequence[str] = ("round", "phase")) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; of equal keys only the last, as a round may have been logged twice."""
    return list({tuple(str(row.get(name)) for name in key): row for _, row in json_lines(path)}.values())


def read_jobs(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    """Return the newest row of each job of a sweep, by number, after the first `start` rows of its record."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _, row in islice(json_lines(folder / SWEEP), start, None):
        if isinstance(row.get("job"), int) and isinstance(row.get("overrides"), list):
            newest[(row["job"], *map(str, row["overrides"]))] = row
    return sorted(newest.values(), key=lambda row: int(row["job"]))


def keep_rounds(path: Path, last_round: int) -> None:
    """Drop what was written after a round, and a half-written line, so that a resumed run continues its files cleanly.

    A row of an earlier round may come after the last round: the best one's test images are predicted at the end.
    """
    if files.require_file(path).exists():
        rows = takewhile(lambda entry: entry[1].get("round", 0) <= last_round, json_lines(path))
        files.replace(path, "".join(f"{line}\n" for line, _ in rows))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the summary of a run; empty if it has not finished.

    Raises:
        RunError: if the file cannot be read, or is no summary.
    """
    path = run_dir / SUMMARY
    summary = read_json(path)
    for name in _OBJECTS:
        if not isinstance(summary.get(name) or {}, dict):
            raise RunError(f"{path} is no summary: {name} is {summary[name]!r}; remove it, and resume the run.")
    rows = [*(summary.get("per_client") or []), *(summary.get("per_domain") or {}).values()]
    if not all(isinstance(row, dict) for row in rows):
        raise RunError(f"{path} is no summary: per_client or per_domain holds no rows; remove it, and resume the run.")
    return summary


def read_text(path: Path) -> str:
    """Return a file's text, with whatever is no UTF-8 replaced, or raise a RunError."""
    try:
        return files.read_text(path, errors="replace")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); remove it or that run.") from error


def rounds_written(run_dir: Path) -> int:
    """Return the last round up to which every round of training is in a run's files; 0 for none."""
    last = math.inf
    for name in (METRICS, CLIENTS):
        rounds = {row.get("round") for _, row in json_lines(run_dir / name) if row.get("phase") == "train"}
        last = min(last, next(number for number in range(len(rounds) + 1) if number + 1 not in rounds))
    return int(last)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line of a JSONL file that is an object, and that object; none where there is no file.

    A half-written line is passed over, and so is one of a round that is no number or with one out of range: none is a
    row of ours.
    """
    if not files.require_file(path).exists():
        return
    for line in read_text(path).splitlines():
        try:
            row = json.loads(line, parse_float=_number, parse_int=_number)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("round", 0)) is int:
            yield line, row

"""A run's directory: claiming it, and reading and writing the files that describe the run."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fedbayes.errors import FedbayesError, RunError, StoppedError
from fedbayes.storage import checkpoint_folders, files
from fedbayes.storage.names import CONFIG

METRICS = "metrics.jsonl"
CLIENTS = "clients.jsonl"
SUMMARY = "summary.json"
PARTITION = "partition.json"
LOG = "run.log"
REPORT = "report.html"
PLOTS = "plots"
PREDICTIONS = "predictions.safetensors"
GALLERY = "gallery.json"
SWEEP = "sweep.jsonl"  # in the folder that holds the runs
FINISHED = "finished"  # the status of a job in it that has a result

WANDB = "wandb"
_TABLES = tuple(f"{Path(REPORT).stem}.{end}" for end in ("md", "csv", "tex"))
REPORTS = (REPORT, *_TABLES)
"""A run's page and its tables beside it."""
_FILES = (CONFIG, METRICS, CLIENTS, SUMMARY, PARTITION, LOG, PREDICTIONS, GALLERY, *REPORTS)
_FOLDERS = (PLOTS, checkpoint_folders.FOLDER, WANDB)
_OBJECTS = ("attack", "final", "best", "new_clients", "train", "privacy", "per_domain", "bytes", "seconds", "versions")

_MOST = 1e100  # of a number in a run's files
_MARKS = (CONFIG, METRICS, SUMMARY, checkpoint_folders.FOLDER)  # any of these: the directory holds a run
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)  # file systems without hard links


def claim(run_dir: Path, config: str) -> Path:
    """Takes a directory for a new run; of two processes that ask for the same one, exactly one gets it.

    Args:
        run_dir: the directory; it and its parents are made where they are missing.
        config: the text of `config.yaml`, which appears whole or not at all: whatever has it can be resumed.

    Returns:
        The same directory, now there, writable and holding `config.yaml` and an empty `metrics.jsonl`.

    Raises:
        RunError: if it already holds a run, or cannot be created or written.
    """
    remedy = "choose another run_dir or remove that one"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        require_own(run_dir)
        for mark in _MARKS:
            if (run_dir / mark).exists():
                raise RunError(f"run_dir={run_dir} already holds a run ({mark}); {remedy}.")
        _create(run_dir / CONFIG, config)
        (run_dir / METRICS).touch()
    except FileExistsError as error:
        if run_dir.is_dir():
            raise RunError(f"run_dir={run_dir} was just taken by another run; {remedy}.") from error
        raise RunError(f"run_dir={run_dir} cannot be a directory: a file is in the way; choose another.") from error
    except OSError as error:
        raise RunError(f"run_dir={run_dir} cannot be written ({error.strerror}); choose another run_dir.") from error
    return run_dir


def require_own(run_dir: Path) -> None:
    """Refuses a directory in which something else stands where a run has files and folders of its own.

    Raises:
        RunError: if it is a link that could lead anywhere, a pipe or a device; see `fedbayes.storage.files`.
    """
    for name in _FILES:
        files.require_file(run_dir / name)
    for name in _FOLDERS:
        files.require_folder(run_dir / name)
    for picture in (run_dir / PLOTS).glob("*.png"):
        files.require_file(picture)


@contextmanager
def claimed(run_dir: Path, config: str) -> Iterator[Path]:
    """Claims a directory for the block; a user's mistake that ends it before any round leaves nothing behind.

    Args:
        run_dir: see `claim`.
        config: see `claim`.

    Raises:
        RunError: see `claim` and `reopened`.
    """
    claim(run_dir, config)
    with reopened(run_dir):
        try:
            yield run_dir
        except StoppedError:
            raise
        except FedbayesError:
            if (run_dir / METRICS).stat().st_size == 0:
                for name in (METRICS, CLIENTS, CONFIG, PARTITION, LOG):
                    (run_dir / name).unlink(missing_ok=True)
                with suppress(OSError):  # something else lies in it
                    run_dir.rmdir()
            raise


@contextmanager
def reopened(run_dir: Path) -> Iterator[Path]:
    """Keeps a run's directory to this process for the block, and says in one line if it can no longer be written.

    Raises:
        RunError: if another process is at work in it, the disk is full or read-only, or it holds links; see
            `require_own`.
    """
    require_own(run_dir)
    try:
        with (run_dir / LOG).open("a") as lock:  # appended to, never replaced; a dead process's lock is gone
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{run_dir} is in use by another run; wait for its end, or stop it.") from error
            yield run_dir
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise RunError(
            f"{error.filename or run_dir} cannot be written ({error.strerror}); make room or access there, then go on "
            f"with `fedbayes resume={run_dir}`."
        ) from error


def _create(path: Path, text: str) -> None:
    """Writes a file that must not be there, whole or not at all.

    Raises:
        FileExistsError: if it is there.
    """
    with files.beside(path, text) as temporary:
        try:
            os.link(temporary, path)  # the one step that two processes cannot both do
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("x", encoding="utf-8") as file:
                file.write(text)


def plain(value: object) -> Any:
    """The same value in JSON's own types: NaN and infinity become null, arrays lists, paths text.

    Raises:
        TypeError: for a type that has no place in a run's files.
    """
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
    """Writes a JSON file so that a reader finds the old one or the new one, never half of it; NaN becomes null."""
    files.replace(path, json.dumps(plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty where there is no such file.

    Raises:
        RunError: if the file is a link or huge, or not a JSON object.
    """
    if not files.require_file(path).exists():
        return {}
    try:
        found = json.loads(files.read_text(path), parse_float=_number, parse_int=_number)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove the file or that run.") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} holds a {type(found).__name__}, not an object; remove the file or that run.")
    return found


def _number(text: str) -> float | int:
    """A number of a file, if charts and sums can hold it; `plain` writes no other.

    Raises:
        ValueError: if it is out of range.
    """
    value = float(text)
    if not abs(value) <= _MOST:
        raise ValueError(f"{text[:20]} is out of range")
    return value if set(text) & set(".eE") else int(text)


def read_rows(path: Path, key: Sequence[str] = ("round", "phase")) -> list[dict[str, Any]]:
    """The rows of a JSONL file; of rows with an equal key only the last, as a round may have been logged twice.

    Args:
        path: the file; where there is none there are no rows.
        key: the names that tell rows apart.

    Returns:
        The rows in the order of the file. A line that a broken run left half-written is passed over.
    """
    return list({tuple(str(row.get(name)) for name in key): row for _, row in json_lines(path)}.values())


def read_jobs(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    """The newest row of each job of a sweep, in the order of their numbers.

    Args:
        folder: of the sweep.
        start: rows of its record to pass over.
    """
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _, row in islice(json_lines(folder / SWEEP), start, None):
        if isinstance(row.get("job"), int) and isinstance(row.get("overrides"), list):
            newest[(row["job"], *map(str, row["overrides"]))] = row
    return sorted(newest.values(), key=lambda row: int(row["job"]))


def keep_rounds(path: Path, last_round: int) -> None:
    """Drops the rows of later rounds and a half-written line, so that a resumed run continues its files cleanly."""
    if files.require_file(path).exists():
        kept = [line for line, row in json_lines(path) if row.get("round", 0) <= last_round]
        files.replace(path, "".join(f"{line}\n" for line in kept))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What a run has come to; empty if it has not finished.

    Raises:
        RunError: if the file cannot be read, or is no summary.
    """
    path = run_dir / SUMMARY
    found = read_json(path)
    for name in _OBJECTS:
        if not isinstance(found.get(name) or {}, dict):
            raise RunError(f"{path} is no summary: {name} is {found[name]!r}; remove it, and resume the run.")
    rows = [*(found.get("per_client") or []), *(found.get("per_domain") or {}).values()]
    if not all(isinstance(row, dict) for row in rows):
        raise RunError(f"{path} is no summary: per_client or per_domain holds no rows; remove it, and resume the run.")
    return found


def read_text(path: Path) -> str:
    """A file's text; what is no UTF-8 is replaced.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        return files.read_text(path, errors="replace")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); remove it or that run.") from error


def rounds_written(run_dir: Path) -> int:
    """The last round up to which every round of training is in a run's files; 0 for none."""
    last = math.inf
    for name in (METRICS, CLIENTS):
        there = {row.get("round") for _, row in json_lines(run_dir / name) if row.get("phase") == "train"}
        last = min(last, next(one for one in range(len(there) + 1) if one + 1 not in there))
    return int(last)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a JSONL file that is an object, and that object.

    A half-written line is passed over, and so is one of a round that is no number or with one out of range: none is a
    row of ours.

    Raises:
        RunError: if the file cannot be read.
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

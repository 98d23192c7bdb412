"""Taking a directory for a run, and keeping it to one process while the run goes on."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedbayes.errors import FedbayesError, RunError, StoppedError
from fedbayes.storage import checkpoint, files
from fedbayes.storage.names import CHECKPOINTS, CONFIG
from fedbayes.storage.run_dir import LOG, METRICS, SUMMARY, WRITTEN_EARLY, require_own, rounds_written

_MARKS = (CONFIG, METRICS, SUMMARY, CHECKPOINTS)  # any of these: the directory holds a run
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)  # file systems without hard links


@contextmanager
def run_directory(run_dir: Path | None, cfg: DictConfig, *, resumed: bool) -> Iterator[checkpoint.Restart]:
    """Keep a directory to this run for the block; a user's mistake that ends it before any round leaves nothing behind.

    Args:
        run_dir: the directory; None for a new one under `runs/`.
        cfg: the configuration.
        resumed: whether the directory holds this very run, to go on from its newest checkpoint.

    Raises:
        RunError: see `claim`, `reopened` and `checkpoint.newest`.
    """
    if run_dir is None:
        name = f"{cfg.names.method}-{cfg.names.data}-s{cfg.seed}"
        run_dir = new_folder(datetime.now().strftime("runs/%Y-%m-%d/%H-%M-%S-") + name)
    if not resumed:
        claim(run_dir, OmegaConf.to_yaml(cfg, resolve=True))
    with reopened(run_dir):
        try:
            yield checkpoint.newest(run_dir, rounds_written(run_dir)) if resumed else checkpoint.Restart(run_dir)
        except FedbayesError as error:
            if not resumed and not isinstance(error, StoppedError) and (run_dir / METRICS).stat().st_size == 0:
                for name in WRITTEN_EARLY:
                    (run_dir / name).unlink(missing_ok=True)
                with suppress(OSError):  # something else lies in it
                    run_dir.rmdir()
            raise


def new_folder(path: str) -> Path:
    """Make a folder that was not there; a number follows its name where another process has just made that one.

    Raises:
        RunError: if it cannot be made.
    """
    folder, numbers = Path(path), count(2)
    while True:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError as error:
            if not folder.exists():
                raise RunError(f"{folder.parent} cannot be a directory: a file is in the way; remove it.") from error
            folder = Path(f"{path}-{next(numbers)}")
        except OSError as error:
            raise RunError(f"{folder} cannot be made ({error.strerror}); choose run_dir=DIR.") from error


def claim(run_dir: Path, config: str) -> Path:
    """Take a directory for a new run, made where it is missing; of two processes that ask for it, exactly one gets it.

    Its `config.yaml` with the text `config` appears whole or not at all: whatever has it can be resumed.

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


@contextmanager
def reopened(run_dir: Path) -> Iterator[None]:
    """Keep a run's directory to this process for the block, and say in one line if it can no longer be written.

    Raises:
        RunError: if another process is at work in it, the disk is full or read-only, or it holds links.
    """
    require_own(run_dir)
    try:
        with (run_dir / LOG).open("a") as lock:  # appended to, never replaced; a dead process's lock is gone
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{run_dir} is in use by another run; wait for its end, or stop it.") from error
            yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise RunError(
            f"{error.filename or run_dir} cannot be written ({error.strerror}); make room or access there, then go on "
            f"with `fedbayes resume={run_dir}`."
        ) from error


def _create(path: Path, text: str) -> None:
    """Write a file whole or not at all, or raise a FileExistsError if it is there."""
    with files.beside(path, text) as temporary:
        try:
            os.link(temporary, path)  # the one step that two processes cannot both do
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("x", encoding="utf-8") as file:
                file.write(text)

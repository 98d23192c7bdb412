"""Files of a run's or a sweep's folder, which somebody else may have made: plain ones of a sane size, or none.

A link in such a folder may lead to any file of the user's, and a pipe or a device never ends. So whatever is read or
written there is a file that lies in it by itself. The folder may be reached through links: only its entries are looked
at.
"""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedbayes.errors import RunError

MOST_TEXT = 2**30
"""Bytes of a text. The rows of a thousand clients over two thousand rounds are less than half of that."""


def require_file(path: Path) -> Path:
    """Return the path, or raise a RunError if it is a link, a folder, a pipe or a device."""
    return _require(path, stat.S_ISREG, "file")


def require_folder(path: Path) -> Path:
    """Return the path, or raise a RunError if it is a link or a file of any kind."""
    return _require(path, stat.S_ISDIR, "folder")


def _require(path: Path, fits: Callable[[int], bool], kind: str) -> Path:
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing there; or the folder may not be looked into, which whoever opens it will say
        return path
    if not fits(mode):
        kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFIFO: "pipe"}
        present = kinds.get(stat.S_IFMT(mode), "device or socket")
        raise RunError(f"{path} is a {present}, where a run has a {kind}; remove it, or put the {kind} itself there.")
    return path


def require_size(path: Path, most: float | None = None) -> Path:
    """Return the path, or raise a RunError if it is no file, or one of more than `most` bytes.

    Without `most` it may have half of this machine's memory.
    """
    if require_file(path).exists():
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 if most is None else most
        if (size := path.stat().st_size) > room:
            raise RunError(
                f"{path} has {size / 1e9:,.1f} GB, more than the {room / 1e9:,.1f} GB that are read of such a file; "
                "remove the file or that run."
            )
    return path


def read_text(path: Path, errors: str = "strict") -> str:
    """Return a file's text, or raise an OSError, a RunError or a UnicodeDecodeError."""
    return require_size(path, MOST_TEXT).read_text(encoding="utf-8", errors=errors)


def replace(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it, and the disk holds it."""
    with beside(require_file(path), content) as temporary:
        temporary.replace(path)


@contextmanager
def beside(path: Path, content: str | bytes) -> Iterator[Path]:
    """Write a file beside a place and force it to the disk; it is removed unless the block moves it to the place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # never through a link
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)

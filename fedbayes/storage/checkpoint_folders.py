"""Where a run's checkpoints lie: one folder each, named by its round."""

import re
from collections.abc import Sequence
from pathlib import Path

from fedbayes.storage import files

FOLDER = "checkpoint"
"""In the run's directory."""
_OWN = re.compile(r"round-[0-9]{5,}")
_HALF = re.compile(r"\.round-[0-9]{5,}\.[0-9]+")
"""Names of checkpoints, and of those that a process is writing; what has another name is somebody else's."""


def folder_of(parent: Path, server_round: int) -> Path:
    """The place of a round's checkpoint."""
    return parent / f"round-{server_round:05d}"


def half_of(folder: Path, process: int) -> Path:
    """The place where a process writes a checkpoint before it is whole."""
    return folder.with_name(f".{folder.name}.{process}")


def is_half(folder: Path) -> bool:
    """Whether a process writes, or wrote, a checkpoint here that is not whole."""
    return _HALF.fullmatch(folder.name) is not None


def finished(run_dir: Path) -> Sequence[Path]:
    """All finished checkpoints of a run, oldest first.

    Raises:
        RunError: if one is a link, or their folder is.
    """
    parent = files.require_folder(run_dir / FOLDER)
    own = [one for one in parent.glob("round-*") if _OWN.fullmatch(one.name)]
    return sorted(map(files.require_folder, own), key=round_of)


def round_of(folder: Path) -> int:
    """The round in a finished checkpoint's name."""
    return int(folder.name.removeprefix("round-"))

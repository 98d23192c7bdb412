"""A run's whole state between two rounds on disk, as safetensors and JSON, from which it goes on exactly.

    checkpoint/round-00015/  server.safetensors  personal.safetensors  strategy.safetensors  evaluations.safetensors
                             state.json

There are no states of random generators, because all random numbers are keyed. A checkpoint appears whole or not at
all: it is written beside its place, forced to the disk and renamed into it. `state.json` holds the checksum of every
file and one of its own, so that a damaged checkpoint is known as such and the one before it takes its place.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from fedbayes.arrays import Arrays, by_name, by_partition, mean_arrays
from fedbayes.errors import RunError
from fedbayes.storage import files
from fedbayes.storage.names import CHECKPOINTS

KEPT = 2  # checkpoints; the older one stands in for a newest one that was damaged
STATE = "state.json"
PARTS = ("server", "personal", "strategy", "evaluations")
"""Its files of arrays."""
FORMAT = 2
_FINISHED = re.compile(r"round-[0-9]{5,}")
_HALF = re.compile(r"\.round-[0-9]{5,}\.[0-9]+")
"""Names of checkpoints, and of those that a process is writing; what has another name is somebody else's."""


class DamagedError(RunError):
    """A checkpoint that is not as it was written."""


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run has come to after a round.

    Attributes:
        server_round: rounds done.
        server: the strategy's parameters.
        personal: each client's personal parameters, by partition.
        strategy: what the strategy remembers beside its parameters.
        evaluations: predictions of the evaluations that the run still needs.
        history: everything else that the next round or the summary needs, in JSON's types; NaN and infinity may occur.
    """

    server_round: int
    server: Arrays
    personal: dict[int, Arrays]
    strategy: Arrays = field(default_factory=dict)
    evaluations: Arrays = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)

    def personal_of(self, partition: int | None) -> Arrays:
        """Return a client's personal parameters; the mean over clients for one that never trained, and for None."""
        if partition in self.personal:
            return self.personal[partition]
        return mean_arrays(list(self.personal.values()))


def save(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, drop all but the newest two, and return its folder.

    Raises:
        RunError: if it cannot be written; those that were there stay.
    """
    parent = files.require_folder(run_dir / CHECKPOINTS)
    folder = files.require_folder(parent / f"round-{checkpoint.server_round:05d}")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    personal = by_name(dict(sorted(checkpoint.personal.items())))
    content = dict(zip(PARTS, (checkpoint.server, personal, checkpoint.strategy, checkpoint.evaluations), strict=True))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for entry in parent.iterdir():
            if _HALF.fullmatch(entry.name):  # of a process that was killed while it wrote
                shutil.rmtree(entry, ignore_errors=True)
        temporary.mkdir()
        for name, arrays in content.items():
            write_arrays(temporary / f"{name}.safetensors", arrays)
        state = {
            "format": FORMAT,
            "round": checkpoint.server_round,
            "history": checkpoint.history,
            "order": {name: list(arrays) for name, arrays in content.items()},  # safetensors sorts, strategies may not
            "sha256": {file.name: _digest(file) for file in sorted(temporary.iterdir())},
        }
        files.replace(temporary / STATE, json.dumps({**state, "checksum": _checksum(state)}))
        _force(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
        _force(parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"the checkpoint of round {checkpoint.server_round} cannot be written to {parent} ({error.strerror}); make "
            f"room or access there, then go on with `fedbayes resume={run_dir}`."
        ) from error
    # Later ones are damaged, or the run would not be here.
    useful = [entry for entry in finished(run_dir) if _round_of(entry) <= checkpoint.server_round][-KEPT:]
    for entry in set(finished(run_dir)) - set(useful):
        shutil.rmtree(entry, ignore_errors=True)
    return folder


@final
@dataclass(frozen=True, eq=False)
class Restart:
    """Where a run goes on, if it was begun before: the newest checkpoint, and why each newer one cannot be used."""

    run_dir: Path
    resumed: bool = False
    checkpoint: Checkpoint | None = None
    damage: Sequence[str] = ()

    @property
    def after(self) -> int | None:
        """The last round that a resumed run has done; None for a new run."""
        done = 0 if self.checkpoint is None else self.checkpoint.server_round
        return done if self.resumed else None


def newest(run_dir: Path, written: float = math.inf) -> Restart:
    """Return the newest checkpoint that a run can go on from; None if all are damaged: the run starts again.

    `written` is the last round that the run's other files have; what comes after it has to be done again.

    Raises:
        RunError: if one is of another version or cannot be opened, or all lack the personal parameters of clients.
    """
    damage: list[str] = []
    is_incomplete = False
    for folder in reversed(finished(run_dir)):
        try:
            checkpoint = _read(folder)
        except DamagedError as error:
            damage.append(str(error))
            continue
        if checkpoint.server_round > written:
            damage.append(f"{folder} is not used: metrics.jsonl or clients.jsonl lacks rounds after {written}")
        elif not checkpoint.history.get("complete", True):
            is_incomplete = True
            damage.append(f"{folder} lacks personal parameters of clients")
        else:
            return Restart(run_dir, True, checkpoint, damage)
    if is_incomplete:
        raise RunError(
            f"{run_dir} cannot go on: its clients do not share their personal parameters, so no checkpoint has them; "
            "run it again, with share-personal=true on every SuperNode if they may hand them out."
        )
    return Restart(run_dir, True, None, damage)


def latest(run_dir: Path) -> Checkpoint:
    """Return the newest checkpoint of a run.

    Raises:
        RunError: if there is none, or it cannot be read.
    """
    folders = finished(run_dir)
    if not folders:
        raise RunError(f"{run_dir} has no checkpoint; it is not a run, or it broke off before its end.")
    return _read(folders[-1])


def finished(run_dir: Path) -> Sequence[Path]:
    """Return the folders of all finished checkpoints, oldest first, or raise a RunError if one of them is a link."""
    folders = files.require_folder(run_dir / CHECKPOINTS).glob("round-*")
    return sorted((files.require_folder(f) for f in folders if _FINISHED.fullmatch(f.name)), key=_round_of)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays whole or not at all, as `files.replace` does."""
    # In C order, since safetensors takes the bytes as they lie in memory; and not by `save_file`, which would make a
    # file that nobody but its owner can read.
    files.replace(path, to_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def _read(folder: Path) -> Checkpoint:
    """Return a checkpoint, if nothing in it was changed.

    Raises:
        DamagedError: if it is damaged.
        RunError: if it is of another version, may not be read, or holds links or what is no file.
    """
    try:
        state = json.loads(files.read_text(folder / STATE))
        if state.pop("checksum") != _checksum(state):
            raise ValueError(f"{STATE} was changed")
        if state["format"] != FORMAT:
            raise RunError(
                f"{folder} is of format {state['format']}, this is {FORMAT}; use the fedbayes that wrote it."
            )
        if state["round"] != _round_of(folder):
            raise ValueError(f"{STATE} is of round {state['round']}")
        arrays: dict[str, Arrays] = {}
        for key in PARTS:
            path = files.require_size(folder / f"{key}.safetensors")
            if _digest(path) != state["sha256"][path.name]:
                raise ValueError(f"{path.name} was changed")
            loaded = load_file(path)
            arrays[key] = {name: loaded[name] for name in state["order"][key]}
        return Checkpoint(
            server_round=_round_of(folder),
            server=arrays["server"],
            personal=by_partition(arrays["personal"]),
            strategy=arrays["strategy"],
            evaluations=arrays["evaluations"],
            history=dict(state["history"]),
        )
    except (PermissionError, InterruptedError) as error:
        raise RunError(f"{folder} may not be read ({error.strerror}); allow it.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise DamagedError(f"{folder} cannot be read ({error}); run the experiment again.") from error


def _round_of(folder: Path) -> int:
    return int(folder.name.removeprefix("round-"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(state: Mapping[str, Any]) -> str:
    """Return the checksum of everything else in a state, which does not depend on how it was written down."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _force(path: Path) -> None:
    """Have the disk hold a folder's entries."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

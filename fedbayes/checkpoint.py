"""A run's learnt state on disk: the server's arrays and what clients keep to themselves, as safetensors.

    checkpoint/round-00015/  server.safetensors  personal.safetensors  state.json

A checkpoint appears whole or not at all: it is written beside its place and renamed into it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedbayes.errors import RunError
from fedbayes.messages import Arrays

FOLDER = "checkpoint"
SEPARATOR = "/"  # between partition and parameter in the names of personal arrays


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run has learnt after a round.

    Attributes:
        server_round: rounds done.
        server: the strategy's parameters.
        personal: what each client keeps to itself, by partition.
    """

    server_round: int
    server: Arrays
    personal: dict[int, Arrays]


def save(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and return its folder."""
    folder = run_dir / FOLDER / f"round-{checkpoint.server_round:05d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    personal = {
        f"{partition}{SEPARATOR}{name}": array
        for partition, arrays in sorted(checkpoint.personal.items())
        for name, array in arrays.items()
    }
    write_arrays(temporary / "server.safetensors", checkpoint.server)
    write_arrays(temporary / "personal.safetensors", personal)
    state = {"round": checkpoint.server_round, "format": 1}
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for file in temporary.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return folder


def latest(run_dir: Path) -> Checkpoint:
    """The newest checkpoint of a run.

    Raises:
        RunError: if there is none, or it cannot be read.
    """
    folders = sorted((run_dir / FOLDER).glob("round-*"))
    if not folders:
        raise RunError(f"{run_dir} has no checkpoint; it is not a run, or it broke off before its end.")
    folder = folders[-1]
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        server = load_file(folder / "server.safetensors")
        flat = load_file(folder / "personal.safetensors")
        server_round = int(state["round"])
        personal: dict[int, Arrays] = {}
        for name, array in flat.items():
            partition, _, parameter = name.partition(SEPARATOR)
            personal.setdefault(int(partition), {})[parameter] = array
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{folder} cannot be read ({error}); run the experiment again.") from error
    return Checkpoint(server_round, server, personal)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays; safetensors takes the bytes as they lie in memory, so they must lie in C order."""
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)

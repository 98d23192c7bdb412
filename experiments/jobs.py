"""Runs of an experiment, several at a time, each with one torch thread and in a folder of its own.

A folder with a summary is not run again. A run that broke off goes on from its last checkpoint. A run that was made
with other settings is refused.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from joblib import Parallel, delayed

from fedbayes.storage.names import CONFIG
from fedbayes.storage.run_dir import SUMMARY

Job = tuple[Path, tuple[str, ...]]
"""Folder and overrides of a run."""
ONE_THREAD = "simulation.threads=1"
PATHS = ("run_dir", "data.root", "backbone.checkpoint")
LONGEST = 180  # characters of a folder's name; file systems allow 255 bytes


def run_all(jobs: Sequence[Job], processes: int) -> list[Path]:
    """Run what has no summary yet and return all folders, in order. A failure is printed and stops no other run.

    Raises:
        SystemExit: if a run exists that was made with other settings; see `require_same`.
    """
    require_same(jobs)
    waiting = [job for job in jobs if not (job[0] / SUMMARY).exists()]
    print(f"{len(jobs)} runs, {len(waiting)} to do, {processes} at a time", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    for line in Parallel(processes, return_as="generator_unordered")(delayed(run)(job) for job in waiting):
        print(line, flush=True)
    return [folder for folder, _ in jobs]


def run(job: Job) -> str:
    """Run a job, or go on with it, and return a line that says how it ended."""
    from fedbayes import simulate
    from fedbayes.config.compose import quoted

    folder, overrides = job
    new = [*overrides, ONE_THREAD, f"run_dir={quoted(folder)}"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            simulate([f"resume={quoted(folder)}"] if (folder / CONFIG).exists() else new)
    except Exception as error:
        return f"FAILED: {folder}: {error}"
    return f"done: {folder}"


def require_same(jobs: Sequence[Job]) -> None:
    """Refuse runs that exist and were made with other settings than the present ones.

    Raises:
        SystemExit: with the folders and what differs.
    """
    begun = [job for job in jobs if any((job[0] / name).exists() for name in (CONFIG, SUMMARY))]
    differences = {folder: differing(folder, overrides) for folder, overrides in begun}
    if wrong := [f"{folder} has {', '.join(lines[:3])}" for folder, lines in differences.items() if lines]:
        raise SystemExit("\n".join([*wrong, "Remove these to run them anew, or ask for what they were made with."]))


def differing(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return what differs between the `config.yaml` of a run and what the overrides give now.

    A key that only one of them has came or went with a version. Paths may differ.
    """
    from fedbayes.config.compose import compose, resolved

    if not (folder / CONFIG).exists():
        return [f"no {CONFIG}"]
    stored = leaves(yaml.safe_load((folder / CONFIG).read_text()))
    now = leaves(resolved(compose([*overrides, ONE_THREAD])))
    keys = [key for key in sorted(stored.keys() & now.keys()) if key not in PATHS and stored[key] != now[key]]
    first = [key for key in keys if not any(key.endswith(f".{other}") for other in keys)]  # a method repeats some keys
    return [f"{key}={stored[key]}, not {now[key]}" for key in first]


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by their dotted keys."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, below in node.items() for key, value in leaves(below, f"{prefix}{name}.").items()}


def folder_of(root: Path, overrides: Sequence[str]) -> Path:
    """Return the folder of a run below `root`, readable and unique."""
    name = ",".join(overrides).replace("/", "_").replace("'", "").replace('"', "")
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return root / name

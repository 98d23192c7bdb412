"""`fedbayes -m` with several processes, going on where it stopped: the way the published numbers were made.

    python experiments/sweep.py runs/table --jobs 2 method=fedvpt,pfedbayespt seed=0,1,2

Every combination becomes a run in a folder named after it. A folder with a summary is not run again, a run that broke
off goes on from its last checkpoint, and one that was made with other settings is named and refused. Each process uses
one torch thread, so the numbers are those of `fedbayes -m ... simulation.threads=1`, to the last bit.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from fedbayes.storage.names import CONFIG
from fedbayes.storage.run_dir import SUMMARY

Job = tuple[Path, tuple[str, ...]]
ONE_THREAD = "simulation.threads=1"
PATHS = ("run_dir", "data.root", "backbone.checkpoint")
LONGEST = 180  # characters of a folder's name; file systems allow 255 bytes


def combinations(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Every choice of one value per override; values are separated by commas outside brackets."""
    axes = []
    for override in overrides:
        key, _, values = override.partition("=")
        axes.append([f"{key}={value}" for value in outside_brackets(values)])
    return list(itertools.product(*axes))


def outside_brackets(text: str) -> list[str]:
    """A text cut at the commas that no bracket encloses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def run_all(jobs: Sequence[Job], processes: int) -> list[Path]:
    """Run what has no summary yet; returns the folders in the order given. Failures are named and leave the rest.

    Raises:
        SystemExit: if a run that is there was made with other settings; see `require_same`.
    """
    waiting = [job for job in jobs if not (job[0] / SUMMARY).exists()]
    require_same(jobs)
    print(f"{len(jobs)} runs, {len(waiting)} to do, {processes} at a time", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.time()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        futures = {pool.submit(_run, job): job for job in waiting}
        for number, future in enumerate(as_completed(futures), 1):
            folder, overrides = futures[future]
            error = future.exception()
            said = f"FAILED: {error}" if error else "done"
            minutes = (time.time() - started) / 60
            print(f"{number}/{len(waiting)} {minutes:.1f} min {' '.join(overrides)}: {said} ({folder})", flush=True)
    return [folder for folder, _ in jobs]


def require_same(jobs: Sequence[Job]) -> None:
    """Refuse runs that are there and were made with other settings than are asked for now.

    Raises:
        SystemExit: with the folders and what differs.
    """
    begun = [job for job in jobs if any((job[0] / name).exists() for name in (CONFIG, SUMMARY))]
    found = {folder: differing(folder, overrides) for folder, overrides in begun}
    if wrong := [f"{folder} has {', '.join(them[:3])}" for folder, them in found.items() if them]:
        raise SystemExit("\n".join([*wrong, "Remove these to run them anew, or ask for what they were made with."]))


def differing(folder: Path, overrides: Sequence[str]) -> list[str]:
    """The values of a run's `config.yaml` that are others than overrides give now.

    What only one of the two has came or went with a version. Paths may differ: images and weights may lie elsewhere.
    """
    from omegaconf import OmegaConf

    from fedbayes.config.compose import compose, resolved

    if not (folder / CONFIG).exists():
        return [f"no {CONFIG}"]
    stored = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    had, asked = leaves(stored), leaves(resolved(compose([*overrides, ONE_THREAD])))
    keys = sorted(key for key in had.keys() & asked.keys() if key not in PATHS and had[key] != asked[key])
    own = [key for key in keys if not any(key.endswith(f".{other}") for other in keys)]  # a method repeats some of them
    return [f"{key}={had[key]}, not {asked[key]}" for key in own]


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, below in node.items() for key, value in leaves(below, f"{prefix}{name}.").items()}


def folder_of(root: Path, overrides: Sequence[str]) -> Path:
    """A run's place below the sweep's, readable and unique."""
    name = ",".join(overrides).replace("/", "_").replace("'", "").replace('"', "")
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return root / name


def _end_with_parent() -> None:
    """Let this process end when the one that hands out the jobs is gone; it would go on beside its successor."""
    parent = parent_process()
    assert parent is not None, "a worker has one"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job) -> None:
    from fedbayes import simulate
    from fedbayes.config.compose import quoted

    folder, overrides = job
    broken_off = (folder / CONFIG).exists()
    asked = [f"resume={quoted(folder)}"] if broken_off else [*overrides, ONE_THREAD, f"run_dir={quoted(folder)}"]
    with contextlib.redirect_stdout(io.StringIO()):
        simulate(asked)


def main() -> None:
    """Run the product of the overrides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("overrides", nargs="+", help="as for fedbayes -m")
    args = parser.parse_args()
    jobs = [(folder_of(args.folder, one), one) for one in combinations(args.overrides)]
    folders = run_all(jobs, args.jobs)
    sys.exit(any(not (folder / SUMMARY).exists() for folder in folders))


if __name__ == "__main__":
    main()

"""One run of `fedbayes` in a process of its own, watched from outside and from inside the clients.

The benchmarks call `watched`. It starts this file as a program, samples the memory of all processes that the run
starts, and reads when clients were at work: each client object of the run writes down the spans of its calls.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedbayes.storage.run_dir import METRICS, SUMMARY, read_json, read_rows

SAMPLE_SECONDS = 0.25


@final
@dataclass(frozen=True)
class Watched:
    """What a run cost.

    Attributes:
        wall: seconds from the process's start to its end.
        start_up: seconds from the process's start to the first round.
        rows: of `metrics.jsonl`.
        spans: when clients were at work: `kind` (train, or a split), `round`, `start` and `end` (seconds, one clock).
        summary: of the run.
        peak_mb: largest proportional memory of all its processes together; None where the system does not tell.
        workers: processes in which clients were at work.
    """

    wall: float
    start_up: float
    rows: list[dict[str, Any]]
    spans: list[dict[str, Any]]
    summary: dict[str, Any]
    peak_mb: float | None
    workers: int

    def overheads(self, phase: str) -> list[float]:
        """For each round after the first, seconds of a phase in which no client was at work.

        Where several processes work at once, a second counts as work if any of them works: that is kind to them.
        """
        found = []
        for row in self.rows:
            if row["phase"] == phase and row["round"] > 1:
                spans = [s for s in self.spans if s["kind"] == phase and s["round"] == row["round"]]
                found.append(row["seconds"] - covered([(s["start"], s["end"]) for s in spans]))
        return found

    def seconds(self, phase: str) -> list[float]:
        """Of each round of a phase after the first."""
        return [row["seconds"] for row in self.rows if row["phase"] == phase and row["round"] > 1]

    @property
    def images_per_second(self) -> float:
        """Training images in the rounds after the first, by their whole duration."""
        rows = [row for row in self.rows if row["phase"] == "train" and row["round"] > 1]
        return float(sum(row["images"] for row in rows) / sum(row["seconds"] for row in rows))


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def watched(overrides: Sequence[str]) -> Watched:
    """Run `fedbayes` with overrides and watch it.

    Raises:
        RuntimeError: if it fails; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, *overrides, f"run_dir='{folder}/run'"]
        started = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        peak, done = [0.0], threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peak, done))
        sampler.start()
        said, _ = process.communicate()
        wall = time.time() - started
        done.set()
        sampler.join()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{said[-2000:]}")
        run = Path(folder) / "run"
        spans = [json.loads(line) for file in Path(folder).glob("spans-*") for line in file.read_text().splitlines()]
        return Watched(
            wall=wall,
            start_up=float((Path(folder) / "first-round").read_text()) - started,
            rows=read_rows(run / METRICS),
            spans=spans,
            summary=read_json(run / SUMMARY),
            peak_mb=peak[0] or None,
            workers=len({span["process"] for span in spans}),
        )


def _sample(pid: int, peak: list[float], done: threading.Event) -> None:
    while not done.wait(SAMPLE_SECONDS):
        peak[0] = max(peak[0], tree_mb(pid))


def tree_mb(root: int) -> float:
    """Memory of a process and all below it, a page shared by several counted once; 0 where the system is not Linux."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has just ended
    tree, size = {root}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    total = 0
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue
    return total / 1024


@final
class TimedFactory:
    """A client factory whose clients write down when they work; as light to send as the one inside.

    Args:
        inner: makes the client.
        folder: where the spans go, a file for each process.
    """

    def __init__(self, inner: Callable[[], Any], folder: str) -> None:
        self._inner, self._folder = inner, folder

    def __call__(self) -> Any:
        """The client of this process, timed."""
        return _Timed(self._inner(), Path(self._folder) / f"spans-{os.getpid()}")


class _Timed:
    def __init__(self, client: Any, file: Path) -> None:
        self._client, self._file = client, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, requests: Sequence[Any]) -> Any:
        return self._timed("train", self._client.train, requests)

    def evaluate(self, requests: Sequence[Any]) -> Any:
        return self._timed(requests[0].split, self._client.evaluate, requests)

    def _timed(self, kind: str, work: Callable[..., Any], requests: Sequence[Any]) -> Any:
        start = time.time()
        result = work(requests)
        where = {"kind": kind, "round": requests[0].server_round, "process": os.getpid()}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**where, "start": start, "end": time.time()}) + "\n")
        return result


def main() -> None:
    """Run the overrides as `fedbayes` does, with timed clients."""
    folder, *overrides = sys.argv[1:]
    from fedbayes import build, simulate
    from fedbayes.server import rounds

    plain, begin = build.ClientFactory, rounds.Progress

    def timed(*args: Any) -> TimedFactory:
        return TimedFactory(plain(*args), folder)

    def first_round(*args: Any) -> Any:
        (Path(folder) / "first-round").write_text(str(time.time()))
        return begin(*args)

    build.ClientFactory, rounds.Progress = timed, first_round  # type: ignore[assignment, misc]
    simulate(overrides)


if __name__ == "__main__":
    main()

"""Where a training step spends its time, and what share of the machine's matrix-multiplication rate it reaches.

    python experiments/step_profile.py           # the small backbone, and ViT-tiny at 224 px, on the CPU
    python experiments/step_profile.py --gpu     # ViT-B/16 at 224 px in bf16, cohorts of 1 to 64 with 16 images each

`benchmark_simulation.py` prints these tables under its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from flop_rate import client_of, seconds, shares, step_of

from clients.prompt_tuning import PromptTuningClient
from fedbayes.comm.messages import ClientRequest
from fedbayes.optim import local_training as fit
from fedbayes.optim.cohort import CohortOptimiser
from fedbayes.simulation.hardware import available_cores

PHASES = {
    "inputs": "look up tokens and features",
    "objective": "forward: Pyro, generator, blocks, head",
    "gradient": "backward",
    "optimiser": "clip and move",
    "rest": "load and read parameters, order, probe of the mixing",
}
COHORTS = (1, 4, 16, 64)
BATCH = 16


@contextmanager
def timed(owner: Any, name: str, total: list[float], device: str) -> Iterator[None]:
    """Add up the seconds spent in a function for as long as the block lasts."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result: list[Any] = []
        total[0] += seconds(lambda: result.append(original(*args, **kwargs)), device)
        return result[0]

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        if isinstance(owner, type) or not hasattr(type(owner), name):
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def phases(client: PromptTuningClient, partitions: Sequence[int], device: str, repeats: int) -> dict[str, float]:
    """Shares of a cohort's training in one round, medians over repeats; `seconds` is the whole."""
    places = {
        "inputs": (client.inputs, "train"),
        "objective": (client, "objective"),
        "gradient": (fit.torch.autograd, "grad"),
        "optimiser": (CohortOptimiser, "step"),
    }
    requests = [ClientRequest(p, 1, "train", "", client.initial()) for p in partitions]
    found: dict[str, list[float]] = {name: [] for name in (*places, "rest", "seconds")}
    for turn in range(repeats + 1):
        totals: dict[str, list[float]] = {name: [0.0] for name in places}
        with (
            timed(*places["inputs"], totals["inputs"], device),
            timed(*places["objective"], totals["objective"], device),
            timed(*places["gradient"], totals["gradient"], device),
            timed(*places["optimiser"], totals["optimiser"], device),
        ):
            started = time.perf_counter()
            client.train(requests)
            whole = time.perf_counter() - started
        if turn:
            for name, total in totals.items():
                found[name].append(total[0] / whole)
            found["rest"].append(1 - sum(total[0] for total in totals.values()) / whole)
            found["seconds"].append(whole)
    return {name: statistics.median(values) for name, values in found.items()}


def steps_table(device: str, overrides: Sequence[str] = (), repeats: int = 9) -> tuple[list[dict[str, Any]], str]:
    """Rows, and the same as Markdown."""
    rows = list(_gpu_rows(overrides, repeats) if device == "cuda" else _cpu_rows(overrides, repeats))
    heads = ["step", "threads", "cohort", "GFLOP", "ms", "images per second", "share of the matmul rate", *PHASES]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        parts = [f"{100 * row['phases'][name]:.0f} %" for name in PHASES]
        cells = [row["step"], row["threads"], row["cohort"], f"{row['gflop']:.1f}", f"{row['ms']:.1f}"]
        cells += [f"{row['images_per_second']:.0f}", f"{100 * row['share']:.0f} %", *parts]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    legend = "; ".join(f"{name}: {what}" for name, what in PHASES.items())
    return rows, "\n".join([*lines, "", f"Phases are shares of a whole round of local training. {legend}."])


def _row(
    name: str, client: PromptTuningClient, cohort: int, device: str, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    step: Callable[[], None] = step_of(client, range(cohort))
    ((flops, elapsed, share),) = shares([step], device, dtype, repeats)
    images = sum(min(client.optim.batch_size, len(client.data.indices(p, "train"))) for p in range(cohort))
    return {
        "step": name,
        "threads": torch.get_num_threads(),
        "cohort": cohort,
        "gflop": flops / 1e9,
        "ms": 1e3 * elapsed,
        "images_per_second": images / elapsed,
        "share": share,
        "phases": phases(client, range(cohort), device, max(2, repeats // 3)),
    }


def _cpu_rows(overrides: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    small = client_of(overrides)
    tiny = {
        start: client_of(
            [*SIZED, "clients=4", "partition.images=80", f"prompts.start_layer={start}", *overrides],
            "vit_tiny_patch16_224",
        )
        for start in (0, 8)
    }
    for threads in dict.fromkeys((1, available_cores())):
        torch.set_num_threads(threads)
        yield _row("offline default", small, len(small.data), "cpu", torch.float32, repeats)
        for start, client in tiny.items():
            for cohort in (1, 4):
                yield _row(f"ViT-tiny, from block {start}", client, cohort, "cpu", torch.float32, max(3, repeats // 3))


def _gpu_rows(overrides: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    for start in (0, 8):
        sized = [*SIZED, f"clients={max(COHORTS)}", "partition.images=40", f"optim.batch_size={BATCH}"]
        sized += ["simulation.precision=bf16", f"prompts.start_layer={start}"]
        client = client_of([*sized, *overrides], "vit_base_patch16_224", "cuda")
        for cohort in COHORTS:
            yield _row(f"ViT-B/16 bf16, from block {start}", client, cohort, "cuda", torch.bfloat16, repeats)


SIZED = ["data.image_size=224", "partition=resampled", "simulation.cache_mb=4096"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    args, overrides = parser.parse_known_intermixed_args()
    print(steps_table("cuda" if args.gpu else "cpu", overrides, args.repeats)[1])


if __name__ == "__main__":
    main()

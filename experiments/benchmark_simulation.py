"""What the engines cost, side by side: in this process in cohorts of 1, 4, 16 and all, and on Flower's Ray runtime.

    python experiments/benchmark_simulation.py                 # the tables, and runs/benchmark/simulation.json
    python experiments/benchmark_simulation.py --clients 10    # only one federation
    python experiments/benchmark_simulation.py --gpu           # ViT-B/16 at 224 px in bf16, cohorts 1 to 64

The same federation, configuration and seed on every engine, each run in a process of its own, one after the other, the
machine's cores in use by all: in this process torch has as many threads as there are cores, on Ray there are as many
workers with one thread each. Overhead of a round is its wall time minus the time in which any client was at work, which
is kind to Ray: a worker that waits beside one that works counts as work.
Ratios are within one call of this file; absolute times are those of a shared machine.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Watched, watched

IN_PROCESS = {f"in process, cohorts of {size}": [f"simulation.cohort={size}"] for size in (1, 4, 16)}
ENGINES: dict[str, list[str]] = {
    **IN_PROCESS,
    "in process, all": ["simulation.cohort=null"],
    "in process, default": [],
    "ray": ["simulation=ray"],
}


def compared(
    clients: int, rounds: int, turns: int, engines: Sequence[str], overrides: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each engine; engines take turns and the median over turns counts."""
    found: dict[str, list[Watched]] = {name: [] for name in engines}
    for _ in range(turns):
        for name in engines:
            choice = ENGINES[name]
            common = [f"clients={clients}", f"rounds={rounds}", f"evaluate.every={rounds}"]
            found[name].append(watched([*common, *choice, *overrides]))
            print(f"  {clients} clients, {name}: {found[name][-1].wall:.1f} s", file=sys.stderr, flush=True)
    return [{"clients": clients, "engine": name, **_row(runs)} for name, runs in found.items()]


def _row(runs: Sequence[Watched]) -> dict[str, Any]:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    return {
        "start_up": middle([run.start_up for run in runs]),
        "round": middle([one for run in runs for one in run.seconds("train")]),
        "overhead": middle([one for run in runs for one in run.overheads("train")]),
        "images_per_second": middle([run.images_per_second for run in runs]),
        "whole_run": middle([run.wall for run in runs]),
        "peak_mb": middle([run.peak_mb or 0.0 for run in runs]) or None,
        "workers": runs[0].workers,
        "nll": [run.summary["final"]["nll"] for run in runs],
    }


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The engines as a Markdown table, with ratios to Ray among the same clients."""
    heads = ["clients", "engine", "start-up, s", "round, s", "overhead of a round, ms", "of Ray's", "images per second"]
    heads += ["of Ray's", "whole run, s", "of Ray's", "peak memory, MB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        (ray,) = [one for one in rows if one["clients"] == row["clients"] and one["engine"] == "ray"]
        cells = [
            row["clients"],
            row["engine"],
            f"{row['start_up']:.1f}",
            f"{row['round']:.2f}",
            f"{1e3 * row['overhead']:.1f}",
            f"{row['overhead'] / ray['overhead']:.3f}",
            f"{row['images_per_second']:.0f}",
            f"{row['images_per_second'] / ray['images_per_second']:.2f}",
            f"{row['whole_run']:.1f}",
            f"{row['whole_run'] / ray['whole_run']:.2f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from fedbayes.simulation.hardware import available_cores
    from fedbayes.tracking.provenance import versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": available_cores(), "processor": platform.machine(), "gpu": gpu, "versions": versions()}


def main() -> None:
    """Measure, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, action="append", help="sizes of the federation; default: 10 and 100")
    parser.add_argument("--rounds", type=int, default=4, help="of which the first does not count")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, help="a selection; ray is always among them")
    parser.add_argument("--no-steps", action="store_true", help="leave out the profile of steps")
    parser.add_argument("--gpu", action="store_true", help="ViT-B/16 steps instead of engines")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    args, overrides = parser.parse_known_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(), "overrides": overrides}
    from step_profile import steps_table

    def tell(text: str) -> None:
        """Show a table, and keep all that there is so far: the next one takes minutes."""
        print(f"{text}\n", flush=True)
        name = "simulation-gpu.json" if args.gpu else "simulation.json"
        (args.out / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    if not args.gpu:
        engines = [name for name in ENGINES if args.engines is None or name in (*args.engines, "ray")]
        result["engines"] = []
        for clients in args.clients or (10, 100):
            result["engines"] += compared(clients, args.rounds, args.turns, engines, overrides)
        tell(shown(result["engines"]))
    if args.gpu or not args.no_steps:
        result["steps"], text = steps_table("cuda" if args.gpu else "cpu", overrides)
        tell(text)


if __name__ == "__main__":
    main()

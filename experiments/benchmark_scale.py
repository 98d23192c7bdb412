"""How time and memory of a run grow with clients, participants, images per client and the size of the backbone.

    python experiments/benchmark_scale.py     # runs/benchmark/scale.json, docs/figures/scale.png and a table

One thing varies at a time around a federation of 1,000 clients with 30 images each (`partition=resampled`: images are
drawn with replacement), of which 100 take part in a round and 100 are evaluated at the end. Each run has a process of
its own. The table gives the median round after the first, and the memory of the whole process at its largest.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from measure import watched

BASE = {"clients": 1000, "participants": 100, "images": 30, "backbone": "letters"}
VARIED: dict[str, tuple[Any, ...]] = {
    "clients": (100, 1000, 10000),
    "participants": (10, 30, 100, 300),
    "images": (10, 30, 90),
    "backbone": ("letters", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
}
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "scale.png"


def overrides(clients: int, participants: int, images: int, backbone: str, rounds: int) -> list[str]:
    """The run of a point; larger backbones have random weights and 64-pixel images."""
    found = ["partition=resampled", f"partition.images={images}", f"clients={clients}", f"rounds={rounds}"]
    found += [f"participation={participants / clients}", f"evaluate.participation={min(1.0, 100 / clients)}"]
    found += [f"evaluate.every={rounds}"]
    if backbone != "letters":
        found += ["backbone=timm", "backbone._target_=flop_rate.random_vit", f"backbone.name={backbone}"]
        found += ["data.image_size=64", "prompts.start_layer=8"]
    return found


def measured(rounds: int) -> list[dict[str, Any]]:
    """A row for each point; the common point is measured once for each thing that varies, so as to show the noise."""
    rows = []
    for name, values in VARIED.items():
        for value in values:
            point = {**BASE, name: value}
            run = watched(overrides(**point, rounds=rounds))
            row = {
                "varied": name,
                **point,
                "start_up": run.start_up,
                "round": statistics.median(run.seconds("train")),
                "images_per_second": run.images_per_second,
                "peak_mb": run.peak_mb,
            }
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Round time and memory over each thing that varies."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(VARIED), figsize=(11, 4.6), sharey="row", layout="constrained")
    for column, name in enumerate(VARIED):
        mine = [row for row in rows if row["varied"] == name]
        words = isinstance(mine[0][name], str)
        x = range(len(mine)) if words else [row[name] for row in mine]
        for axis, key, label in zip(axes[:, column], ("round", "peak_mb"), ("round (s)", "memory (MB)"), strict=True):
            axis.plot(x, [row[key] for row in mine], "o-")
            axis.set_yscale("log")
            if words:
                axis.set_xticks(list(x), [row[name].removesuffix("_patch16_224") for row in mine], fontsize=7)
            else:
                axis.set_xscale("log")
            if column == 0:
                axis.set_ylabel(label)
        axes[1, column].set_xlabel(name)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Measure, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/scale.json"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = measured(args.rounds)
    args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw(rows)
    print("| varied | clients | in a round | images | backbone | start-up, s | round, s | images/s | peak, MB |")
    print("|" + "---|" * 9)
    for row in rows:
        where = f"{row['varied']} | {row['clients']} | {row['participants']} | {row['images']} | {row['backbone']}"
        cost = f"{row['start_up']:.1f} | {row['round']:.2f} | {row['images_per_second']:.0f} | {row['peak_mb']:.0f}"
        print(f"| {where} | {cost} |")


if __name__ == "__main__":
    main()

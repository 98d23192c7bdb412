"""Emulators and what plugging into the full ViT gives, over methods and sizes; the table is `results/offsite.csv`.

    python experiments/offsite.py --images digits --jobs 1
    python experiments/offsite.py --images office --data DIR --weights FILE --jobs 1
    python experiments/offsite.py --show                # table and figure of the runs that are there

The owner has 256 images of the same source as the clients, also in the runs without an emulator. Rows of `gradot` over
sizes make the figure; a row has as many seeds as there are runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jobs import Job, folder_of, run_all
from safetensors.numpy import load_file
from tables import selected

from fedbayes.metrics.paired import bootstrap
from fedbayes.storage.run_dir import PREDICTIONS, SUMMARY, read_json

SEEDS = (0, 1, 2)
COMMON = ("owner.images=256", "evaluate.every=100", "evaluate.gallery=false")
IMAGES = {"digits": (), "office": ("experiment=office_mixture",)}
SETTINGS = {"digits": "mixture", "office": "photos"}
METHODS = {"head": "fedavg_head", "deep prompts": "fedvpt_deep", "pfedbayespt": "pfedbayespt"}
SIZES = (0.6, 0.75, 0.85, 0.9)
EMULATORS = {
    "none": ("emulator=none",),
    "uniform": ("emulator=uniform",),
    "scaleot": ("emulator=scaleot",),
    "scaleot, published": ("emulator=scaleot", "emulator.importance=policy", "emulator.harmonizers=trained"),
    "gradot": ("emulator=gradot",),
    "gradot, published": ("emulator=gradot", "emulator.basis=weight"),
    "svd": ("emulator=gradot", "emulator.basis=svd"),
}
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "offsite.png"
Key = tuple[str, str, str, float, int]
"""Images, method, emulator, `emulator.keep` and seed."""


def table_of(root: Path, data: Path, weights: Path) -> dict[Key, Job]:
    """Return all runs."""
    runs: dict[Key, Job] = {}
    for images, protocol in IMAGES.items():
        paths = (f"data.root='{data}'", f"backbone.checkpoint='{weights}'") if images == "office" else ()
        for method, name in METHODS.items():
            for emulator, choice in EMULATORS.items():
                for keep in SIZES if emulator == "gradot" else (1.0,) if emulator == "none" else (0.75,):
                    size = () if emulator == "none" else (f"emulator.keep={keep}",)
                    for seed in SEEDS:
                        chosen = (f"method={name}", *selected(SETTINGS[images], name), f"seed={seed}")
                        folder = folder_of(root, (images, method, emulator, f"{keep:g}", f"seed={seed}"))
                        overrides = (*protocol, *COMMON, *choice, *size, *chosen, *paths)
                        runs[images, method, emulator, keep, seed] = (folder, overrides)
    return runs


def scores(folder: Path) -> dict[str, Any]:
    """Return what a run has in the table; without an emulator the ViT is its own."""
    summary = read_json(folder / SUMMARY)
    final, emulator = summary["final"], summary["emulator"] or {}
    inner = final["emulator"] or {"accuracy": final["accuracy"], "nll": final["nll"], "ece": final["ece"]}
    return {
        "size": emulator.get("size", 1.0),
        "accuracy": final["accuracy"]["mean"],
        "nll": final["nll"],
        "ece": final["ece"],
        "emulator_accuracy": inner["accuracy"]["mean"],
        "emulator_nll": inner["nll"],
        "mb": emulator.get("bytes", 0) / 1e6,
    }


def hits(folder: Path, probabilities: str = "probabilities") -> list[np.ndarray]:
    """Return for each client whether each of its test images was classified right."""
    arrays = load_file(folder / PREDICTIONS)
    right = (arrays[probabilities].argmax(1) == arrays["labels"]).astype(float)
    return [right[arrays["partitions"] == client] for client in np.unique(arrays["partitions"])]


def interval(first: Sequence[list[np.ndarray]], second: Sequence[list[np.ndarray]]) -> list[float]:
    """Return the paired difference of two lists of seeds in points, and its 95 % interval over clients."""
    pairs = [[a - b for a, b in zip(*seed, strict=True)] for seed in zip(first, second, strict=True)]
    difference = bootstrap(pairs)
    return [100 * value for value in (difference.mean, difference.low, difference.high)]


def write_table(runs: dict[Key, Job], path: Path) -> pd.DataFrame:
    """Print means over the seeds that have run, with paired differences, and write them as CSV."""
    ready = {key: folder for key, (folder, _) in runs.items() if (folder / SUMMARY).exists()}
    rows = []
    for group in dict.fromkeys(key[:4] for key in ready):
        seeds = [seed for seed in SEEDS if (*group, seed) in ready]
        folders = [ready[(*group, seed)] for seed in seeds]
        each = pd.DataFrame([scores(folder) for folder in folders])
        row = dict(zip(("images", "method", "emulator", "keep"), group, strict=True)) | {"seeds": len(seeds)}
        row |= each.mean().to_dict()
        if group[2] != "none":
            plugged = [hits(folder) for folder in folders]
            gap = interval(plugged, [hits(folder, "emulator_probabilities") for folder in folders])
            row |= dict(zip(("gap", "gap_low", "gap_high"), gap, strict=True))
            for other, keep in (("none", 1.0), ("uniform", 0.75)):
                references = [ready.get((*group[:2], other, keep, seed)) for seed in seeds]
                if all(references) and group[2] != other:
                    values = interval(plugged, [hits(folder) for folder in references if folder])
                    row |= dict(zip((f"over_{other}", f"over_{other}_low", f"over_{other}_high"), values, strict=True))
        rows.append(row)
    table = pd.DataFrame(rows)
    points = [name for name in table if name.startswith(("gap", "over_", "mb"))]
    table.round({name: 1 if name in points else 3 for name in table.columns[5:]}).to_csv(path, index=False)
    print(path.read_text())
    return table


def draw(table: pd.DataFrame) -> None:
    """Draw accuracy plugged in and on the emulator over its size, for methods with several emulators."""
    import matplotlib.pyplot as plt

    several = table.groupby(["images", "method"], sort=False).filter(lambda part: len(part) > 2)
    panels = list(dict.fromkeys(zip(several["images"], several["method"], strict=True)))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, (images, method) in zip(axes[0], panels, strict=True):
        part = table[(table["images"] == images) & (table["method"] == method)]
        for emulator, line in part.groupby("emulator", sort=False):
            line, index = line.sort_values("size"), list(EMULATORS).index(emulator)
            if emulator == "none":
                axis.axhline(line["accuracy"].iloc[0], color="0.6", label="full ViT")
                continue
            axis.plot(line["size"], line["accuracy"], "o-", color=f"C{index}", label=f"{emulator}: plugged in")
            axis.plot(line["size"], line["emulator_accuracy"], "x--", color=f"C{index}", label=f"{emulator}: emulator")
        axis.set(title=f"{images}, {method}", xlabel="size of the lower blocks", ylabel="accuracy")
    handles = {text: handle for axis in axes[0] for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=7)
    figure.savefig(FIGURE, dpi=120, metadata={"Software": None})


def main() -> None:
    """Run what is missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", choices=IMAGES, nargs="*", default=list(IMAGES))
    parser.add_argument("--methods", choices=METHODS, nargs="*", default=list(METHODS))
    parser.add_argument("--emulators", choices=EMULATORS, nargs="*", default=list(EMULATORS))
    parser.add_argument("--keep", type=float, nargs="*", default=[1.0, *SIZES])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--data", type=Path, default=Path("office_caltech10"), help="folder of Office-Caltech10")
    parser.add_argument("--weights", type=Path, default=Path("vit_tiny_patch16_224.safetensors"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/offsite"))
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    runs = table_of(args.root, args.data, args.weights)
    if not args.show:
        chosen = (args.images, args.methods, args.emulators, [*args.keep, 1.0], args.seeds)
        run_all([job for key, job in runs.items() if all(map(lambda p, c: p in c, key, chosen))], args.jobs)
    args.root.mkdir(parents=True, exist_ok=True)
    draw(write_table(runs, args.root / "offsite.csv"))


if __name__ == "__main__":
    main()

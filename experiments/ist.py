"""Sparse training: all blocks, random ones (RST) and important ones (IST); `results/ist.csv`.

    python experiments/ist.py digits --jobs 2
    python experiments/ist.py office --jobs 2 --data DIR --weights FILE    # then `table` with both

`digits` is styled digits on the shipped ViT of 4 blocks, `office` the mixture of Office-Caltech10 at 64 px on ViT-tiny,
12 blocks. Both are small, so that a shared CPU does five seeds. Differences are paired: same partition, same images.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from jobs import Job, folder_of, run_all

from fedbayes.metrics.paired import paired_difference
from fedbayes.storage.run_dir import SUMMARY, read_json

DEEP = ("prompts.depth=deep", "prompts.start_layer=0")
METHODS = {
    "digits": {
        "LoRA": ("method=fedlora",),
        "deep prompts": ("method=fedvpt_deep", *DEEP),
        "pFedBayesPT, deep": ("method=pfedbayespt", *DEEP),
    },
    "office": {"LoRA": ("method=fedlora",), "deep prompts": ("method=fedvpt_deep", *DEEP)},
}
ARMS = {
    "all": ("sparse=none",),
    "random, half": ("sparse=random",),
    "IST, half": ("sparse=ist",),
    "IST as published, half": ("sparse=ist", "sparse.rate=10", "sparse.normalise=false"),
    "random, a quarter": ("sparse=random", "sparse.fraction=0.25"),
    "IST, a quarter": ("sparse=ist", "sparse.fraction=0.25"),
}
FEDERATIONS = {
    "digits": ("clients=8", "partition.max_train=60", "rounds=10"),
    "office": ("experiment=office_mixture", "clients=8", "partition.max_train=30", "rounds=8", "data.image_size=64"),
}
RIVALS = {
    **dict.fromkeys(("IST, half", "IST as published, half"), "random, half"),
    "IST, a quarter": "random, a quarter",
}
Runs = dict[tuple[str, str, str, int], Job]


def runs_of(args: argparse.Namespace, protocol: str) -> Runs:
    """Return the runs of a protocol by itself, method, arm and seed; a seed is finished before the next begins."""
    common = (*FEDERATIONS[protocol], "evaluate.every=10", "evaluate.gallery=false")
    if protocol == "office":
        common += (f"data.root={args.data}/office_caltech10", f"backbone.checkpoint={args.weights}")
    return {
        (protocol, method, arm, seed): (
            folder_of(args.root, (protocol, method, arm, f"seed={seed}")),
            (*common, *METHODS[protocol][method], *ARMS[arm], f"seed={seed}"),
        )
        for seed in range(args.seeds)
        for method in args.methods or METHODS[protocol]
        if method in METHODS[protocol]
        for arm in args.arms or ARMS
    }


def write_table(runs: Runs, path: Path) -> None:
    """Print means over seeds, bytes, and paired differences in points with 95 % intervals, and write them as CSV."""
    done = {key: folder for key, (folder, _) in runs.items() if (folder / SUMMARY).exists()}
    rows = [
        {"images": protocol, "trained": method, "blocks": arm} | _row(_seeds(done, protocol, method, arm))
        | _difference("all", *(_seeds(done, protocol, method, name) for name in (arm, "all")))
        | _difference("random", *(_seeds(done, protocol, method, name) for name in (arm, RIVALS.get(arm, "none"))))
        for protocol, method, arm in dict.fromkeys(key[:3] for key in done)
    ]  # fmt: skip
    pd.DataFrame(rows).round(3).to_csv(path, index=False)
    print(path.read_text())


def _seeds(done: dict[tuple[str, str, str, int], Path], *place: str) -> dict[int, Path]:
    """Return the finished runs of an arm by seed."""
    return {key[3]: folder for key, folder in done.items() if key[:3] == place}


def _row(folders: dict[int, Path]) -> dict[str, Any]:
    """Return scores and megabytes, means over seeds with standard errors."""
    summaries = [read_json(folder / SUMMARY) for folder in folders.values()]
    scores = pd.DataFrame([{"accuracy": s["final"]["accuracy"]["mean"], "nll": s["final"]["nll"]} for s in summaries])
    means = {"seeds": len(folders), **scores.mean(), **scores.sem().add_suffix("_se")}
    return means | {"megabytes_up": sum(s["bytes"]["up"] for s in summaries) / len(summaries) / 1e6}


def _difference(name: str, folders: dict[int, Path], others: dict[int, Path]) -> dict[str, Any]:
    """Return by how many points an arm is ahead of another on the same images, with a 95 % interval."""
    seeds = sorted(folders.keys() & others.keys()) if folders != others else []
    if not seeds:
        return {}
    points = paired_difference([(folders[s], others[s]) for s in seeds], "accuracy")
    ends = {"": points.mean, "_low": points.low, "_high": points.high}
    return {f"delta_{name}{end}": 100 * value for end, value in ends.items()}


def main() -> None:
    """Run what is missing, then write the table of everything that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=("digits", "office", "table"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/ist"))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ...")
    parser.add_argument("--methods", nargs="+", help="some of the methods")
    parser.add_argument("--arms", nargs="+", help="some of the arms")
    parser.add_argument("--data", type=Path, help="folder with office_caltech10")
    parser.add_argument("--weights", type=Path, help="of vit_tiny_patch16_224")
    args = parser.parse_args()
    chosen = METHODS if args.protocol == "table" else (args.protocol,)
    runs = {key: job for protocol in chosen for key, job in runs_of(args, protocol).items()}
    if args.protocol != "table":
        run_all(list(runs.values()), args.jobs)
    write_table(runs, args.root / "ist.csv")


if __name__ == "__main__":
    main()

"""Class priors under label skew, without and with a shift of the classes of test images; `results/class_priors.csv`.

    python experiments/class_priors.py --jobs 2      # 36 runs of pFedBayesPT, and the table

Training is the same in all columns of a row: `evaluate.label_shift` changes test images alone.
"""

import argparse
from pathlib import Path

import pandas as pd
from jobs import Job, folder_of, run_all

from fedbayes.storage.run_dir import SUMMARY, read_json

SEEDS = (0, 1, 2)
SHIFTS = ("null", "uniform", "reversed")
HEADS = {
    "shared head": (),
    "personal heads": ("method.client.personal=[head]",),
    "class prior": ("head.prior=client",),
    "estimated class prior": ("head.prior=estimated",),
}
Runs = dict[tuple[str, str, int], Job]


def runs_of(root: Path) -> Runs:
    """Return the runs by head, shift and seed."""
    return {
        (head, shift, seed): (
            folder_of(root, (head.replace(" ", "_"), shift, f"seed={seed}")),
            (
                "experiment=digits_label_skew",
                f"seed={seed}",
                "evaluate.every=15",
                *settings,
                f"evaluate.label_shift={shift}",
            ),
        )
        for shift in SHIFTS
        for head, settings in HEADS.items()
        for seed in SEEDS
    }


def write_table(runs: Runs, path: Path) -> None:
    """Print means over seeds with their standard errors, and write them as CSV."""
    finals = {key: read_json(folder / SUMMARY)["final"] for key, (folder, _) in runs.items()}
    seeds = pd.DataFrame(
        {key: {"accuracy": final["accuracy"]["mean"], "nll": final["nll"]} for key, final in finals.items()}
    ).T
    groups = seeds.groupby(level=[1, 0], sort=False)
    mean, error = groups.mean(), groups.sem().add_suffix("_se")
    table = mean.join(error)[["accuracy", "accuracy_se", "nll", "nll_se"]]
    table.rename_axis(["test_classes", "head"]).reset_index().round(3).to_csv(path, index=False)
    print(path.read_text())


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/class_priors"))
    args = parser.parse_args()
    runs = runs_of(args.root)
    run_all(list(runs.values()), args.jobs)
    write_table(runs, args.root / "class_priors.csv")


if __name__ == "__main__":
    main()

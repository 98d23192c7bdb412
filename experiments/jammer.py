"""Jammers of the clients' uplinks against the server's policies; the table is `results/jammer.csv`.

    python experiments/jammer.py --jobs 2      # 36 runs, the table, and docs/figures/jammer.png

Thirty clients of styled digits mix domains, those with the same main domain share one of five uplinks, and twelve train
in a round. The jammer is after the rotated digits and can jam one uplink in a round. The server knows how likely each
type of jammer is, and not which it meets.
"""

import argparse
from pathlib import Path

import pandas as pd
from jobs import Job, folder_of, run_all

from fedbayes.storage.run_dir import METRICS, SUMMARY, read_json

ROUNDS, SEEDS = 20, (0, 1, 2)
FEDERATION = (
    *("method=fedvpt", "clients=30", "participation=0.4", f"rounds={ROUNDS}"),
    *(
        "evaluate.every=2",
        "simulation.min_replies=1",
        "attack=jammer",
        "attack.groups=5",
        "attack.domain=2",
        "attack.discount=0.9",
    ),
)
JAMMERS = {
    "none": ("attack.type=none",),
    "random": ("attack.type=domain", "attack.strategy=random"),
    "greedy": ("attack.type=domain", "attack.strategy=greedy"),
    "smart": ("attack.type=domain", "attack.strategy=smart"),
}
POLICIES = ("uniform", "security", "expected")
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "jammer.png"


def table_of(root: Path) -> dict[tuple[str, str, int], Job]:
    """Return the runs by jammer, policy and seed."""
    return {
        (jammer, policy, seed): (
            folder_of(root, (jammer, policy, f"seed={seed}")),
            (*FEDERATION, *settings, f"sampling={policy}", f"seed={seed}"),
        )
        for jammer, settings in JAMMERS.items()
        for policy in POLICIES
        for seed in SEEDS
    }


def rows(folder: Path, phase: str) -> pd.DataFrame:
    """Return the log of a phase, a row per round."""
    table = pd.read_json(folder / METRICS, lines=True)
    return table[table["phase"] == phase].drop_duplicates("round", keep="last").set_index("round")


def scores(folder: Path) -> dict[str, float]:
    """Return what a run has in the table."""
    summary, train = read_json(folder / SUMMARY), rows(folder, "train")
    return {
        "accuracy": summary["final"]["accuracy"]["mean"],
        **{f"accuracy_{domain}": row["accuracy"] for domain, row in summary["per_domain"].items()},
        "nll": summary["final"]["nll"],
        "lost_mass": train["jammer_payoff"].mean(),
        "replies": train["replies"].sum() / train["clients"].sum(),
        "belief_in_type": train["belief_domain"].iloc[-1],
    }


def write_table(runs: dict[tuple[str, str, int], Job], path: Path) -> None:
    """Print means over seeds with their standard errors, and write them as CSV."""
    seeds = pd.DataFrame({key: scores(folder) for key, (folder, _) in runs.items()}).T
    groups = seeds.groupby(level=[0, 1], sort=False)
    mean, error = groups.mean(), groups.sem().add_suffix("_se")
    table = mean.join(error)[[name for column in mean for name in (column, f"{column}_se")]]
    table.rename_axis(["jammer", "policy"]).reset_index().round(3).to_csv(path, index=False)
    print(path.read_text())


def draw(runs: dict[tuple[str, str, int], Job]) -> None:
    """Draw accuracy on the jammed domain, and the belief in the jammer's type, over rounds; means over seeds."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(10, 5), layout="constrained", sharex=True, sharey="row")
    for column, policy in enumerate(POLICIES):
        for jammer in JAMMERS:
            folders = [runs[jammer, policy, seed][0] for seed in SEEDS]
            accuracy = sum(rows(folder, "validation")["accuracy"] for folder in folders) / len(SEEDS)
            belief = sum(rows(folder, "train")["belief_domain"] for folder in folders) / len(SEEDS)
            panels[0, column].plot(accuracy.index, accuracy, label=jammer)
            panels[1, column].plot(belief.index, belief)
        panels[0, column].set_title(f"sampling={policy}")
        panels[1, column].set_xlabel("round")
    panels[0, 0].set_ylabel("accuracy on validation images")
    panels[1, 0].set_ylabel("belief in the type domain")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(JAMMERS))
    figure.savefig(FIGURE, dpi=120, metadata={"Software": None})


def main() -> None:
    """Run what is missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/jammer"))
    args = parser.parse_args()
    runs = table_of(args.root)
    run_all(list(runs.values()), args.jobs)
    write_table(runs, args.root / "jammer.csv")
    draw(runs)


if __name__ == "__main__":
    main()

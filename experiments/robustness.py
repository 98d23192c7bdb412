"""Hostile clients against defences, and accuracy against epsilon.

    python experiments/robustness.py attacks --jobs 2      # every attack, every defence, 0 to 30 % malicious clients
    python experiments/robustness.py privacy --jobs 2      # the accuracy-epsilon curve, and docs/figures/privacy.png

The default federation, seed 0, one thread each; a run that has its summary is not run again. Nothing is chosen here:
`clip` is the median length of an honest step (15, constant over rounds), the robust means reckon with the share of
malicious clients that there is, and steps are clipped to 2 for privacy.
"""

import argparse
from pathlib import Path

from jobs import Job, folder_of, run_all

from fedbayes.storage.run_dir import SUMMARY, read_json

ATTACKS = {
    "sign_flip": ("attack=sign_flip", "attack.scale=-5"),
    "scaled_update": ("attack=scaled_update",),
    "gaussian_noise": ("attack=gaussian_noise",),
    "label_flip": ("attack=label_flip",),
    "backdoor": ("attack=backdoor", "attack.scale=5"),
}
DEFENCES = {
    "mean": (),
    "clip": ("update_clipping.max_norm=15",),
    **{
        name: (f"method.strategy.aggregate={name}",)
        for name in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median")
    },
}
FRACTIONS = (0.0, 0.2, 0.1, 0.3)  # in the order in which they are run
NOISES = (None, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FEDERATION = (
    *("partition=resampled", "partition.images=20", "clients=500"),
    *("evaluate.every=15", "evaluate.participation=0.4"),
)
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "privacy.png"
PRIVATE = ("pfedbayespt", "fedvpt", "fedavg_head")

Runs = dict[tuple[str, ...], Job]


def attacks(root: Path) -> Runs:
    """The runs of the table, by attack, fraction and defence."""
    runs: Runs = {}
    for fraction in FRACTIONS:
        for defence, settings in DEFENCES.items():
            needs_fraction = "krum" in defence or defence == "trimmed_mean"
            more = (*settings, f"+method.strategy.malicious_fraction={fraction}") if needs_fraction else settings
            for name, overrides in ATTACKS.items() if fraction else (("none", ()),):
                key = (name, f"{fraction:g}", defence)
                attack = (*overrides, f"attack.fraction={fraction}") if fraction else ()
                runs[key] = (folder_of(root, key), ("seed=0", "evaluate.every=15", *more, *attack))
    return runs


def show_attacks(runs: Runs) -> None:
    """Accuracy in per cent, and for the backdoor how often it works."""
    print("| attack | malicious | " + " | ".join(DEFENCES) + " |")
    print("|---|---|" + "---|" * len(DEFENCES))
    order = ["none", *ATTACKS]
    for attack, fraction in sorted({key[:2] for key in runs}, key=lambda key: (order.index(key[0]), key[1])):
        cells = []
        for defence in DEFENCES:
            summary = read_json(runs[attack, fraction, defence][0] / SUMMARY)
            if not summary:
                cells.append("–")
                continue
            success = summary["final"]["backdoor_success"]
            text = f"{100 * summary['final']['accuracy']['mean']:.1f}"
            cells.append(text if success is None else f"{text} ({100 * success:.0f})")
        print(f"| {attack} | {100 * float(fraction):.0f} % | " + " | ".join(cells) + " |")


def privacy(root: Path) -> Runs:
    """The runs of the curve, by method and noise."""
    runs: Runs = {}
    for method in PRIVATE:
        for noise in NOISES:
            key = (f"method={method}", f"noise={noise}")
            more = () if noise is None else (f"privacy.noise={noise}", "privacy.clip=2", "privacy.delta=0.001")
            runs[key] = (folder_of(root, key), (key[0], "seed=0", *FEDERATION, *more))
    return runs


def show_privacy(runs: Runs) -> None:
    """Accuracy and NLL at the epsilon of the last round."""
    print("| noise z | epsilon | " + " | ".join(PRIVATE) + " |")
    print("|---|---|" + "---|" * len(PRIVATE))
    for noise in NOISES:
        summaries = [read_json(runs[f"method={method}", f"noise={noise}"][0] / SUMMARY) for method in PRIVATE]
        spent = next((s["privacy"]["epsilon"][-1] for s in summaries if s and s["privacy"]), None)
        cells = [f"{s['final']['accuracy']['mean']:.3f} / {s['final']['nll']:.3f}" if s else "–" for s in summaries]
        label = "no clipping, no noise" if noise is None else f"{noise:g}"
        print(f"| {label} | {'–' if spent is None else f'{spent:.1f}'} | " + " | ".join(cells) + " |")
    draw_privacy(runs)


def draw_privacy(runs: Runs) -> None:
    """Accuracy over epsilon, a line per method; a dotted one for the method without privacy."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for color, marker, method in zip(("C0", "C1", "C2"), "osD", PRIVATE, strict=True):
        summaries = {noise: read_json(runs[f"method={method}", f"noise={noise}"][0] / SUMMARY) for noise in NOISES}
        points = [
            (summary["privacy"]["epsilon"][-1], summary["final"]["accuracy"]["mean"])
            for summary in summaries.values()
            if summary and summary["privacy"]
        ]
        axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=method)
        if summaries[None]:
            axes.axhline(summaries[None]["final"]["accuracy"]["mean"], color=color, linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="epsilon at delta = 0.001, 15 rounds", ylabel="test accuracy, mean over clients")
    axes.legend(title="dotted: neither clipped nor noisy", loc="lower right")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, then show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("attacks", "privacy"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/robustness"))
    args = parser.parse_args()
    make, show = {"attacks": (attacks, show_attacks), "privacy": (privacy, show_privacy)}[args.table]
    runs = make(args.root / args.table)
    run_all(list(runs.values()), args.jobs)
    show(runs)


if __name__ == "__main__":
    main()

"""Explicit, semi-implicit and reverse-modelled posteriors over prompts, by K and noise dimension: runs and tables.

    python experiments/posterior_table.py runs/prompts --jobs 2                       # styled digits
    python experiments/posterior_table.py runs/prompts_ood --jobs 2 evaluate.held_out=[noise]
    python experiments/posterior_table.py runs/prompts --samples "semi-implicit K=10 m=2" --jobs 2

Words after the folder go to every run, so the same command makes the table of other images, in a folder of its own, as
finished runs are kept. A
row is the mean over seeds ± its standard error; "validation" is what defaults are chosen by, the rest is test.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import folder_of, run_all

from fedbayes.report.spread import spread_text
from fedbayes.storage.run_dir import METRICS, SUMMARY, read_json, read_rows

EXTRA, NOISE_DIMS, SAMPLES = (0, 1, 10, 100), (2, 8, 32), (1, 2, 8, 32)


def configurations() -> dict[str, tuple[str, ...]]:
    """The rows of the table: a name and its overrides."""
    rows: dict[str, tuple[str, ...]] = {"Gaussian, diagonal": ("method=gaussian_prompts",)}
    for m in NOISE_DIMS:
        low_rank = ("method=gaussian_prompts", "generator.kind=low_rank", f"generator.noise_dim={m}")
        rows[f"Gaussian, rank {m}"] = low_rank
    for reverse, name in (("none", "semi-implicit"), ("gaussian", "+ reverse")):
        for m in NOISE_DIMS:
            for k in EXTRA:
                rows[f"{name} K={k} m={m}"] = (
                    "method=pfedbayespt",
                    f"inference.num_extra={k}",
                    f"generator.noise_dim={m}",
                    f"inference.reverse={reverse}",
                )
    return rows


def columns(folder: Path) -> dict[str, float | None]:
    """The numbers of one run."""
    summary = read_json(folder / SUMMARY)
    validation = [row for row in read_rows(folder / METRICS) if row["phase"] == "validation"][-1]
    final: dict[str, Any] = summary["final"]
    ood = final.get("ood") or {}
    return {
        "validation NLL": validation["nll"],
        "accuracy": final["accuracy"]["mean"],
        "NLL": final["nll"],
        "ECE": final["ece"],
        "OOD AUROC, prompt unc.": (ood.get("auroc") or {}).get("prompt_uncertainty"),
        "OOD AUROC, entropy": (ood.get("auroc") or {}).get("entropy"),
        "components": final.get("effective_components"),
        "saturation": final.get("bound_saturation"),
        "mixing": final.get("mixing_ratio"),
        "kept": final.get("mixing_kept"),
        "KL": summary["train"].get("kl"),
    }


def table(rows: dict[str, tuple[str, ...]], runs: Callable[[tuple[str, ...]], list[Path]]) -> list[str]:
    """Markdown, one line per configuration whose runs are there; columns without a number are left out."""
    found = {name: [columns(folder) for folder in runs(overrides)] for name, overrides in rows.items()}
    found = {name: each for name, each in found.items() if each}
    every = [one for each in found.values() for one in each]
    heads = [head for head in every[0] if any(one[head] is not None for one in every)]
    lines = ["| posterior | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, each in found.items():
        cells = [spread_text([one[head] for one in each]) for head in heads]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", metavar="ROW", help="vary S for this row of the table instead")
    parser.add_argument("--only", help="rows whose name contains one of these, separated by semicolons")
    parser.add_argument("--print", action="store_true", help="run nothing")
    args, common = parser.parse_known_args()
    rows = configurations()
    if args.samples:
        rows = {f"S={s}": (*rows[args.samples], f"inference.predict_samples={s}") for s in SAMPLES}
    if args.only:
        rows = {
            name: overrides for name, overrides in rows.items() if any(part in name for part in args.only.split(";"))
        }

    def runs(overrides: tuple[str, ...]) -> list[tuple[Path, tuple[str, ...]]]:
        full = [(*overrides, *common, "evaluate.every=1000", f"seed={seed}") for seed in args.seeds.split(",")]
        return [(folder_of(args.folder, (*one[: len(overrides)], one[-1])), one) for one in full]

    if not args.print:
        run_all([job for overrides in rows.values() for job in runs(overrides)], args.jobs)
    print("\n".join(table(rows, lambda o: [f for f, _ in runs(o) if (f / "summary.json").exists()])))


if __name__ == "__main__":
    main()

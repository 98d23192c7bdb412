"""Every table of methods: run what is missing, or make it anew from the runs that are there.

    python experiments/tables.py run digits_mixture --jobs 2     # runs in runs/tables/digits_mixture, then the table
    python experiments/tables.py show digits_mixture             # the table alone
    python experiments/tables.py show digits_mixture --methods pfedpg --against fedper   # differences to another one
    python experiments/tables.py list

How settings were chosen, and what counts as a trial, stands in `protocol.md`; the choices are in `selected.yaml`. A run
that has its summary is not run again, so a table goes on where it stopped; a run made with other settings than the
protocol's and the method's choice of today is refused. Partition and run share a seed: 0, 1, 2.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

import pandas as pd
import yaml
from jobs import Job, folder_of, require_same, run_all
from protocols import TABLES, WAVES
from results_page import joined, markdown

from fedbayes.metrics.paired import paired_difference
from fedbayes.report.spread import Spread, spread
from fedbayes.storage.run_dir import SUMMARY, read_json
from fedbayes.tracking.provenance import provenance

HERE = Path(__file__).parent
OURS = "pfedbayespt"
SEEDS = (0, 1, 2)
PRIOR = "+prior"
PRECISION = "bf16"
"""Of the frozen backbone for photographs: 2.5 times as fast as float32 on a processor that multiplies it, and many
times as slow on one that does not."""
DIGITS = {"kb_per_round_and_client": 1, "seconds": 0}
"""Decimals of a score, 3 for all others; these have no standard error."""
DEFAULTS = "mixture"
"""The section whose choices are the methods' own defaults."""


def selected(settings: str, method: str) -> tuple[str, ...]:
    """The overrides chosen for a method; without any it keeps those of its YAML, and `METHOD+prior` those of METHOD."""
    chosen: Mapping[str, Mapping[str, Sequence[str]]] = yaml.safe_load((HERE / "selected.yaml").read_text())
    section = chosen.get(settings) or {}
    return tuple(section.get(method, section.get(plain(method), ())))


def unchosen(name: str, methods: Sequence[str]) -> list[str]:
    """Methods that a table would run with settings chosen for other images: photographs change rates of their own."""
    settings = TABLES[name].settings
    return [] if settings == DEFAULTS else [method for method in methods if not selected(settings, method)]


def plain(method: str) -> str:
    """The method without `+prior`."""
    return method.removesuffix(PRIOR)


def short_name(method: str, seed: int) -> tuple[str, ...]:
    """The overrides that name a run; `METHOD+prior` is the method with `head.prior=client`."""
    prior = ("head.prior=client",) if method.endswith(PRIOR) else ()
    return (f"method={plain(method)}", *prior, f"seed={seed}")


def folder_of_table(root: Path, name: str, precision: str) -> Path:
    """Where a table's runs lie; those of photographs in another precision than the usual one lie beside them."""
    apart = TABLES[name].backbone and precision != PRECISION
    return root / (f"{name}_{precision}" if apart else name)


def jobs(
    name: str,
    methods: Sequence[str],
    root: Path,
    data: Path | None,
    weights: Path | None,
    precision: str = PRECISION,
    seeds: Sequence[int] = SEEDS,
    tuned: bool = True,
) -> dict[tuple[str, int], Job]:
    """The runs of a table, by method and seed; with the methods' defaults if not `tuned`.

    Where a table needs weights, `precision` is that of the backbone.
    """
    table, place = TABLES[name], folder_of_table(root, name, precision)
    paths: list[str] = [] if table.data is None else [f"data.root='{(data or Path()) / table.data}'"]
    paths += [f"backbone.checkpoint='{weights}'", f"simulation.precision={precision}"] if table.backbone else []
    table_jobs = {}
    for seed in seeds:
        for method in methods:
            short = short_name(method, seed)
            chosen = selected(table.settings, method) if tuned else ()
            protocol = ("evaluate.every=5", *table.overrides, f"partition.seed={seed}", *chosen)
            table_jobs[method, seed] = (folder_of(place, short), (*short, *protocol, *paths))
    return table_jobs


def measure(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of one run by the names of `DIGITS`; bytes are of both directions in a round and client."""
    final, best = summary["final"], summary["best"]
    rounds = summary["rounds"] * summary["clients"]
    scores = {
        "accuracy": final["accuracy"]["mean"],
        "best_by_validation": best["accuracy"]["mean"],
        "worst_decile": final["accuracy"]["worst_decile"],
        "nll": final["nll"],
        "ece": final["ece"],
        "kb_per_round_and_client": (summary["bytes"]["up"] + summary["bytes"]["down"]) / rounds / 1000,
        "seconds": summary["seconds"]["total"],
    }
    if not (new := summary.get("new_clients")):
        return scores
    after = {"1_step" if steps == "1" else f"{steps}_steps": row for steps, row in new.items()}
    accuracies = {f"accuracy_{steps}": row["accuracy"]["mean"] for steps, row in after.items()}
    return accuracies | {f"nll_{steps}": row["nll"] for steps, row in after.items()}


def rows(methods: Sequence[str], place: Path, against: str = OURS, seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """Return the table of the runs in `place`, in the form of `experiments/results`: all cells are text.

    Args:
        methods: a row for each that has a run.
        place: folder of the runs.
        against: the method that the differences are to.
        seeds: those whose runs count.
    """
    folders = {method: [folder_of(place, short_name(method, seed)) for seed in seeds] for method in (against, *methods)}
    table = []
    for method in methods:
        done = [folder for folder in folders[method] if (folder / SUMMARY).exists()]
        if not done:
            continue
        row = {"method": method, "seeds": str(len(done))}
        runs = [measure(read_json(folder / SUMMARY)) for folder in done]
        for score in runs[0]:
            mean = cast(Spread, spread([run[score] for run in runs]))
            digits = DIGITS.get(score, 3)
            row[score] = f"{mean.mean:.{digits}f}"
            if digits == 3:
                row[f"{score}_se"] = "" if mean.error is None else f"{mean.error:.3f}"
        others = [folders[against][folders[method].index(folder)] for folder in done] if method != against else []
        pairs = [(run, other) for run, other in zip(done, others, strict=False) if (other / SUMMARY).exists()]
        for score, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3)) if pairs else ():
            difference = paired_difference(pairs, score)
            for part, value in (("", difference.mean), ("_low", difference.low), ("_high", difference.high)):
                row[f"delta_{score}{part}"] = f"{scale * value:+.{digits}f}"
        table.append(row)
    return pd.DataFrame(table).fillna("")


def with_header(name: str, table: pd.DataFrame, precision: str) -> str:
    """Return the table as a file of `experiments/results`; machine and minutes are to be filled in."""
    command = " ".join(["python experiments/tables.py", *sys.argv[1:]])
    versions = provenance()
    run = {"what": precision, "command": command, "machine": "?", "minutes": "?", "date": f"{date.today()}"}
    header = {
        "title": TABLES[name].title,
        "about": "?",
        "findings": [],
        "runs": {"a": {**run, "commit": versions["git"]}},
    }
    lines = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000).splitlines()
    return "".join(f"# {line}\n" for line in lines) + table.to_csv(index=False)


def ask_for_photographs(parser: argparse.ArgumentParser) -> None:
    """Add the words that say where images and weights lie, and how the backbone multiplies."""
    parser.add_argument("--data", type=Path, help="folder that holds digits, office_caltech10 and cifar10")
    parser.add_argument("--weights", type=Path, help="timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    text = "of the backbone for photographs, the same for a table's runs and when it is shown"
    parser.add_argument("--precision", choices=("bf16", "float32"), default=PRECISION, help=text)


def main() -> None:
    """Run, show or list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "show", "list"))
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names; see list")
    text = "default: those of the wave; METHOD+prior has head.prior=client"
    parser.add_argument("--methods", nargs="*", help=text)
    parser.add_argument("--wave", choices=WAVES, default="both")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/tables"))
    text = "of the differences; it gets the first row"
    parser.add_argument("--against", default=OURS, metavar="METHOD", help=text)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="partitions and runs 0, 1, ...")
    parser.add_argument("--csv", type=Path, help="folder that gets the table as a file, e.g. experiments/results")
    ask_for_photographs(parser)
    args = parser.parse_args()
    places = (args.root, args.data, args.weights)
    methods = tuple(dict.fromkeys((args.against, *(args.methods or WAVES[args.wave]))))
    if args.action == "list":
        print("\n".join(f"{name:28} {table.title}" for name, table in TABLES.items()))
        return
    failed, seeds = False, range(args.seeds)
    for name in args.tables:
        missing = unchosen(name, methods)
        if args.action == "show":  # run_all does it otherwise
            require_same(
                list(jobs(name, [m for m in methods if m not in missing], *places, args.precision, seeds).values())
            )
        else:
            if missing:
                parser.error(
                    f"{', '.join(missing)}: nothing chosen for {name}; run tune.py {TABLES[name].settings} first"
                )
            wanted = list(jobs(name, methods, *places, args.precision, seeds).values())
            failed |= any(not (folder / SUMMARY).exists() for folder in run_all(wanted, args.jobs))
        table = rows(methods, folder_of_table(args.root, name, args.precision), args.against, seeds)
        print(f"\n**{TABLES[name].title}**\n\n{markdown(joined(table))}\n", flush=True)
        if args.csv:
            (args.csv / f"{name}.csv").write_text(with_header(name, table, args.precision), encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()

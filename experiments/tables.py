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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from jobs import Job, folder_of, require_same, run_all
from protocols import EVERY, TABLES, WAVES

from fedbayes.metrics.paired import Difference, paired_difference
from fedbayes.report.spread import Spread, spread
from fedbayes.storage.run_dir import SUMMARY, read_json

HERE = Path(__file__).parent
OURS = "pfedbayespt"
SEEDS = (0, 1, 2)
PRECISION = "bf16"
"""Of the frozen backbone for photographs: 2.5 times as fast as float32 on a processor that multiplies it, and many
times as slow on one that does not."""
DEFAULTS = "mixture"
"""The section whose choices are the methods' own defaults."""


def selected(settings: str, method: str) -> tuple[str, ...]:
    """The overrides chosen for a method; a method without any keeps those of its YAML."""
    chosen: Mapping[str, Mapping[str, Sequence[str]]] = yaml.safe_load((HERE / "selected.yaml").read_text())
    return tuple((chosen.get(settings) or {}).get(method, ()))


def unchosen(name: str, methods: Sequence[str]) -> list[str]:
    """Methods that a table would run with settings chosen for other images: photographs change rates of their own."""
    settings = TABLES[name].settings
    return [] if settings == DEFAULTS else [one for one in methods if not selected(settings, one)]


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
    where: list[str] = [] if table.data is None else [f"data.root='{(data or Path()) / table.data}'"]
    where += [f"backbone.checkpoint='{weights}'", f"simulation.precision={precision}"] if table.backbone else []
    found = {}
    for method in methods:
        for seed in seeds:
            short = (f"method={method}", f"seed={seed}")
            chosen = selected(table.settings, method) if tuned else ()
            own = ("evaluate.every=5", *table.overrides, f"partition.seed={seed}", *chosen)
            found[method, seed] = (folder_of(place, short), (*short, *own, *where))
    return found


@dataclass(frozen=True)
class Row:
    """A method's line: means over seeds, with the standard error over seeds."""

    method: str
    seeds: int
    values: dict[str, Spread]
    difference: dict[str, Difference]


def measure(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one run that a table shows; NLL in nats, bytes of both directions in a round and client."""
    final, best = summary["final"], summary["best"]
    rounds = summary["rounds"] * summary["clients"]
    found = {
        "accuracy": final["accuracy"]["mean"],
        "best": best["accuracy"]["mean"],
        "worst": final["accuracy"]["worst_decile"],
        "nll": final["nll"],
        "ece": final["ece"],
        "kilobytes": (summary["bytes"]["up"] + summary["bytes"]["down"]) / rounds / 1000,
        "seconds": summary["seconds"]["total"],
    }
    for steps, row in (summary.get("new_clients") or {}).items():
        found[f"new_{steps}"], found[f"new_nll_{steps}"] = row["accuracy"]["mean"], row["nll"]
    return found


def rows(methods: Sequence[str], place: Path, against: str = OURS) -> list[Row]:
    """A table's lines from the run directories that are in `place`, with differences to the method `against`."""
    folders = {
        method: [folder_of(place, (f"method={method}", f"seed={s}")) for s in SEEDS] for method in (against, *methods)
    }
    made = []
    for method in methods:
        found = [one for one in folders[method] if (one / SUMMARY).exists()]
        if not found:
            continue
        runs = [measure(read_json(folder / SUMMARY)) for folder in found]
        values = {key: cast(Spread, spread([run[key] for run in runs])) for key in runs[0]}
        pairs = [
            (folder, folders[against][SEEDS.index(int(folder.name.rpartition("seed=")[2]))])
            for folder in found
            if method != against
        ]
        pairs = [(mine, other) for mine, other in pairs if (other / SUMMARY).exists()]
        difference = {key: paired_difference(pairs, key) for key in ("accuracy", "nll")} if pairs else {}
        made.append(Row(method, len(found), values, difference))
    return made


def shown(name: str, lines: Sequence[Row]) -> str:
    """The table in Markdown; differences are the method's minus those of the method that has none."""

    def cell(row: Row, key: str, digits: int) -> str:
        return row.values[key].text(digits)

    def gap(row: Row, key: str, scale: float, digits: int) -> str:
        if key not in row.difference:
            return "–"
        one = row.difference[key]
        return f"{scale * one.mean:+.{digits}f} [{scale * one.low:+.{digits}f}, {scale * one.high:+.{digits}f}]"

    if TABLES[name].new_clients:
        steps = sorted(
            {int(key.rpartition("_")[2]) for row in lines for key in row.values if key.startswith("new_nll")}
        )
        heads = ["method", *(f"accuracy, {one} steps" for one in steps), *(f"NLL, {one} steps" for one in steps)]
        body = [
            [
                f"`{row.method}`",
                *(cell(row, f"new_{s}", 3) for s in steps),
                *(cell(row, f"new_nll_{s}", 3) for s in steps),
            ]
            for row in lines
        ]
    else:
        heads = ["method", "accuracy", "best by validation", "worst tenth of clients", "NLL (nats)", "ECE"]
        heads += ["kB per round and client", "seconds", "Δ accuracy (points)", "Δ NLL"]
        body = [
            [
                f"`{row.method}`",
                *(cell(row, key, 3) for key in ("accuracy", "best", "worst", "nll", "ece")),
                f"{row.values['kilobytes'].mean:.1f}",
                f"{row.values['seconds'].mean:.0f}",
                gap(row, "accuracy", 100, 1),
                gap(row, "nll", 1, 3),
            ]
            for row in lines
        ]
    title = f"{TABLES[name].title}; {min((row.seeds for row in lines), default=0)} seeds"
    table = [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *body)]
    return "\n".join([f"**{title}**", "", *table])


def ask_for_photographs(parser: argparse.ArgumentParser) -> None:
    """Add the words that say where images and weights lie, and how the backbone multiplies."""
    parser.add_argument("--data", type=Path, help="folder that holds digits, office_caltech10 and cifar10")
    parser.add_argument("--weights", type=Path, help="timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    says = "of the backbone for photographs, the same for a table's runs and when it is shown"
    parser.add_argument("--precision", choices=("bf16", "float32"), default=PRECISION, help=says)


def main() -> None:
    """Run, show or list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "show", "list"))
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names; see list")
    parser.add_argument("--methods", nargs="*", help="default: those of the wave")
    parser.add_argument("--wave", choices=WAVES, default="both")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--root", type=Path, default=Path("runs/tables"))
    says = "of the differences; it gets the first row"
    parser.add_argument("--against", default=OURS, choices=EVERY, metavar="METHOD", help=says)
    ask_for_photographs(parser)
    args = parser.parse_args()
    asked, where = args.methods or WAVES[args.wave], (args.root, args.data, args.weights)
    methods = (args.against, *(one for one in asked if one != args.against))
    if args.action == "list":
        print("\n".join(f"{name:28} {table.title}" for name, table in TABLES.items()))
        return
    failed = False
    for name in args.tables:
        missing = unchosen(name, methods)
        if args.action == "show":  # run_all looks at what it finds
            require_same(list(jobs(name, [m for m in methods if m not in missing], *where, args.precision).values()))
        else:
            if missing:
                parser.error(
                    f"{', '.join(missing)}: nothing chosen for {name}; run tune.py {TABLES[name].settings} first"
                )
            todo = list(jobs(name, methods, *where, args.precision).values())
            failed |= any(not (folder / SUMMARY).exists() for folder in run_all(todo, args.jobs))
        found = rows(methods, folder_of_table(args.root, name, args.precision), args.against)
        print(f"\n{shown(name, found)}\n", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

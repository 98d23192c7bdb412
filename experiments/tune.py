"""Chooses each method's configuration on validation, from the same small number of candidates per method.

    python experiments/tune.py mixture --beyond --jobs 2                      # says what conf/method/*.yaml should hold
    python experiments/tune.py label_skew --beyond --jobs 2 --write           # puts it into selected.yaml
    python experiments/tune.py photos --beyond --jobs 2 --write --data DIR --weights FILE

`METHOD+prior` gets the same candidates as METHOD, with `head.prior=client`. Without `--beyond` no candidate past the
edges of the grids is tried, and the choices that lie there are not found.

Seed 100 on partition 0 tunes; the tables use seeds 0, 1, 2. A candidate's score is its NLL on validation after the last
round. Test images play no part. `protocol.md` says what is tuned where, and what else was tried.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jobs import folder_of, run_all
from protocols import TABLES, WAVES
from search_space import Candidate, Ranked, candidates, untried, values
from tables import DEFAULTS, ask_for_photographs, jobs, plain

from fedbayes.storage.run_dir import METRICS, read_rows

SEED = 100
SELECTED = Path(__file__).parent / "selected.yaml"


PROTOCOLS = {
    "mixture": "digits_mixture",
    "label_skew": "digits_label_skew",
    "photos": "office_mixture",
}


def score(folder: Path) -> tuple[float, float]:
    """NLL (nats) and accuracy on validation after the last round."""
    last = [row for row in read_rows(folder / METRICS) if row["phase"] == "validation"][-1]
    return last["nll"], last["accuracy"]


def run(section: str, tried: Mapping[str, Sequence[Candidate]], args: argparse.Namespace) -> dict[str, list[Ranked]]:
    """Each method's candidates, run where they have not been, best first."""
    root, runs = args.folder / section, {}
    for method, them in tried.items():
        # The protocol's own job, with the candidate in the place of what had been selected.
        where = (root, args.data, args.weights, args.precision)
        protocol = jobs(PROTOCOLS[section], [method], *where, seeds=(SEED,), tuned=False)
        ((_, job),) = protocol.values()
        for one in them:
            runs[method, one] = (*job, *one, "partition.seed=0", "evaluate.every=1000")
    folders = {key: folder_of(root, (f"method={key[0]}", *key[1])) for key in runs}
    run_all([(folders[key], one) for key, one in runs.items()], args.jobs)
    return {method: sorted((*score(folders[method, one]), one) for one in them) for method, them in tried.items()}


def write(section: str, best: Mapping[str, Candidate]) -> None:
    """Put choices into `selected.yaml`; those of the first section are for `conf/method/`, by hand."""
    if section == DEFAULTS:
        print("\n".join(f"conf/method/{method}.yaml: {' '.join(one)}" for method, one in best.items()))
        return
    chosen = yaml.safe_load(SELECTED.read_text()) or {}
    chosen.setdefault(section, {}).update({method: list(one) for method, one in best.items()})
    SELECTED.write_text(HEADER + yaml.safe_dump(chosen, sort_keys=True), encoding="utf-8")


def main() -> None:
    """Run the candidates and print them, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=PROTOCOLS)
    parser.add_argument("--folder", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=WAVES["both"])
    ask_for_photographs(parser)
    parser.add_argument("--beyond", action="store_true", help="then three more past the edges on which the best lies")
    parser.add_argument("--write", action="store_true", help="put the best into selected.yaml")
    args = parser.parse_args()
    tried = {method: candidates(plain(method), args.section) for method in args.methods}
    ranked = run(args.section, tried, args)
    if args.beyond:
        for method, them in ranked.items():
            tried[method] = [*tried[method], *untried(plain(method), args.section, them)]
        ranked = run(args.section, tried, args)
    for method, them in ranked.items():
        for place, (nll, accuracy, one) in enumerate(them):
            name = " ".join(f"{key.rpartition('.')[2]}={text}" for key, text in values(one).items())
            print(f"| {f'`{method}`' if place == 0 else ''} | {name} | {nll:.3f} | {accuracy:.3f} |")
    if args.write:
        write(args.section, {method: them[0][2] for method, them in ranked.items()})


HEADER = """\
# The best candidate by NLL on validation, for each method and kind of protocol: what `tune.py --write` found. Rates
# that were chosen for `mixture` are the defaults in conf/method/*.yaml; here is what the other sections do not share.
"""

if __name__ == "__main__":
    assert set(PROTOCOLS.values()) <= set(TABLES)
    main()

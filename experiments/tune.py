"""Chooses each method's configuration on validation, from the same small number of candidates per method.

    python experiments/tune.py runs/tuning --jobs 2

Seed 100 tunes; the tables use 0, 1, 2. A candidate's score is its NLL on validation after the last round. Test images
play no part. The chosen values stand in `conf/method/*.yaml`.
"""

import argparse
import json
from pathlib import Path

from sweep import folder_of, run_all

SEED = 100
PAIRS = [(f"optim.prompt_lr={p}", f"optim.head_lr={h}") for p in (0.003, 0.01, 0.03) for h in (0.003, 0.01)]
HEADS = [(f"optim.head_lr={h}",) for h in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)]
FULL, CODE = ("generator.code_dim=full", "inference.beta=1e-5"), ("generator.code_dim=16", "inference.beta=1e-3")
POSTERIORS = [
    (*space, f"optim.prompt_lr={lr}", f"generator.init_scale={scale}")
    for space, lr, scale in [
        (FULL, 0.003, 0.1),
        (FULL, 0.003, 0.3),
        (FULL, 0.01, 0.1),
        (CODE, 0.003, 0.5),
        (CODE, 0.01, 0.5),
        (CODE, 0.03, 0.5),
    ]
]
CANDIDATES: dict[str, list[tuple[str, ...]]] = {
    "fedavg_head": HEADS,
    "fedvpt": PAIRS,
    "fedvpt_deep": PAIRS,
    "local_vpt": PAIRS,
    "deterministic_prompts": PAIRS,
    "gaussian_prompts": POSTERIORS,
    "pfedbayespt": POSTERIORS,
}
"""Six each; FedNCM has nothing to choose."""


def score(folder: Path) -> tuple[float, float]:
    """NLL (nats) and accuracy on validation after the last round."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["phase"] == "validation"][-1]
    return last["nll"], last["accuracy"]


def main() -> None:
    """Run the candidates and print them, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(CANDIDATES))
    parser.add_argument("common", nargs="*", help="overrides for all, e.g. rounds=15")
    args = parser.parse_args()
    runs = {
        (method, candidate): (f"method={method}", *candidate, f"seed={SEED}", "evaluate.every=1000", *args.common)
        for method in args.methods
        for candidate in CANDIDATES[method]
    }
    run_all([(folder_of(args.folder, one), one) for one in runs.values()], args.jobs)
    for method in args.methods:
        ranked = sorted(
            (*score(folder_of(args.folder, runs[method, candidate])), " ".join(candidate))
            for candidate in CANDIDATES[method]
        )
        print(f"\n{method}: {len(ranked)} configurations")
        for nll, accuracy, name in ranked:
            print(f"  validation NLL {nll:.3f}  accuracy {accuracy:.3f}  {name}")


if __name__ == "__main__":
    main()

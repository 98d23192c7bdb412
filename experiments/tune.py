"""Chooses each method's configuration on validation, from the same small number of candidates per method.

    python experiments/tune.py runs/tuning --jobs 2

Seeds 100 and 101 tune; the tables use 0, 1, 2. A candidate's score is the mean over both seeds of its validation NLL
after the last round. Test images play no part. The chosen values stand in `conf/method/*.yaml`.
"""

import argparse
import json
from pathlib import Path

from sweep import folder_of, run_all

SEEDS = (100, 101)
PROMPT_LR = (0.003, 0.01, 0.03)
HEAD_LR = (0.003, 0.01)
PAIRS = [(f"optim.prompt_lr={prompt}", f"optim.head_lr={head}") for prompt in PROMPT_LR for head in HEAD_LR]
HEADS = [(f"optim.head_lr={head}",) for head in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)]
CANDIDATES: dict[str, list[tuple[str, ...]]] = {
    "fedavg_head": HEADS,
    "fedvpt": PAIRS,
    "fedvpt_deep": PAIRS,
    "local_vpt": PAIRS,
    "deterministic_prompts": PAIRS,
    "gaussian_prompts": PAIRS,
    "pfedbayespt": PAIRS,
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
        (method, candidate, seed): (f"method={method}", *candidate, f"seed={seed}", "evaluate.every=1000", *args.common)
        for method in args.methods
        for candidate in CANDIDATES[method]
        for seed in SEEDS
    }
    run_all([(folder_of(args.folder, one), one) for one in runs.values()], args.jobs)
    for method in args.methods:
        ranked = []
        for candidate in CANDIDATES[method]:
            scores = [score(folder_of(args.folder, runs[method, candidate, seed])) for seed in SEEDS]
            nll, accuracy = (sum(column) / len(SEEDS) for column in zip(*scores, strict=True))
            ranked.append((nll, accuracy, " ".join(candidate)))
        print(f"\n{method}: {len(ranked)} configurations")
        for nll, accuracy, name in sorted(ranked):
            print(f"  validation NLL {nll:.3f}  accuracy {accuracy:.3f}  {name}")


if __name__ == "__main__":
    main()

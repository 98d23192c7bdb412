"""The same federated jobs written plainly against Flower's own runtime, as a user would, beside fedbayes.

    python experiments/benchmark_peers.py    # linear head and VPT-shallow, ten clients; runs/benchmark/peers.json

The plain version, `plain_flower.py`, is what Flower's tutorials show. Images, partition, backbone, rates, epochs and
rounds are the same for all; accuracy says that it is the same job. Each run has a process of its own, and the machine's
cores are in use by all.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import watched
from plain_flower import METHODS, plain


def _plain_elsewhere(method: str, rounds: int, folder: Path) -> dict[str, Any]:
    out = folder / f"plain-{method}.json"
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, __file__, "--one", method, "--rounds", str(rounds), "--out", str(out)]
    started = time.time()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = {"whole_run": time.time() - started, **json.loads(out.read_text())}
    out.unlink()
    return result


def main() -> None:
    """Run all, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="of which the first does not count")
    parser.add_argument("--one", choices=METHODS, help="one plain run, written to --out")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/peers.json"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.one:
        args.out.write_text(json.dumps(plain(args.one, args.rounds)), encoding="utf-8")
        return
    rows = []
    for method in METHODS:
        said = _plain_elsewhere(method, args.rounds, args.out.parent)
        middle = sorted(said["rounds"])[len(said["rounds"]) // 2]
        rows.append((method, "plain Flower, Ray", middle, said["whole_run"], said["accuracy"]))
        for engine in ("ray", "in_process"):
            common = [f"method={method}", f"rounds={args.rounds}", f"evaluate.every={args.rounds}"]
            run = watched([*common, f"simulation={engine}"])
            seconds = sorted(run.seconds("train"))
            accuracy = run.summary["final"]["accuracy"]["mean"]
            rows.append((method, f"fedbayes, {engine}", seconds[len(seconds) // 2], run.wall, accuracy))
    print("| job | engine | round, s | of plain | whole run, s | of plain | accuracy |\n|" + "---|" * 7)
    for method, engine, middle, whole, accuracy in rows:
        _, _, plain_round, plain_whole, _ = next(row for row in rows if row[0] == method)
        ratios = f"{middle:.2f} | {middle / plain_round:.3f} | {whole:.1f} | {whole / plain_whole:.2f}"
        print(f"| {method} | {engine} | {ratios} | {accuracy:.3f} |")
    names = ("job", "engine", "round", "whole_run", "accuracy")
    args.out.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

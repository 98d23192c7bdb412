"""A long run with faulty clients beside the same run in which their answers are simply absent.

    python experiments/soak.py --rounds 200 --clients 1000

30 % of a round's clients cannot be reached, 5 % raise, 2 % answer with NaN. Counts must be those that were drawn,
memory must not grow, and the result must be that of the run without the faulty answers: in cohorts of one
(`--cohort 1`) to the last bit; in larger ones, whose company differs, up to rounding, which many rounds amplify: there
the paired interval over clients and images must hold zero.
"""

import argparse
import os
from pathlib import Path

from fedbayes.metrics.paired import paired_difference
from fedbayes.storage.run_dir import METRICS, read_rows

FAULTS = {"drop": 0.3, "error": 0.05, "nan": 0.02}
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def play(rounds: int, clients: int, faults: dict[str, float], folder: Path, cohort: int) -> dict:
    """One run; memory is read whenever a checkpoint is written, after every round."""
    from fedbayes import simulate
    from fedbayes.storage import checkpoint

    memory: list[float] = []
    save = checkpoint.save

    def watched(run_dir, found):
        memory.append(resident_mb())
        return save(run_dir, found)

    checkpoint.save = watched
    try:
        summary = simulate([
            f"clients={clients}", f"rounds={rounds}", "participation=0.05", "partition=resampled",
            "partition.images=20", "evaluate.every=20", "evaluate.participation=0.2", f"simulation.cohort={cohort}",
            "simulation.threads=1",
            *(f"faults.{kind}={share}" for kind, share in faults.items()), f"run_dir='{folder}'",
        ])  # fmt: skip
    finally:
        checkpoint.save = save
    trains = [row for row in read_rows(folder / METRICS) if row["phase"] == "train"]
    return {"summary": summary, "memory": memory, "trains": trains}


def expected(rounds: int, clients: int, seed: int = 0) -> dict[str, int]:
    """How often each fault was drawn."""
    from fedbayes.server.sampling import Sampling
    from fedbayes.simulation.faults import Faults

    sampling, faults = Sampling(clients=clients, participation=0.05, seed=seed), Faults(seed=seed, **FAULTS)
    drawn = [faults.of(r, 0, p).kind for r in range(1, rounds + 1) for p in sampling.train(r)]
    return {kind: drawn.count(kind) for kind in ("drop", "error", "nan", "")}


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    args = parser.parse_args()
    faulty = play(args.rounds, args.clients, FAULTS, args.folder / "faulty", args.cohort)
    absent = play(args.rounds, args.clients, {"drop": sum(FAULTS.values())}, args.folder / "absent", args.cohort)
    drawn = expected(args.rounds, args.clients)
    counted = {kind: sum(row[f"dropped_{kind}"] for row in faulty["trains"]) for kind in ("late", "failed", "invalid")}
    print(f"drawn   {drawn}\ncounted {counted}, {sum(row['replies'] for row in faulty['trains'])} used")
    assert list(counted.values()) == [drawn["drop"], drawn["error"], drawn["nan"]]
    assert all(row["attempts"] == 1 for row in faulty["trains"])
    after20, last = faulty["memory"][19], faulty["memory"][-1]
    print(f"memory after round 20: {after20:.0f} MB, at the end: {last:.0f} MB ({100 * (last / after20 - 1):+.1f} %)")
    assert last < 1.05 * after20
    for name, one in (("faulty", faulty), ("absent", absent)):
        final = one["summary"]["final"]
        seconds = one["summary"]["seconds"]["total"]
        print(f"{name}: accuracy {final['accuracy']['mean']:.4f}, NLL {final['nll']:.4f}, {seconds:.0f} s")
    for key in ("accuracy", "nll"):
        gap = paired_difference([(args.folder / "faulty", args.folder / "absent")], key)
        print(f"{key}, faulty minus absent: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")
        assert gap.low <= 0 <= gap.high
        assert args.cohort > 1 or gap.mean == 0


if __name__ == "__main__":
    main()

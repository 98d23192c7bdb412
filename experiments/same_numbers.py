"""Show that a change of the code moved no number: the same runs before and after, equal to the last bit.

    python experiments/same_numbers.py run FOLDER            # once in each checkout, with that checkout's interpreter
    python experiments/same_numbers.py compare BEFORE AFTER  # exit status 1 where a number differs

Six runs: the default, fixed prompts with personal heads, pFedPG, LoRA, one on Ray, and one that is killed and resumed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNS = {
    "default": (),
    "personal_heads": ("method=fedvpt", "method.client.personal=[head]", "rounds=6"),
    "pfedpg": ("method=pfedpg", "rounds=6"),
    "lora": ("method=fedlora", "rounds=4"),
    "ray": ("simulation=ray", "rounds=2", "clients=4"),
    "resumed": ("rounds=6", "checkpoint.every=1"),
}
RENAMED: dict[str, str] = {}
"""Keys of `final` and `best` whose name has changed since: from the old name to the new one."""


def run_all(folder: Path) -> None:
    """Run what is not yet there."""
    for name, overrides in RUNS.items():
        run_dir = folder / name
        if (run_dir / "summary.json").exists():
            continue
        command = [sys.executable, "-m", "fedbayes.run", *overrides, "simulation.threads=1", f"run_dir={run_dir}"]
        if name == "resumed":
            _kill_after_round(command, run_dir, 3)
            command = [sys.executable, "-m", "fedbayes.run", f"resume={run_dir}"]
        subprocess.run(command, check=True)


def _kill_after_round(command: list[str], run_dir: Path, server_round: int) -> None:
    """Start a run, and kill it once a round is in its log."""
    process = subprocess.Popen(command, start_new_session=True)
    rows = run_dir / "metrics.jsonl"
    while not (rows.exists() and f'"round": {server_round}' in rows.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"{run_dir} ended before round {server_round}")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def differences(before: Any, after: Any, place: str) -> list[str]:
    """Where two summaries differ; a key that only the later one has is no difference."""
    if isinstance(before, dict):
        renamed = {RENAMED.get(key, key): value for key, value in before.items()}
        missing = [f"{place}.{key} is missing" for key in renamed if key not in after]
        shared = [key for key in renamed if key in after]
        return missing + [line for key in shared for line in differences(renamed[key], after[key], f"{place}.{key}")]
    return [] if before == after else [f"{place}: {before!r} became {after!r}"]


def compare(before: Path, after: Path) -> list[str]:
    """All differences in `final` and `best` of all runs."""
    lines = []
    for name in RUNS:
        old, new = (json.loads((folder / name / "summary.json").read_text()) for folder in (before, after))
        for part in ("final", "best"):
            lines += differences(old[part], new[part], f"{name}.{part}")
    return lines


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run_all(Path(sys.argv[2]).resolve())
    else:
        found = compare(Path(sys.argv[2]), Path(sys.argv[3]))
        print("\n".join(found) or f"equal to the last bit: {', '.join(RUNS)}")
        sys.exit(bool(found))

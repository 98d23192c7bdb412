"""Runs that end in the middle, as a kill would end them, and what must not depend on that."""

import json

import pytest

from fedbayes import simulate
from fedbayes.storage import checkpoint

CLOCK = {"seconds", "images_per_second", "peak_memory_mb"}
ROWS = ("metrics.jsonl", "clients.jsonl")


class Break(BaseException):
    """Ends a run as a kill would: nobody catches it."""


def broken(overrides, monkeypatch, after):
    """Run until the checkpoint of a round is there, and end."""
    save = checkpoint.save

    def save_and_break(run_dir, stored):
        save(run_dir, stored)
        if stored.server_round == after:
            raise Break

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_break)
        with pytest.raises(Break):
            simulate(overrides)


def result(run_dir):
    """Everything of a run that must not depend on breaks."""
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = [json.loads(line) for name in ROWS for line in (run_dir / name).read_text().splitlines()]
    stored = checkpoint.latest(run_dir)
    parts = {"server": stored.server, "strategy": stored.strategy, **stored.personal}
    return (
        {k: v for k, v in summary.items() if k not in CLOCK},
        [{k: v for k, v in row.items() if "second" not in k} for row in rows],
        (run_dir / "predictions.safetensors").read_bytes(),
        {(part, name): array.tobytes() for part, arrays in parts.items() for name, array in arrays.items()},
    )

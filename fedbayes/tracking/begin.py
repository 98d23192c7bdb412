"""The beginning of a run's record: what it is made of, and the tracker with what is to be said first."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from fedbayes import build
from fedbayes.config.compose import resolved
from fedbayes.data.partitions.splits import describe
from fedbayes.simulation.hardware import slow_numbers
from fedbayes.storage.checkpoint import Restart
from fedbayes.storage.run_dir import PARTITION, write_json
from fedbayes.tracking.provenance import differences
from fedbayes.tracking.tracker import Tracker


@contextmanager
def begin(run_dir: Path, cfg: DictConfig, parts: build.Parts, restart: Restart, *, resumed: bool) -> Iterator[Tracker]:
    """Write down who has which images, and open the tracker for the block.

    Args:
        run_dir: the run's directory, claimed by this process.
        cfg: the composed configuration.
        parts: of the run.
        restart: where it goes on.
        resumed: whether it was begun before.
    """
    if len(parts.data.images):  # deployed clients alone know theirs
        write_json(run_dir / PARTITION, describe(parts.data.clients, parts.data.images, cfg.names.partition))
    tracker = Tracker(
        run_dir,
        cfg.rounds,
        f"{cfg.names.method} on {cfg.names.data}, seed {cfg.seed}",
        resolved(cfg),
        build.destinations(cfg, run_dir),
        resumed_after=restart.after if resumed else None,
    )
    with tracker:
        tracker.replay(parts.records)
        notes = [*restart.damage]
        if restart.checkpoint is not None:
            notes += differences(restart.checkpoint.history.get("made_by"))
        if cfg.names.simulation != "flower":  # or else this processor says nothing of the clients'
            notes += filter(None, [slow_numbers(cfg.simulation.precision, parts.engine.device)])
        for text in notes:
            tracker.note(text)
        yield tracker

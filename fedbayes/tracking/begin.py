"""The beginning of a run's record: what it is made of, and the tracker with what is to be said first."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from fedbayes import build
from fedbayes.data.partitions.splits import describe
from fedbayes.parts.offsite import store
from fedbayes.parts.server import destinations
from fedbayes.simulation.hardware import slow_numbers
from fedbayes.storage.checkpoint import Restart
from fedbayes.storage.run_dir import INPUTS, PARTITION, write_json
from fedbayes.tracking.inputs import UNKNOWN, record_inputs
from fedbayes.tracking.provenance import differences
from fedbayes.tracking.tracker import Tracker


@contextmanager
def begin(cfg: DictConfig, parts: build.Parts, restart: Restart) -> Iterator[Tracker]:
    """Write down what a run is made of, and open the tracker for the block.

    Args:
        cfg: the composed configuration.
        parts: of the run.
        restart: the run's directory, claimed by this process, and where the run goes on.

    Raises:
        DataError: if the run began with other images or another backbone.
    """
    is_known = restart.checkpoint is None or (restart.run_dir / INPUTS).exists()
    record_inputs(restart.run_dir, parts)
    if parts.emulator is not None:
        store(cfg, parts.emulator.emulator, parts.model.backbone)
    if len(parts.data.images):  # deployed clients alone know theirs
        partition = describe(parts.data.clients, parts.data.images, cfg.names.partition)
        write_json(restart.run_dir / PARTITION, partition)
    tracker = Tracker(
        restart.run_dir,
        cfg.rounds,
        f"{cfg.names.method} on {cfg.names.data}, seed {cfg.seed}",
        destinations(cfg, restart.run_dir),
        resumed_after=restart.after,
    )
    with tracker:
        tracker.replay(parts.records)
        notes = [*restart.damage, *([] if is_known else [UNKNOWN])]
        if restart.checkpoint is not None:
            notes += differences(restart.checkpoint.history.get("made_by"))
        if cfg.names.simulation != "flower":  # or else this processor says nothing of the clients'
            notes += filter(None, [slow_numbers(cfg.simulation.precision, parts.engine.device)])
        for text in notes:
            tracker.note(text)
        yield tracker

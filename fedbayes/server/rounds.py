"""The one round loop: sample by partition -> train (train_round) -> evaluate (evaluate_round) -> checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from fedbayes.arrays import Arrays
from fedbayes.errors import StoppedError, require_number, require_whole
from fedbayes.server.evaluate_round import Assessment
from fedbayes.server.federation import Federation, named_clients
from fedbayes.server.sampling import Sampling
from fedbayes.server.session import RoundLog, Session
from fedbayes.server.state import Progress
from fedbayes.server.strategy import ServerStrategy
from fedbayes.server.train_round import Training
from fedbayes.server.validation import INVALID, PartitionSizes, ReplyValidator
from fedbayes.simulation.client import ClientGrid
from fedbayes.simulation.jammer import UplinkGame
from fedbayes.storage.checkpoint import Checkpoint

Save = Callable[[Checkpoint], object]
"""Takes checkpoints."""


@final
@dataclass(kw_only=True, eq=False)
class RoundLoop:
    """Rounds of training and evaluation over a grid; `conf/config.yaml` explains the settings."""

    rounds: int
    training: Training
    assessment: Assessment
    validator: ReplyValidator
    checkpoint_every: int
    patience: float

    def __post_init__(self) -> None:
        require_whole("rounds", self.rounds, 1)
        require_whole("checkpoint.every", self.checkpoint_every, 1)
        require_number("simulation.patience", self.patience, 0)

    @property
    def sampling(self) -> Sampling:
        """The clients of a round and of an evaluation."""
        return self.training.sampling

    def require(self, strategy: ServerStrategy) -> None:
        """Raise a ConfigError unless the strategy works with the clients of a round and of an evaluation."""
        evaluated = min(len(group) for group in (self.sampling.evaluated, self.sampling.new_clients) if group)
        strategy.require_sizes(self.sampling.per_round, evaluated)

    def run(
        self,
        grid: ClientGrid,
        strategy: ServerStrategy,
        initial: Arrays,
        log: RoundLog,
        sizes: PartitionSizes,
        *,
        save: Save | None = None,
        checkpoint: Checkpoint | None = None,
        uplinks: UplinkGame | None = None,
    ) -> Progress:
        """Run all rounds, from the initial parameters to the final evaluation.

        Args:
            grid: the clients.
            strategy: combines replies.
            initial: the server's parameters before the first round.
            log: takes what happens.
            sizes: what is known of the clients' images.
            save: takes checkpoints.
            checkpoint: the checkpoint of this run to go on from.
            uplinks: see `Session`.

        Raises:
            ConfigError: see `require`.
            RunError: if the federation has another number of clients, a round fails, or no client's evaluation is
                valid. What was learnt before is in the last checkpoint.
        """
        federation = Federation(
            grid, self.sampling.clients, self.validator, sizes, patience=self.patience, timeout=self.training.timeout
        )
        self.require(strategy)
        progress = Progress(initial) if checkpoint is None else Progress.restored(checkpoint)
        strategy.shared = progress.arrays
        if checkpoint is not None:
            strategy.restore(checkpoint.strategy)
            federation.restore(progress.personal, progress.accepted)
        session = Session(federation, strategy, progress, strategy.expected_reply(initial), log, uplinks)
        saved = progress.server_round
        for server_round in range(progress.server_round + 1, self.rounds + 1):
            last = server_round == self.rounds
            try:
                self.training.round(session, server_round)
            except StoppedError:
                if saved < progress.server_round:
                    _save(session, save)
                raise
            progress.server_round = server_round
            _collect_personal(session)
            if last or server_round % self.assessment.every == 0:
                self.assessment.after_round(session, last=last)
            if last or server_round % self.checkpoint_every == 0:
                _save(session, save)
                saved = server_round
        for warning in progress.warnings():
            log.note(warning)
        return progress


def _collect_personal(session: Session) -> None:
    """Ask for personal parameters, as far as they have changed; invalid ones stay uncollected."""
    progress = session.progress
    accepted = {partition: progress.accepted[partition] for partition in sorted(progress.uncollected)}
    personal, rejected = session.federation.personal(accepted) if accepted else ({}, {})
    progress.personal |= personal
    progress.uncollected -= personal.keys()
    for partition, rejection in rejected.items():
        progress.personal.pop(partition, None)
        if rejection.kind == INVALID:  # others say that they do not hand them out
            note = f"personal parameters of client {partition} rejected: {rejection.reason}"
            session.log.note(f"round {progress.server_round}: {note}")


def _save(session: Session, save: Save | None) -> None:
    """Make a checkpoint."""
    progress = session.progress
    if save is None:
        return
    if progress.uncollected:
        session.log.note(
            f"round {progress.server_round}: {named_clients(sorted(progress.uncollected))} did not hand out personal "
            "parameters, so nothing can go on from this checkpoint"
        )
    save(progress.checkpoint(session.strategy.state()))

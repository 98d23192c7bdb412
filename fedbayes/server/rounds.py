"""The one round loop: any Flower strategy, keyed sampling, guarded replies, evaluation, checkpoints, the log.

    sample by partition -> train (train_round) -> evaluate (evaluate_round) -> checkpoint

It sees clients by their partitions; node ids, which Flower draws at random, stay inside.
"""

from collections.abc import Callable
from typing import final

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import to_record
from fedbayes.errors import ConfigError, StoppedError, require_number, require_whole
from fedbayes.server.evaluate_round import Assessment
from fedbayes.server.federation import Federation
from fedbayes.server.state import Progress
from fedbayes.server.strategy_state import restore, state_of
from fedbayes.server.train_round import RoundLog, Training
from fedbayes.server.validation import INVALID, Guard, Holdings, outlandish
from fedbayes.storage.checkpoint import Checkpoint

Keep = Callable[[Checkpoint], object]
"""Where checkpoints go."""


@final
class RoundLoop:
    """Rounds of training and evaluation over a grid.

    Args:
        rounds: how many.
        training: of the clients of a round.
        assessment: of what was learnt.
        guard: says which answers may be used.
        checkpoint_every: rounds between checkpoints; there is always one after the last.
        patience: seconds to wait for the clients to be there, before the first round.
        personal: whether clients keep parameters to themselves.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        rounds: int,
        training: Training,
        assessment: Assessment,
        guard: Guard,
        checkpoint_every: int,
        patience: float,
        personal: bool,
    ) -> None:
        self.rounds = require_whole("rounds", rounds, 1)
        self.training, self.assessment, self.guard = training, assessment, guard
        self.sampling = training.sampling
        self.checkpoint_every = require_whole("checkpoint.every", checkpoint_every, 1)
        self.patience = require_number("simulation.patience", patience, 0)
        self.personal = personal

    def require(self, strategy: Strategy) -> None:
        """Refuse a strategy that would sample by itself or wait for clients that never come.

        Raises:
            ConfigError: naming the strategy's argument.
        """
        for name in ("fraction_train", "fraction_evaluate"):
            if getattr(strategy, name, 1.0) != 1.0:
                raise ConfigError(
                    f"method.strategy.{name}={getattr(strategy, name)} would sample a second time, by another "
                    "generator; leave it at 1.0 and set participation."
                )
        trained = self.sampling.per_round
        looked_at = min(len(group) for group in (self.sampling.evaluated, self.sampling.newcomers) if group)
        shown = {
            "min_train_nodes": trained,
            "min_available_nodes": min(trained, looked_at),
            "min_evaluate_nodes": looked_at,
        }
        waits = {name: most for name, most in shown.items() if getattr(strategy, name, 0) > most}
        if waits:
            remedy = " ".join(f"+method.strategy.{name}={most}" for name, most in waits.items())
            raise ConfigError(
                f"{type(strategy).__name__} would wait for ever: {' and '.join(waits)} exceed the clients that it is "
                f"shown ({trained} of {self.sampling.clients} in training, {looked_at} in an evaluation); set "
                f"{remedy}, or show it more."
            )

    def run(
        self,
        grid: Grid,
        strategy: Strategy,
        initial: Arrays,
        log: RoundLog,
        keep: Keep | None = None,
        stored: Checkpoint | None = None,
        holdings: Holdings | None = None,
    ) -> Progress:
        """All rounds, from the initial parameters to the final evaluation.

        Args:
            grid: the clients.
            strategy: turns replies into the next message.
            initial: the server's parameters before the first round.
            log: is told what happens.
            keep: takes checkpoints; None for nobody.
            stored: the checkpoint of this run to go on from.
            holdings: what is known of the clients' images beforehand; None for nothing.

        Raises:
            ConfigError: see `require`.
            RunError: if the federation has another number of clients, a round stays void, or no client's evaluation
                came back. What was learnt before is in the last checkpoint.
        """
        federation = Federation(
            grid, self.sampling.clients, self.guard, holdings, patience=self.patience, timeout=self.training.timeout
        )
        self.require(strategy)
        progress = Progress(to_record(initial))
        if stored is not None:
            progress = Progress.restored(stored)
            restore(strategy, stored.strategy)
            federation.restore(progress.personal, progress.accepted)
        kept = progress.server_round
        for server_round in range(progress.server_round + 1, self.rounds + 1):
            last = server_round == self.rounds
            try:
                self.training.round(federation, strategy, progress, server_round, log)
            except StoppedError:
                if kept < progress.server_round:
                    self._keep(strategy, progress, log, keep)
                raise
            progress.server_round = server_round
            self._collect(federation, progress, log)
            if last or server_round % self.assessment.every == 0:
                self.assessment.after_round(federation, strategy, progress, log, last=last)
            if last or server_round % self.checkpoint_every == 0:
                self._keep(strategy, progress, log, keep)
                kept = server_round
        for warning in progress.warnings():
            log.note(warning)
        return progress

    def _collect(self, federation: Federation, progress: Progress, log: RoundLog) -> None:
        """Ask for what clients keep to themselves, as far as it has changed; what cannot be used is not handed out."""
        if not self.personal:
            return
        changed = {one: done for one, done in progress.accepted.items() if progress.held.get(one) != done}
        found, refused = federation.personal(changed)
        progress.personal |= {one: arrays for one, arrays in found.items() if arrays}
        progress.held |= {one: changed[one] for one in found}
        for one in (odd := outlandish(progress.personal)):
            del progress.personal[one], progress.held[one]
        for one, refusal in sorted({**refused, **odd}.items()):
            if refusal.kind == INVALID:  # others say that they keep it
                log.note(
                    f"round {progress.server_round}: what client {one} keeps to itself is not used: {refusal.reason}"
                )

    def _keep(self, strategy: Strategy, progress: Progress, log: RoundLog, keep: Keep | None) -> None:
        if keep is None:
            return
        if self.personal and not progress.complete:
            missing = sorted(one for one, done in progress.accepted.items() if progress.held.get(one) != done)
            log.note(
                f"round {progress.server_round}: clients {missing} keep what is personal to themselves, so nothing can "
                "go on from this checkpoint"
            )
        keep(progress.checkpoint(state_of(strategy), personal=self.personal))

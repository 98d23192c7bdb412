"""The one round loop: any Flower strategy, keyed sampling, guards against bad replies, evaluation, the log.

    sample by partition -> strategy's messages -> replies -> guard -> strategy's aggregate -> evaluate -> log

It sees clients by their partitions; node ids, which Flower draws at random, stay inside.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, final

from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedbayes.errors import ConfigError, RunError, require_choice, require_number, require_whole
from fedbayes.evaluation import Evaluation, detection
from fedbayes.federation import Federation
from fedbayes.inference.calibration import fit_temperature
from fedbayes.inference.diagnostics import mixing_ratio
from fedbayes.messages import Arrays, ClientUpdate, address, mean_arrays, payload_bytes, to_record
from fedbayes.progress import Progress
from fedbayes.sampling import Sampling


class RoundLog(Protocol):
    """Where the loop tells what happens."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row for a round and phase."""
        ...

    def log_clients(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One row per client."""
        ...

    def note(self, text: str) -> None:
        """A sentence for the reader."""
        ...


@final
class RoundLoop:
    """Rounds of training and evaluation over a grid.

    Args:
        rounds: how many.
        sampling: which clients train and which are evaluated.
        min_replies: usable replies without which a round is void.
        timeout: seconds that clients have for a round's training, or evaluation; None: as long as they need.
        patience: seconds to wait for the clients to be there, before the first round.
        evaluate_every: rounds between evaluations on validation; the last round is always evaluated.
        best_by: what makes a validation round the best, `accuracy` or `nll`.
        temperature: whether a temperature is fitted on validation whenever test is evaluated.
        held_out: whether clients have images of held-out domains, to be evaluated whenever test is.
        adapt_steps: steps of training on their own images after which new clients are evaluated on test, at the end.
        passes: over a client's training images in a round, for the count of images.
        personal: whether clients keep parameters to themselves.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        rounds: int,
        sampling: Sampling,
        min_replies: int,
        timeout: float | None,
        patience: float,
        evaluate_every: int,
        best_by: str,
        temperature: bool,
        held_out: bool,
        adapt_steps: Sequence[int],
        passes: int,
        personal: bool,
    ) -> None:
        self.rounds = require_whole("rounds", rounds, 1)
        self.sampling = sampling
        self.min_replies = require_whole("simulation.min_replies", min_replies, 1)
        self.timeout = None if timeout is None else require_number("simulation.timeout", timeout, 0, open_low=True)
        self.patience = require_number("simulation.patience", patience, 0)
        self.evaluate_every = require_whole("evaluate.every", evaluate_every, 1)
        self.adapt_steps = _steps(adapt_steps)
        self.best_by = require_choice("evaluate.best_by", best_by, ("accuracy", "nll"))
        if not isinstance(temperature, bool):
            raise ConfigError(f"evaluate.temperature={temperature} is neither true nor false; choose one of them.")
        self.temperature, self.held_out = temperature, held_out
        self.passes, self.personal = passes, personal
        if sampling.per_round < self.min_replies:
            raise ConfigError(
                f"simulation.min_replies={self.min_replies} can never be reached: a round samples {sampling.per_round} "
                f"of {sampling.clients} clients; lower it or raise participation."
            )

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
        shown = {
            "min_train_nodes": self.sampling.per_round,
            "min_available_nodes": self.sampling.per_round,
            "min_evaluate_nodes": len(self.sampling.evaluated),
        }
        waits = {name: most for name, most in shown.items() if getattr(strategy, name, 0) > most}
        if waits:
            remedy = " ".join(f"+method.strategy.{name}={most}" for name, most in waits.items())
            raise ConfigError(
                f"{type(strategy).__name__} would wait for ever: {' and '.join(waits)} exceed the "
                f"{self.sampling.per_round} of {self.sampling.clients} clients that train in a round; set {remedy}, or "
                "raise participation."
            )

    def run(self, grid: Grid, strategy: Strategy, initial: Arrays, tracker: RoundLog) -> Progress:
        """All rounds, from the initial parameters to the final evaluation.

        Raises:
            ConfigError: see `require`.
            RunError: if the federation has another number of clients, or no client's evaluation came back.
        """
        federation = Federation(grid, self.sampling.clients, patience=self.patience, timeout=self.timeout)
        self.require(strategy)
        progress = Progress(to_record(initial))
        for server_round in range(1, self.rounds + 1):
            self._train(federation, strategy, progress, server_round, tracker)
            progress.server_round = server_round
            if server_round % self.evaluate_every == 0 or server_round == self.rounds:
                self._track_best(federation, strategy, progress, tracker)
        if not progress.accepted:
            raise RunError("no reply could be used in any round, so nothing was learnt; run.log says why.")
        if self.personal:
            progress.personal = federation.personal(progress.accepted)
        for warning in progress.warnings():
            tracker.note(warning)
        return progress

    def _train(
        self, federation: Federation, strategy: Strategy, progress: Progress, server_round: int, tracker: RoundLog
    ) -> None:
        chosen = self.sampling.train(server_round)
        messages = [
            address(message, progress.accepted.get(federation.partition_of(message), 0), "train")
            for message in strategy.configure_train(
                server_round, progress.arrays, ConfigRecord(), federation.view(chosen)
            )
        ]
        down = payload_bytes(message.content for message in messages)
        started = time.perf_counter()
        replies = federation.ask(messages)
        seconds = time.perf_counter() - started
        updates = replies.updates
        for partition, reason in replies.dropped.items():
            tracker.note(f"round {server_round}: reply of client {partition} not used: {reason}")
        up = payload_bytes(reply.content for reply in replies.messages)
        started = time.perf_counter()
        if len(updates) >= self.min_replies:
            arrays, _ = strategy.aggregate_train(server_round, replies.messages)
            progress.arrays = progress.arrays if arrays is None else arrays
            progress.accepted |= {update.partition: server_round for update in updates}
        else:
            tracker.note(f"round {server_round} is void: {len(updates)} usable replies, {self.min_replies} needed")
        progress.seconds["aggregate"] += time.perf_counter() - started
        progress.seconds["train"] += seconds
        progress.bytes_down += down
        progress.bytes_up += up
        images = sum(update.num_examples for update in updates) * self.passes
        progress.images += images
        progress.train = _mean_metrics(updates)
        tracker.log(
            {
                "round": server_round,
                "phase": "train",
                **progress.train,
                "images": images,
                "images_per_second": images / seconds if seconds > 0 else None,
                "seconds": seconds,
                "bytes_up": up,
                "bytes_down": down,
                "clients": len(chosen),
                "replies": len(updates),
                "dropped": len(chosen) - len(updates),
            }
        )
        tracker.log_clients(
            [
                {
                    "round": server_round,
                    "phase": "train",
                    "partition": u.partition,
                    "images": u.num_examples,
                    **u.metrics,
                }
                for u in updates
            ]
        )

    def _track_best(self, federation: Federation, strategy: Strategy, progress: Progress, tracker: RoundLog) -> None:
        """Evaluate on validation; on test only if that was better than before, or the run is at its end."""
        validation = self._evaluate(federation, strategy, progress, "validation", tracker)
        score = validation.accuracy["mean"] if self.best_by == "accuracy" else -validation.nll
        last = progress.server_round == self.rounds
        if score <= progress.best_validation and not last:
            return
        temperature = fit_temperature(validation.pooled.probabilities, validation.labels) if self.temperature else None
        test = self._evaluate(federation, strategy, progress, "test", tracker, temperature=temperature)
        if self.held_out:
            outside = self._evaluate(federation, strategy, progress, "held_out", tracker, inside=test)
            test = replace(test, outside=outside)
        if score > progress.best_validation:
            progress.best, progress.best_validation, progress.best_train = test, score, progress.train
        if last:
            progress.final = test
        for steps in self.adapt_steps if last and self.sampling.newcomers else ():
            progress.newcomers[steps] = self._evaluate(federation, strategy, progress, "test", tracker, adapt=steps)

    def _evaluate(
        self,
        federation: Federation,
        strategy: Strategy,
        progress: Progress,
        split: str,
        tracker: RoundLog,
        *,
        temperature: float | None = None,
        inside: Evaluation | None = None,
        adapt: int | None = None,
    ) -> Evaluation:
        """Ask clients for predictions.

        Args:
            federation: whom to ask: those that are evaluated in any round, or the new ones if they are to adapt.
            strategy: makes the messages.
            progress: the parameters to evaluate.
            split: the images.
            tracker: is told.
            temperature: at which the predictions are looked at besides.
            inside: the evaluation that held-out images are compared with.
            adapt: steps that new clients train before.
        """
        started = time.perf_counter()
        asked = federation.view(self.sampling.evaluated if adapt is None else self.sampling.newcomers)
        phase = split if adapt is None else f"new_clients_{adapt}"
        extra = self._strangers_share(federation, progress.accepted) if self.personal else {}
        messages = []
        for message in strategy.configure_evaluate(progress.server_round, progress.arrays, ConfigRecord(), asked):
            accepted = progress.accepted.get(federation.partition_of(message), 0)
            messages.append(address(message, accepted, split, extra if accepted == 0 else None, adapt))
        replies = federation.ask(messages)
        for partition, reason in replies.dropped.items():
            tracker.note(f"round {progress.server_round}: {phase} of client {partition} not used: {reason}")
        if not replies.updates:
            raise RunError(f"no client could be evaluated on {phase} in round {progress.server_round}; see run.log.")
        evaluation = replace(Evaluation.of(progress.server_round, phase, replies.updates), temperature=temperature)
        before, after = progress.train.get("mixing_ratio_sent"), evaluation.metrics.get("mixing_ratio")
        if before and after is not None and adapt is None:
            evaluation.metrics["mixing_kept"] = after / before  # by this round's aggregation
        if inside is not None:
            evaluation = replace(evaluation, detection=detection(inside.pooled, evaluation.pooled))
        seconds = time.perf_counter() - started
        progress.seconds["evaluate"] += seconds
        tracker.log({**evaluation.row(), "seconds": seconds})
        tracker.log_clients(evaluation.client_rows())
        return evaluation

    @staticmethod
    def _strangers_share(federation: Federation, accepted: Mapping[int, int]) -> Arrays:
        """For clients that were never trained: the mean of what trained ones keep to themselves."""
        if not accepted or len(accepted) == len(federation.partitions):
            return {}
        return mean_arrays(list(federation.personal(accepted).values()))


def _steps(adapt_steps: object) -> tuple[int, ...]:
    """`evaluate.adapt_steps`, each once."""
    if not isinstance(adapt_steps, Sequence) or isinstance(adapt_steps, str):
        raise ConfigError(f"evaluate.adapt_steps={adapt_steps} is not a list; write e.g. [0,1,5].")
    return tuple(dict.fromkeys(require_whole("evaluate.adapt_steps", one, 0) for one in adapt_steps))


def _mean_metrics(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """Each metric averaged over the images of those that report it.

    Returns:
        With a mixing, also `mixing_ratio_received` of the generators that clients were sent and `mixing_ratio_sent` of
        those that they sent back: before aggregation.
    """
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for update in updates for name in update.metrics):
        pairs = [(update.metrics[name], update.num_examples) for update in updates if name in update.metrics]
        means[name] = sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
    for when in ("received", "sent"):
        if f"mixing_variance_{when}" in means:
            mixing, conditional = (means.pop(f"{kind}_variance_{when}") for kind in ("mixing", "conditional"))
            means[f"mixing_ratio_{when}"] = mixing_ratio(mixing, conditional)
    return means

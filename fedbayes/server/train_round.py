"""A round's training: messages out, usable answers in, the strategy's aggregate; tried again if too few come.

From the strategy's messages over simulated faults, clients and guard to the strategy's aggregate and the log.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import Strategy

from fedbayes.arrays import clipped, non_finite
from fedbayes.comm.messages import ARRAYS, ClientUpdate, address, from_record, payload_bytes, write_reply
from fedbayes.errors import ConfigError, StoppedError, require_number, require_whole
from fedbayes.inference.diagnostics import mixing_ratio
from fedbayes.metrics.evaluation import over_images
from fedbayes.server.federation import Federation, Replies
from fedbayes.server.sampling import Sampling
from fedbayes.server.state import Progress
from fedbayes.server.strategy_state import answer_like, counted_by, impossible, layers, snapshot, state_of
from fedbayes.server.validation import FAILED, INVALID, LATE, Refusal, form_of, misshapen
from fedbayes.simulation.faults import Fault, Faults


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
@dataclass
class _Spent:
    """What a round has taken so far, in all its attempts.

    Attributes:
        seconds: of the clients' work.
        bytes_down: sent.
        bytes_up: of the answers that came and could be read.
        refused: answers that could not be used, by kind.
        attempts: so far.
    """

    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    attempts: int = 0

    def add(self, seconds: float, sent: Sequence[Message], replies: Replies) -> None:
        """One more attempt."""
        self.seconds += seconds
        self.bytes_down += payload_bytes(message.content for message in sent)
        self.bytes_up += payload_bytes(reply.content for reply in replies.messages)
        self.refused.update(refusal.kind for refusal in replies.dropped.values())
        self.attempts += 1


@final
class Training:
    """Trains the clients of a round.

    Args:
        sampling: which clients.
        min_replies: usable replies without which a round is void.
        retries: further attempts at a void round, with the same clients.
        faults: to simulate.
        timeout: seconds that clients have; None: as long as they need. A process that works on is ended.
        passes: over a client's training images in a round, for the count of images.
        clip: longest step of a client; a longer one is scaled down to it before the strategy sees it, and clients count
            alike. None for none.
        as_sent: whether answers must have the names, shapes and types of what the server has, and not those that most
            answers have: with client-level privacy no client's answer may decide whether another's counts.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        sampling: Sampling,
        min_replies: int,
        retries: int,
        faults: Faults,
        timeout: float | None,
        passes: int,
        clip: float | None,
        as_sent: bool,
    ) -> None:
        self.clip = None if clip is None else require_number("update_clipping.max_norm", clip, 0, open_low=True)
        self.sampling, self.faults, self.passes, self.as_sent = sampling, faults, passes, as_sent
        self.min_replies = require_whole("simulation.min_replies", min_replies, 1)
        self.retries = require_whole("simulation.retries", retries, 0)
        self.timeout = None if timeout is None else require_number("simulation.timeout", timeout, 0, open_low=True)
        if sampling.per_round < self.min_replies:
            raise ConfigError(
                f"simulation.min_replies={self.min_replies} can never be reached: a round samples {sampling.per_round} "
                f"of {sampling.clients} clients; lower it or raise participation."
            )

    def round(
        self, federation: Federation, strategy: Strategy, progress: Progress, server_round: int, log: RoundLog
    ) -> None:
        """Train, and take the answers into `progress`.

        Raises:
            StoppedError: if too few answers can be used, or what the strategy makes of them cannot, in every attempt;
                strategy and parameters are as they were.
        """
        chosen = self.sampling.train(server_round)
        spent = _Spent()
        while True:
            sent, faults = self._messages(federation, strategy, progress, chosen, server_round, spent.attempts)
            started = time.perf_counter()
            replies = self._answers(federation, strategy, progress, sent, faults)
            spent.add(time.perf_counter() - started, sent, replies)
            for partition, refusal in replies.dropped.items():
                log.note(f"round {server_round}: reply of client {partition} not used: {refusal.reason}")
            void: str | None = f"{len(replies.updates)} usable replies, {self.min_replies} needed"
            if len(replies.updates) >= self.min_replies:
                self._clip(federation, strategy, sent, replies)
                void = self._aggregate(federation, strategy, progress, server_round, replies)
            if void is None:
                break
            if spent.attempts > self.retries:
                raise StoppedError(
                    f"round {server_round} is void after {spent.attempts} attempts: {void}; run.log names each "
                    "client's reason. Raise simulation.retries, lower simulation.min_replies, or mend the clients."
                )
            log.note(f"round {server_round} is void: {void}; attempt {spent.attempts + 1} of {self.retries + 1}")
        waited = {"virtual_seconds": self._virtual(faults)} if self.faults.any else {}
        self._tell(progress, server_round, len(chosen), replies.updates, spent, waited, log)

    def _tell(
        self,
        progress: Progress,
        server_round: int,
        clients: int,
        updates: Sequence[ClientUpdate],
        spent: "_Spent",
        waited: Mapping[str, float],
        log: RoundLog,
    ) -> None:
        """Count what the round took, and log it."""
        images = sum(update.num_examples for update in updates) * self.passes
        progress.accepted |= {update.partition: server_round for update in updates}
        progress.seconds["train"] += spent.seconds
        progress.bytes_down += spent.bytes_down
        progress.bytes_up += spent.bytes_up
        progress.images += images
        progress.train = mean_metrics(updates)
        log.log(
            {
                **progress.train,
                "round": server_round,
                "phase": "train",
                "images": images,
                "images_per_second": images / spent.seconds if spent.seconds > 0 else None,
                "seconds": spent.seconds,
                "bytes_up": spent.bytes_up,
                "bytes_down": spent.bytes_down,
                "clients": clients,
                "replies": len(updates),
                "dropped": clients - len(updates),
                **{f"dropped_{kind}": spent.refused[kind] for kind in (LATE, FAILED, INVALID)},
                "attempts": spent.attempts,
                **waited,
            }
        )
        log.log_clients(
            [
                {
                    **update.metrics,
                    "round": server_round,
                    "phase": "train",
                    "partition": update.partition,
                    "images": update.num_examples,
                }
                for update in updates
            ]
        )

    def _messages(
        self,
        federation: Federation,
        strategy: Strategy,
        progress: Progress,
        chosen: Sequence[int],
        server_round: int,
        attempt: int,
    ) -> tuple[list[Message], dict[int, Fault]]:
        """What is sent to those that can be reached, and what happens to each client."""
        sent, faults = [], {}
        for message in strategy.configure_train(server_round, progress.arrays, ConfigRecord(), federation.view(chosen)):
            partition = federation.partition_of(message)
            fault = faults[partition] = self.faults.of(server_round, attempt, partition)
            if fault.kind != "drop":
                accepted = progress.accepted.get(partition, 0)
                sent.append(address(message, accepted, "train", fault=fault.kind, seconds=self.timeout))
        return sent, faults

    def _answers(
        self,
        federation: Federation,
        strategy: Strategy,
        progress: Progress,
        sent: Sequence[Message],
        faults: Mapping[int, Fault],
    ) -> Replies:
        """The usable answers; those of unreachable and of slow clients are missing as if nobody had simulated it."""
        replies = federation.ask(sent, "train")
        absent = {one: Refusal(LATE, "no answer in time (simulated)") for one in faults if self._late(faults[one])}
        replies = replies.without(absent)
        if self.as_sent:
            progress.form = form_of(from_record(progress.arrays))
        refused, progress.form = misshapen(
            replies.updates, progress.form, lambda: answer_like(strategy, from_record(progress.arrays))
        )
        replies = replies.without(refused)
        doubts = {update.partition: impossible(strategy, update) for update in replies.updates}
        return replies.without({one: Refusal(INVALID, what) for one, what in doubts.items() if what is not None})

    def _clip(self, federation: Federation, strategy: Strategy, sent: Sequence[Message], replies: Replies) -> None:
        """Scale down what walked too far from what it was sent; what is counted took no step."""
        if self.clip is None:
            return
        counted = counted_by(strategy)
        starts = {federation.partition_of(message): message.content.array_records[ARRAYS] for message in sent}
        for message, update in zip(replies.messages, replies.updates, strict=True):
            start = from_record(starts[update.partition])
            learnt = {name: array for name, array in update.arrays.items() if name in start and name not in counted}
            arrays = {**update.arrays, **clipped(start, learnt, self.clip)}
            # Alike: how many images a client has, it says itself.
            message.content = write_reply(replace(update, arrays=arrays, num_examples=1))

    def _aggregate(
        self, federation: Federation, strategy: Strategy, progress: Progress, server_round: int, replies: Replies
    ) -> str | None:
        """Take into `progress` what the strategy makes of the answers.

        Returns:
            None, or why it cannot be used: then everything is as it was.
        """
        started = time.perf_counter()
        undo = snapshot(strategy)
        try:
            arrays, _ = strategy.aggregate_train(server_round, replies.messages)
            wrong = None if arrays is None else federation.guard.excess(from_record(arrays))
            # Single numbers may well be infinite, such as the lowest loss so far.
            spoilt = non_finite({name: one for name, one in state_of(strategy).items() if one.ndim})
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            wrong, spoilt = str(error), None
        progress.seconds["aggregate"] += time.perf_counter() - started
        if wrong is None and spoilt is None:
            progress.arrays = progress.arrays if arrays is None else arrays
            return None
        undo()
        what = wrong or f"what it remembers as {spoilt} is not finite"
        return f"the aggregate of {type(layers(strategy)[-1]).__name__} cannot be used: {what}"

    def _late(self, fault: Fault) -> bool:
        return fault.kind == "drop" or (self.faults.deadline is not None and fault.delay > self.faults.deadline)

    def _virtual(self, faults: Mapping[int, Fault]) -> float:
        """Virtual seconds that the server waited for the slowest."""
        waits = [fault.delay for fault in faults.values() if not self._late(fault)]
        late = any(self._late(fault) for fault in faults.values())
        return max([*waits, self.faults.deadline or 0.0 if late else 0.0])


def mean_metrics(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """Metrics of training over images.

    Returns:
        With a mixing, also `mixing_ratio_received` of the generators that clients were sent and `mixing_ratio_sent` of
        those that they sent back: before aggregation.
    """
    means = over_images(updates)
    for when in ("received", "sent"):
        if {f"mixing_variance_{when}", f"conditional_variance_{when}"} <= means.keys():
            mixing, conditional = (means.pop(f"{kind}_variance_{when}") for kind in ("mixing", "conditional"))
            means[f"mixing_ratio_{when}"] = mixing_ratio(mixing, conditional)
    return means

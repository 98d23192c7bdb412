"""A round's training: requests out, valid replies in, the strategy's aggregate; tried again if too few come."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from flwr.app import RecordDict
from flwr.app.exception import AppExitException

from fedbayes.arrays import Arrays, clipped, non_finite
from fedbayes.comm.messages import ClientUpdate, payload_bytes
from fedbayes.errors import ConfigError, StoppedError, require_number, require_whole
from fedbayes.inference.diagnostics import mixing_ratio
from fedbayes.metrics.evaluation import over_images
from fedbayes.server.federation import Replies
from fedbayes.server.sampling import Sampling
from fedbayes.server.session import Session
from fedbayes.server.strategy import ServerStrategy, snapshot
from fedbayes.server.validation import FAILED, INVALID, LATE, Rejection, form_problem
from fedbayes.simulation.faults import Fault, Faults


@final
@dataclass
class _Cost:
    """What a round has taken so far, in all its attempts: clients' seconds, bytes, and rejected replies by kind."""

    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    attempts: int = 0

    def add(self, seconds: float, contents: Mapping[int, RecordDict], replies: Replies) -> None:
        """Add one more attempt."""
        self.seconds += seconds
        self.bytes_down += payload_bytes(contents.values())
        self.bytes_up += sum(update.payload for update in replies.updates)
        self.rejected.update(rejection.kind for rejection in replies.rejected.values())
        self.attempts += 1


@final
@dataclass(kw_only=True, eq=False)
class Training:
    """Trains the clients of a round; `conf/config.yaml` and `conf/simulation` explain the settings."""

    sampling: Sampling
    min_replies: int
    retries: int
    faults: Faults
    timeout: float | None
    passes: int
    max_update_norm: float | None

    def __post_init__(self) -> None:
        require_whole("simulation.min_replies", self.min_replies, 1)
        require_whole("simulation.retries", self.retries, 0)
        if self.max_update_norm is not None:
            require_number("update_clipping.max_norm", self.max_update_norm, 0, open_low=True)
        if self.timeout is not None:
            self.timeout = require_number("simulation.timeout", self.timeout, 0, open_low=True)
        if self.sampling.per_round < self.min_replies:
            raise ConfigError(
                f"simulation.min_replies={self.min_replies} is more than the {self.sampling.per_round} clients of a "
                "round; lower it or raise participation."
            )

    def round(self, session: Session, server_round: int) -> None:
        """Train, and take the replies into strategy and progress.

        Raises:
            StoppedError: if the round fails in every attempt: too few replies are valid, or the aggregate is not.
                Strategy and parameters are as they were.
        """
        strategy, uplinks, cost = session.strategy, session.uplinks, _Cost()
        partitions = self.sampling.train(server_round, uplinks.invitations(server_round) if uplinks else None)
        while True:
            faults = {
                partition: (uplinks and uplinks.fault(server_round, cost.attempts, partition))
                or self.faults.of(server_round, cost.attempts, partition)
                for partition in partitions
            }
            requests = strategy.requests(server_round, partitions, "train")
            reachable = {
                partition: arrays for partition, arrays in requests.items() if faults[partition].kind != "drop"
            }
            contents = session.messages(reachable, server_round, "train", self.timeout, faults=faults)
            started = time.perf_counter()
            replies = self._replies(session, contents, faults)
            cost.add(time.perf_counter() - started, contents, replies)
            for note in replies.notes("training reply"):
                session.log.note(f"round {server_round}: {note}")
            failure = self._failure(replies)
            if failure is None:
                updates = [self._clipped(update, requests[update.partition], strategy) for update in replies.updates]
                failure = _aggregate(session, updates)
            if failure is None:
                break
            if cost.attempts > self.retries:
                raise StoppedError(
                    f"round {server_round} failed in {cost.attempts} attempts: {failure}. run.log names each client's "
                    "reason; correct it, raise simulation.retries, or lower simulation.min_replies."
                )
            attempt = f"attempt {cost.attempts + 1} of {self.retries + 1}"
            session.log.note(f"round {server_round} failed: {failure}; {attempt}")
        self._report(session, server_round, faults, replies.updates, cost)

    def _report(
        self,
        session: Session,
        server_round: int,
        faults: Mapping[int, Fault],
        updates: Sequence[ClientUpdate],
        cost: _Cost,
    ) -> None:
        """Count what the round took, and log it."""
        progress, clients = session.progress, len(faults)
        images = sum(update.num_examples for update in updates) * self.passes
        for update in updates:
            progress.accept(update, server_round)
        progress.seconds["train"] += cost.seconds
        progress.bytes_down += cost.bytes_down
        progress.bytes_up += cost.bytes_up
        progress.images += images
        progress.train = mean_metrics(updates)
        place = {"round": server_round, "phase": "train"}
        session.log.log(
            {
                **progress.train,
                **place,
                "images": images,
                "images_per_second": images / cost.seconds if cost.seconds > 0 else None,
                "seconds": cost.seconds,
                "bytes_up": cost.bytes_up,
                "bytes_down": cost.bytes_down,
                "clients": clients,
                "replies": len(updates),
                "dropped": clients - len(updates),
                **{f"dropped_{kind}": cost.rejected[kind] for kind in (LATE, FAILED, INVALID)},
                "attempts": cost.attempts,
                **({"virtual_seconds": self._virtual(faults)} if self.faults.any else {}),
                **session.strategy.facts(),
                **(session.uplinks.facts(server_round) if session.uplinks else {}),
            }
        )
        session.log.log_clients(
            [{**u.metrics, **place, "partition": u.partition, "images": u.num_examples} for u in updates]
        )

    def _replies(self, session: Session, contents: Mapping[int, RecordDict], faults: Mapping[int, Fault]) -> Replies:
        """Return the valid replies; those of unreachable and of slow clients are missing."""
        late = Rejection(LATE, "no reply in time (simulated)")
        replies = session.federation.ask(contents, "train", "train")
        replies = replies.without({partition: late for partition, fault in faults.items() if self._is_late(fault)})
        expected = {p: session.strategy.expected_from(p, session.expected) for p in contents}
        replies = replies.checked(lambda update: form_problem(update, expected[update.partition]))
        ordered = [replace(u, arrays={n: u.arrays[n] for n in expected[u.partition]}) for u in replies.updates]
        return Replies(ordered, replies.rejected).checked(session.strategy.rejection_reason)

    def _failure(self, replies: Replies) -> str | None:
        """Say why too few replies are valid; None if there are enough."""
        count, needed = len(replies.updates), self.min_replies
        if count >= needed:
            return None
        first = next(iter(replies.rejected.values())).reason if replies.rejected else "nobody was asked"
        return f"{count} valid replies of simulation.min_replies={needed}; first reason: {first}"

    def _clipped(self, update: ClientUpdate, start: Arrays, strategy: ServerStrategy) -> ClientUpdate:
        """Scale down a step that is too long; arrays that are counted took no step."""
        if self.max_update_norm is None:
            return update
        learnt = {n: array for n, array in update.arrays.items() if n in start and n not in strategy.counted}
        # Clients count alike, since each states its number of images itself.
        return replace(update, arrays={**update.arrays, **clipped(start, learnt, self.max_update_norm)}, num_examples=1)

    def _is_late(self, fault: Fault) -> bool:
        return fault.kind == "drop" or (self.faults.deadline is not None and fault.delay > self.faults.deadline)

    def _virtual(self, faults: Mapping[int, Fault]) -> float:
        """Return the virtual seconds that the server waited for the slowest client."""
        deadline = self.faults.deadline or 0.0
        return max(0.0, *(deadline if self._is_late(fault) else fault.delay for fault in faults.values()))


def _aggregate(session: Session, updates: Sequence[ClientUpdate]) -> str | None:
    """Aggregate the replies; return None, or why the result cannot be used: then everything is as it was."""
    started, strategy = time.perf_counter(), session.strategy
    undo = snapshot(strategy)
    try:
        strategy.aggregate(updates)
        problem = session.federation.validator.excess(strategy.shared)
        # Single numbers may well be infinite, such as the lowest loss so far.
        name = non_finite({name: array for name, array in strategy.state().items() if array.ndim})
        if problem is None and name is not None:
            problem = f"its state {name} is not finite"
    except (ArithmeticError, np.linalg.LinAlgError, AppExitException) as error:
        problem = str(error)
    if problem is not None:
        undo()
    session.progress.arrays = strategy.shared
    session.progress.seconds["aggregate"] += time.perf_counter() - started
    return None if problem is None else f"the aggregate of {strategy.name} cannot be used: {problem}"


def mean_metrics(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """Return metrics of training, averaged over images.

    With a mixing, `mixing_ratio_received` is of the generators that clients were sent and `mixing_ratio_sent` of those
    that they sent back, before aggregation.
    """
    means = over_images(updates)
    for when in ("received", "sent"):
        if {f"mixing_variance_{when}", f"conditional_variance_{when}"} <= means.keys():
            mixing, conditional = (means.pop(f"{kind}_variance_{when}") for kind in ("mixing", "conditional"))
            means[f"mixing_ratio_{when}"] = mixing_ratio(mixing, conditional)
    return means

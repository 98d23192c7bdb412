"""The default engine: a Flower grid whose clients run here, in fused cohorts, on one shared backbone.

Any message-API strategy of Flower runs on it unchanged. This file alone touches what Flower keeps private: the process
identity that `Message(...)` asks for, the id of a message (which has no setter; Flower's own grid writes it the same
way), and the type of `Grid.run`. `tests/simulation/test_in_process.py` fails loudly if a new Flower moves them.
"""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, final

import torch
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedbayes.errors import ConfigError, require_choice, require_number, require_whole
from fedbayes.messages import (
    ClientUpdate,
    keep_personal,
    non_finite,
    read_request,
    write_partition,
    write_personal,
    write_reply,
)
from fedbayes.simulation.client import QUERY_PERSONAL, ClientFactory, CohortClient

log = logging.getLogger("fedbayes")
Result = TypeVar("Result")
FIRST_NODE = 1000  # Flower reserves node ids 0 and 1


def available_cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@final
class InProcess:
    """Runs a federation in this process.

    Args:
        cohort: clients trained side by side; null for all of a round.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        threads: of torch on the CPU; null for as many as this process may use.
        timeout: seconds for one round's training, or evaluation; clients not reached by then do not answer; null: none.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(self, *, cohort: int | None, device: str, threads: int | None, timeout: float | None) -> None:
        self.cohort = None if cohort is None else require_whole("simulation.cohort", cohort, 1)
        require_choice("simulation.device", device, ("auto", "cpu", "cuda"))
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("simulation.device=cuda finds no GPU here; choose one of auto, cpu.")
        self.device = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
        self.threads = available_cores() if threads is None else require_whole("simulation.threads", threads, 1)
        self.timeout = None if timeout is None else require_number("simulation.timeout", timeout, 0, open_low=True)

    def prepare(self) -> None:
        """Set this process's number of torch threads; results depend on it in the last bit."""
        torch.set_num_threads(self.threads)

    def run(self, *, client_factory: ClientFactory, clients: int, serve: Callable[[Grid], Result]) -> Result:
        """Build the client once and hand the grid to the round loop.

        Args:
            client_factory: makes the object that trains every cohort.
            clients: partitions of the federation.
            serve: the server's side, from first round to last.
        """
        return serve(InProcessGrid(client_factory(), clients, self.cohort, self.timeout))


@final
class InProcessGrid(Grid):
    """Answers messages by calling a cohort client.

    Args:
        client: answers them.
        clients: partitions of the federation; partition p is node `FIRST_NODE + p`.
        cohort: messages answered together; None for all that are sent together.
        timeout: see `InProcess`.
    """

    def __init__(self, client: CohortClient, clients: int, cohort: int | None, timeout: float | None) -> None:
        self._client, self._clients, self._cohort, self._timeout = client, clients, cohort, timeout
        self._run = Run.create_empty(1)
        self._sent = 0
        self._replies: dict[str, Message] = {}
        self.states: dict[int, RecordDict] = {}
        """What clients keep, by partition; only of those that have taken part."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Take over another run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """Description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """One node for each partition, ascending."""
        return range(FIRST_NODE, FIRST_NODE + self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer messages now; the answers wait to be pulled."""
        ids = []
        for message, reply in self._answer(list(messages), timeout=None):
            ids.append(message.metadata.message_id)
            self._replies[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out waiting answers, each once."""
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer messages cohort by cohort, in the order sent."""
        limit = timeout if timeout is not None else self._timeout
        return [reply for _, reply in self._answer(list(messages), limit)]

    def _answer(self, messages: list[Message], timeout: float | None) -> list[tuple[Message, Message]]:
        end = None if timeout is None else time.monotonic() + timeout
        answers: list[tuple[Message, Message]] = []
        size = self._cohort or max(1, len(messages))
        for first in range(0, len(messages), size):
            if end is not None and time.monotonic() > end:
                break  # like Flower's engines: late clients simply do not answer
            cohort = messages[first : first + size]
            for message in cohort:
                self._sent += 1
                message.metadata.__dict__["_message_id"] = f"message-{self._sent}"
            answers += zip(cohort, self._answer_cohort(cohort), strict=True)
        return answers

    def _answer_cohort(self, cohort: Sequence[Message]) -> list[Message]:
        """Answer together; if that fails, one by one, so that only the guilty client's answer is an error."""
        try:
            contents = self._handle(cohort)
        except Exception as error:
            if len(cohort) > 1:
                return [self._answer_cohort([message])[0] for message in cohort]
            log.debug("client failed", exc_info=True)
            reason = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            return [Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=cohort[0])]
        return [Message(content, reply_to=message) for content, message in zip(contents, cohort, strict=True)]

    def _handle(self, cohort: Sequence[Message]) -> Sequence[RecordDict | Error]:
        kinds = {message.metadata.message_type for message in cohort}
        kind = kinds.pop() if len(kinds) == 1 else "mixed"
        partitions = [message.metadata.dst_node_id - FIRST_NODE for message in cohort]
        if any(not 0 <= partition < self._clients for partition in partitions):
            raise ValueError(f"no such node: partitions {partitions} of {self._clients}")
        contents = [message.content for message in cohort]
        if kind == MessageType.QUERY:
            return [write_partition(partition) for partition in partitions]
        states = [self.states.get(partition, RecordDict()) for partition in partitions]
        if kind == QUERY_PERSONAL:
            return [write_personal(state, content) for state, content in zip(states, contents, strict=True)]
        if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
            raise ValueError(f"cannot answer messages of type {kind}")
        requests = [
            read_request(content, partition, "train" if kind == MessageType.TRAIN else "evaluate", state)
            for content, partition, state in zip(contents, partitions, states, strict=True)
        ]
        updates = self._client.train(requests) if kind == MessageType.TRAIN else self._client.evaluate(requests)
        return [
            self._settled(update, content) if kind == MessageType.TRAIN else write_reply(update)
            for update, content in zip(updates, contents, strict=True)
        ]

    def _settled(self, update: ClientUpdate, content: RecordDict) -> RecordDict | Error:
        """The reply, once personal parameters are kept; all of the cohort has succeeded.

        The server never sees personal parameters, so whether they are finite is checked here.
        """
        bad = non_finite(update.personal)
        if bad is not None:
            return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{bad} is not finite")
        if update.personal:
            keep_personal(self.states.setdefault(update.partition, RecordDict()), update, content)
        return write_reply(update)

"""The default engine: a Flower grid whose clients run here, in fused cohorts, on one shared backbone.

Any message-API strategy of Flower runs on it unchanged.
"""

import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TypeVar, final

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedbayes.errors import require_bool, require_whole
from fedbayes.simulation.client import ClientFactory, ClientGrid, CohortClient, answer
from fedbayes.simulation.flower_private import FIRST_NODE, Run, claim_identity, empty_run, stamp
from fedbayes.simulation.hardware import available_cores, choose_device, choose_threads, settle

Result = TypeVar("Result")


@final
class InProcess:
    """Runs a federation in this process.

    Args:
        cohort: clients trained side by side; null for all of a round.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        threads: of torch on the CPU; null for as many as this process may use.
        debug: whether the first exception of a client ends the run with its traceback, on one thread.
    """

    def __init__(self, *, cohort: int | None, device: str, threads: int | None, debug: bool = False) -> None:
        self.cohort = None if cohort is None else require_whole("simulation.cohort", cohort, 1)
        self.device = choose_device(device)
        self.debug = require_bool("debug", debug)
        self.threads = 1 if debug else choose_threads(threads, available_cores())

    def prepare(self) -> None:
        """Settle this process; results depend on the number of threads in the last bit."""
        settle(self.threads)

    def run(self, *, client_factory: ClientFactory, clients: int, serve: Callable[[ClientGrid], Result]) -> Result:
        """Build the client once and hand the grid to `serve`, the server's side from first round to last."""
        client = client_factory()
        client.prepare()
        return serve(InProcessGrid(client, clients, self.cohort, debug=self.debug))


@final
class InProcessGrid(Grid):
    """Answers messages by calling a cohort client; partition p is node `FIRST_NODE + p`.

    Args:
        client: answers them.
        clients: partitions of the federation.
        cohort: messages answered together; None for all that are sent together.
        debug: whether exceptions of clients are raised here.
    """

    def __init__(self, client: CohortClient, clients: int, cohort: int | None = None, *, debug: bool = False) -> None:
        self._client, self._clients, self._cohort, self._debug = client, clients, cohort, debug
        self._run = empty_run()
        self._sent = 0
        self._replies: dict[str, Message] = {}
        self.states: dict[int, RecordDict] = {}
        """Personal parameters of clients, by partition; only of those that have some."""
        claim_identity()

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
        """Make a message; Flower's older way."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """One node for each partition, ascending."""
        return range(FIRST_NODE, FIRST_NODE + self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer messages now; the answers wait to be pulled."""
        replies = {message.metadata.message_id: reply for message, reply in self._answer(list(messages), None)}
        self._replies |= replies
        return list(replies)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out waiting answers, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer messages cohort by cohort, in the order sent."""
        return [reply for _, reply in self._answer(list(messages), timeout)]

    def _answer(self, messages: list[Message], timeout: float | None) -> list[tuple[Message, Message]]:
        end = None if timeout is None else time.monotonic() + timeout
        answers: list[tuple[Message, Message]] = []
        for kind, same in groupby(messages, key=lambda message: message.metadata.message_type):
            alike = list(same)
            size = self._cohort or len(alike)
            for first in range(0, len(alike), size):
                if end is not None and time.monotonic() > end:
                    return answers  # like Flower's engines: late clients simply do not answer
                cohort = alike[first : first + size]
                replies = zip(self._answer_cohort(kind, cohort), cohort, strict=True)
                answers += [(message, Message(content, reply_to=message)) for content, message in replies]
        return answers

    def _answer_cohort(self, kind: str, cohort: list[Message]) -> list[RecordDict | Error]:
        """Return the content of each answer."""
        for message in cohort:
            self._sent += 1
            stamp(message, f"message-{self._sent}")
        partitions = [message.metadata.dst_node_id - FIRST_NODE for message in cohort]
        states = [self.states.get(partition, RecordDict()) for partition in partitions]
        contents = [message.content for message in cohort]
        replies = answer(self._client, kind, partitions, contents, states, debug=self._debug)
        self.states |= {partition: state for partition, state in zip(partitions, states, strict=True) if state}
        return replies

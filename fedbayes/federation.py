"""The clients as the round loop sees them: by partition, in a fixed order, and only with answers that may be used."""

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedbayes.errors import RunError
from fedbayes.messages import (
    Arrays,
    ClientUpdate,
    ask_partition,
    ask_personal,
    non_finite,
    read_partition,
    read_personal,
    read_update,
)
from fedbayes.simulation.client import QUERY_PERSONAL
from fedbayes.simulation.sampled_grid import SampledGrid

log = logging.getLogger("fedbayes")


@final
@dataclass(frozen=True, eq=False)
class Replies:
    """What came back from a set of clients.

    Attributes:
        messages: replies that may be used, in the order of their partitions.
        updates: the same, read.
        dropped: why each other client's reply may not be used, by partition.
    """

    messages: list[Message]
    updates: list[ClientUpdate]
    dropped: dict[int, str]


@final
class Federation:
    """All clients behind a Flower grid, whose node ids are random: here they go by their partitions.

    Args:
        grid: each of its nodes is asked once whose data it holds.
        clients: how many there must be.
        patience: seconds to wait until all have come: engines start them while we already run.
        timeout: seconds that clients have to answer a set of messages; None: for ever.

    Raises:
        RunError: if they do not come, come with other partitions than 0, 1, ..., or cannot start.
    """

    def __init__(self, grid: Grid, clients: int, *, patience: float = 60.0, timeout: float | None = None) -> None:
        self._grid, self._timeout = grid, timeout
        questions = [Message(ask_partition(), node, MessageType.QUERY) for node in _present(grid, clients, patience)]
        answers: dict[int, int] = {}
        for reply in grid.send_and_receive(questions):
            if reply.has_error():
                raise RunError(f"a client cannot start: {_first_line(reply)}.")
            answers[read_partition(reply.content)] = reply.metadata.src_node_id
        self._nodes = dict(sorted(answers.items()))
        if self.partitions != list(range(clients)):
            raise RunError(f"the federation offers partitions {self.partitions} for clients={clients}; start as many.")
        self._partitions = {node: partition for partition, node in self._nodes.items()}

    @property
    def partitions(self) -> list[int]:
        """Of all clients, ascending."""
        return list(self._nodes)

    def view(self, partitions: Sequence[int]) -> SampledGrid:
        """The grid with these clients alone, for a strategy to address."""
        return SampledGrid(self._grid, {self._nodes[partition]: partition for partition in partitions})

    def partition_of(self, message: Message) -> int:
        """Whom a message is for."""
        return self._partitions[message.metadata.dst_node_id]

    def ask(self, messages: Iterable[Message]) -> Replies:
        """Send messages and sort the answers: float sums depend on their order, and engines answer as they finish."""
        sent = list(messages)
        answered = {self._partitions[r.metadata.src_node_id]: r for r in self._send(sent)}
        replies = Replies([], [], {})
        for partition in sorted(map(self.partition_of, sent)):
            checked = _check(partition, answered.get(partition))
            if isinstance(checked, str):
                replies.dropped[partition] = checked
            else:
                replies.messages.append(answered[partition])
                replies.updates.append(checked)
        return replies

    def personal(self, accepted: Mapping[int, int]) -> dict[int, Arrays]:
        """What each trained client keeps to itself, by partition; a simulation's privilege.

        Args:
            accepted: by partition of every trained client, the last round whose reply was used.
        """
        questions = [Message(ask_personal(accepted[one]), self._nodes[one], QUERY_PERSONAL) for one in sorted(accepted)]
        found = {
            self._partitions[reply.metadata.src_node_id]: read_personal(reply.content)
            for reply in self._send(questions)
            if not reply.has_error()
        }
        return {partition: arrays for partition, arrays in sorted(found.items()) if arrays}

    def _send(self, messages: Sequence[Message]) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=self._timeout)


def _present(grid: Grid, clients: int, patience: float) -> list[int]:
    """The nodes of a grid, once there are as many as clients."""
    end = time.monotonic() + patience
    while len(nodes := list(grid.get_node_ids())) < clients:
        if time.monotonic() > end:
            raise RunError(
                f"{len(nodes)} of clients={clients} came within simulation.patience={patience:g} seconds; start the "
                "others, or lower clients."
            )
        time.sleep(0.02)
    return nodes


def _first_line(reply: Message) -> str:
    """Why a client did not answer, shortly."""
    if not reply.error.reason:
        return "error without a reason"
    line = reply.error.reason.splitlines()[0]
    flowers = re.match(r"<class '(?:\w+\.)*(\w+)'>:<['\"](.*)", line)  # how Flower tells of a lost worker
    return line if flowers is None else f"{flowers[1]}: {flowers[2]}".rstrip(">'\"")


def _check(partition: int, reply: Message | None) -> ClientUpdate | str:
    """The update in a reply, or why it may not be used."""
    if reply is None:
        return "no answer in time"
    if reply.has_error():
        log.info("client %d: %s", partition, reply.error.reason)
        return _first_line(reply)
    try:
        update = read_update(partition, reply.content)
    except ValueError as error:
        return str(error)
    bad = non_finite(update.arrays)
    return update if bad is None else f"{bad} is not finite"

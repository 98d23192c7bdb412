"""The clients as the round loop sees them: by partition, in a fixed order, and only with answers that may be used."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

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
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        questions = [Message(ask_partition(), node, MessageType.QUERY) for node in grid.get_node_ids()]
        answers = {
            read_partition(reply.content): reply.metadata.src_node_id for reply in grid.send_and_receive(questions)
        }
        self._nodes = dict(sorted(answers.items()))
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
        answered = {self._partitions[r.metadata.src_node_id]: r for r in self._grid.send_and_receive(sent)}
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
            for reply in self._grid.send_and_receive(questions)
            if not reply.has_error()
        }
        return {partition: arrays for partition, arrays in sorted(found.items()) if arrays}


def _check(partition: int, reply: Message | None) -> ClientUpdate | str:
    """The update in a reply, or why it may not be used."""
    if reply is None:
        return "no answer in time"
    if reply.has_error():
        log.info("client %d: %s", partition, reply.error.reason)
        return reply.error.reason.splitlines()[0] if reply.error.reason else "error without a reason"
    try:
        update = read_update(partition, reply.content)
    except ValueError as error:
        return str(error)
    bad = non_finite(update.arrays)
    return update if bad is None else f"{bad} is not finite"

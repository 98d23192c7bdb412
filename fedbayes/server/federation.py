"""The clients as the round loop sees them: by partition, in a fixed order, and only with answers that may be used."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate, ask_partition, ask_personal, give_personal, read_partition
from fedbayes.errors import RunError
from fedbayes.server.validation import Guard, Holdings, Refusal, first_line
from fedbayes.simulation.client import QUERY_PERSONAL, QUERY_RESTORE
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
    dropped: dict[int, Refusal]

    def without(self, refused: Mapping[int, Refusal]) -> "Replies":
        """The same, with some more refused."""
        kept = [i for i, update in enumerate(self.updates) if update.partition not in refused]
        dropped = dict(sorted({**self.dropped, **refused}.items()))
        return Replies([self.messages[i] for i in kept], [self.updates[i] for i in kept], dropped)


@final
class Federation:
    """All clients behind a Flower grid, whose node ids are random: here they go by their partitions.

    Args:
        grid: each of its nodes is asked once whose data it holds.
        clients: how many there must be.
        guard: says which answers may be used.
        holdings: what is known of their images beforehand; None for nothing.
        patience: seconds to wait until all have come: engines start them while we already run. Nodes that say nothing
            for as long are named in the log, and only waited for while a partition is missing.
        timeout: seconds that clients have to answer a set of messages; None: for ever.

    Raises:
        RunError: if they do not come, come with other partitions than 0, 1, ..., or one of them twice, or cannot start.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        guard: Guard,
        holdings: Holdings | None = None,
        *,
        patience: float = 60.0,
        timeout: float | None = None,
    ) -> None:
        self.guard, self.holdings = guard, holdings
        self._grid, self._timeout = grid, timeout
        answers = _holders(grid, _present(grid, clients, patience), clients, patience)
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

    def images_of(self, partition: int, split: str) -> int | None:
        """How many images of a split a client has; None where that is not known."""
        return None if self.holdings is None else self.holdings.of(split, partition)

    def ask(self, messages: Iterable[Message], split: str) -> Replies:
        """Send messages and sort the answers: float sums depend on their order, and engines answer as they finish.

        Args:
            messages: to any of the clients.
            split: the images that they are asked about.
        """
        sent = list(messages)
        answered = {self._partitions[r.metadata.src_node_id]: r for r in self._send(sent)}
        replies = Replies([], [], {})
        for partition in sorted(map(self.partition_of, sent)):
            images = self.images_of(partition, split)
            checked = self.guard.read(partition, answered.get(partition), images)
            if isinstance(checked, Refusal):
                replies.dropped[partition] = checked
            else:
                replies.messages.append(answered[partition])
                replies.updates.append(checked)
        return replies

    def personal(self, accepted: Mapping[int, int]) -> tuple[dict[int, Arrays], dict[int, Refusal]]:
        """What each trained client keeps to itself, by partition; a simulation's privilege.

        Args:
            accepted: by partition of the clients to ask, the last round whose reply was used.

        Returns:
            By partition of those that handed it out; empty for a client that keeps nothing. And why the answers of
            others are not used.
        """
        questions = [Message(ask_personal(accepted[one]), self._nodes[one], QUERY_PERSONAL) for one in sorted(accepted)]
        read = {self._partitions[r.metadata.src_node_id]: self.guard.read_personal(r) for r in self._send(questions)}
        found = {one: arrays for one, arrays in sorted(read.items()) if not isinstance(arrays, Refusal)}
        return found, {one: refusal for one, refusal in sorted(read.items()) if isinstance(refusal, Refusal)}

    def restore(self, personal: Mapping[int, Arrays], accepted: Mapping[int, int]) -> None:
        """Give clients back what they kept before the run broke off.

        Args:
            personal: what each kept, by partition.
            accepted: see `personal`.

        Raises:
            RunError: if a client does not take it.
        """
        gifts = [
            Message(give_personal(arrays, accepted[one]), self._nodes[one], QUERY_RESTORE)
            for one, arrays in personal.items()
        ]
        taken = {self._partitions[r.metadata.src_node_id] for r in self._send(gifts) if not r.has_error()}
        if lost := sorted(personal.keys() - taken):
            raise RunError(f"clients {lost} did not take back what they had kept to themselves; try again.")

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


def _holders(grid: Grid, nodes: Sequence[int], clients: int, patience: float) -> dict[int, int]:
    """The node of each partition; nodes whose answer cannot be read are passed over.

    A node may have to read its images before it answers, so silence alone is no reason to do without its partition.
    """
    holders: dict[int, int] = {}
    silent, turn = dict.fromkeys(nodes), max(patience, 1.0)
    while silent and len(holders) < clients:
        started = time.monotonic()
        questions = [Message(ask_partition(), node, MessageType.QUERY) for node in silent]
        for reply in grid.send_and_receive(questions, timeout=turn):
            node = reply.metadata.src_node_id
            del silent[node]
            if reply.has_error():
                raise RunError(f"a client cannot start: {first_line(reply)}.")
            try:
                partition = read_partition(reply.content)
            except ValueError as error:
                log.warning("node %d is passed over: %s", node, error)
                continue
            if partition in holders:
                first, second = sorted((holders[partition], node))
                raise RunError(
                    f"nodes {first} and {second} both say that they hold partition {partition}; stop one of them, or "
                    "give it another partition-id."
                )
            holders[partition] = node
        if silent:
            log.warning("nodes %s have not said yet whose images they hold", list(silent))
        if time.monotonic() - started < turn:  # nobody is waited for any more
            break
    return holders

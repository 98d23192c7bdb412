"""The clients as the round loop sees them: by partition, in a fixed order, and only with valid replies."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from flwr.app import Message, MessageType, RecordDict

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate, Kind, ask_partition, ask_personal, give_personal, read_partition
from fedbayes.errors import RunError
from fedbayes.server.validation import INVALID, PartitionSizes, Rejection, ReplyValidator, first_line
from fedbayes.simulation.client import QUERY_PERSONAL, QUERY_RESTORE, ClientGrid

log = logging.getLogger("fedbayes")

MOST_LINES = 200  # of a traceback that are logged
MESSAGE_TYPES: dict[Kind, str] = {"train": MessageType.TRAIN, "evaluate": MessageType.EVALUATE}


@final
@dataclass(frozen=True, eq=False)
class Replies:
    """Replies of some clients, decoded.

    Attributes:
        updates: the valid ones, in the order of their partitions.
        rejected: why each other client's reply is not used, by partition, ascending.
    """

    updates: list[ClientUpdate]
    rejected: dict[int, Rejection]

    def without(self, rejected: Mapping[int, Rejection]) -> "Replies":
        """Return the replies with further rejections."""
        updates = [update for update in self.updates if update.partition not in rejected]
        return Replies(updates, dict(sorted({**self.rejected, **rejected}.items())))

    def checked(self, problem_of: Callable[[ClientUpdate], str | None]) -> "Replies":
        """Return the replies after a further check, which says what is wrong with one, or None."""
        problems = {update.partition: problem_of(update) for update in self.updates}
        return self.without(
            {partition: Rejection(INVALID, text) for partition, text in problems.items() if text is not None}
        )

    def notes(self, kind: str) -> list[str]:
        """Return a sentence for each reason to reject, with the clients that it applies to."""
        clients: dict[str, list[int]] = {}
        for partition, rejection in self.rejected.items():
            clients.setdefault(rejection.reason, []).append(partition)
        return [f"{kind} of {named_clients(same)} rejected: {reason}" for reason, same in clients.items()]


def named_clients(partitions: Sequence[int]) -> str:
    """Return the clients for a message, such as `client 3` or `clients 0, 2`; of many, the first ten."""
    numbers = ", ".join(map(str, partitions[:10])) + (", ..." if len(partitions) > 10 else "")
    return f"client{'s' * (len(partitions) > 1)} {numbers}"


@final
class Federation:
    """All clients behind a Flower grid, whose node ids are random: here they go by their partitions.

    It waits `patience` seconds until all have come; nodes that say nothing for as long are named in the log, and only
    waited for while a partition is missing. `timeout` is the seconds to answer a set of messages; None: for ever.

    Raises:
        RunError: if they do not come, come with other partitions than 0, 1, ..., or one of them twice, or cannot start.
    """

    def __init__(
        self,
        grid: ClientGrid,
        clients: int,
        validator: ReplyValidator,
        sizes: PartitionSizes,
        *,
        patience: float = 60.0,
        timeout: float | None = None,
    ) -> None:
        self.validator, self.sizes = validator, sizes
        self._grid, self._timeout = grid, timeout
        self._nodes = dict(sorted(_holders(grid, _present(grid, clients, patience), clients, patience).items()))
        if self.partitions != list(range(clients)):
            raise RunError(f"the federation offers partitions {self.partitions} for clients={clients}; start as many.")
        self._partitions = {node: partition for partition, node in self._nodes.items()}

    @property
    def partitions(self) -> list[int]:
        """Partitions of all clients, ascending."""
        return list(self._nodes)

    def ask(self, contents: Mapping[int, RecordDict], kind: Kind, split: str) -> Replies:
        """Send requests, by partition, and decode the replies; `split` names the images that they are about.

        Both go in the order of partitions: float sums depend on it, and engines answer as they finish.
        """
        answered = self._send(contents, MESSAGE_TYPES[kind])
        replies = {
            partition: self.validator.read(partition, answered.get(partition), self.sizes.of(split, partition))
            for partition in sorted(contents)
        }
        updates = [reply for reply in replies.values() if isinstance(reply, ClientUpdate)]
        rejected = {partition: reply for partition, reply in replies.items() if isinstance(reply, Rejection)}
        for reason, details in dict.fromkeys((rejection.reason, rejection.details) for rejection in rejected.values()):
            if details:
                log.info("a client raised %s", reason)
            for line in details[:MOST_LINES]:  # as lines of their own, since run.log escapes line breaks
                log.info("    %s", line)
        return Replies(updates, rejected)

    def personal(self, accepted: Mapping[int, int]) -> tuple[dict[int, Arrays], dict[int, Rejection]]:
        """Ask clients for their personal parameters, by partition; a simulation's privilege.

        `accepted` is the last round whose reply was used, of each client to ask. Also returns why parameters of others
        are not used.
        """
        answered = self._send({partition: ask_personal(done) for partition, done in accepted.items()}, QUERY_PERSONAL)
        read = {partition: self.validator.read_personal(reply) for partition, reply in sorted(answered.items())}
        personal = {partition: arrays for partition, arrays in read.items() if not isinstance(arrays, Rejection)}
        return personal, {partition: reason for partition, reason in read.items() if isinstance(reason, Rejection)}

    def restore(self, personal: Mapping[int, Arrays], accepted: Mapping[int, int]) -> None:
        """Give clients back their personal parameters of before the run broke off; a RunError if one takes none."""
        contents = {partition: give_personal(arrays, accepted[partition]) for partition, arrays in personal.items()}
        done = {partition for partition, reply in self._send(contents, QUERY_RESTORE).items() if not reply.has_error()}
        if lost := sorted(personal.keys() - done):
            raise RunError(f"{named_clients(lost)} did not take back personal parameters; try again.")

    def _send(self, contents: Mapping[int, RecordDict], message_type: str) -> dict[int, Message]:
        """Send to each partition, ascending; return the replies by partition."""
        messages = [Message(contents[p], self._nodes[p], message_type) for p in sorted(contents)]
        replies = self._grid.send_and_receive(messages, timeout=self._timeout)
        return {self._partitions[reply.metadata.src_node_id]: reply for reply in replies}


def _present(grid: ClientGrid, clients: int, patience: float) -> list[int]:
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


def _holders(grid: ClientGrid, nodes: Sequence[int], clients: int, patience: float) -> dict[int, int]:
    """The node of each partition; nodes whose answer cannot be read are passed over.

    Silence alone is no reason to do without a partition: a node may have to read its images before it answers.
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

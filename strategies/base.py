"""The server's side: what every strategy has, so that a method only says how it combines replies."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ARRAYS, CONFIG, ROUND, ClientUpdate, from_record, read_update, to_record
from fedbayes.simulation.sampled_grid import SampledGrid

SERVER = "server."
"""Leads the names of parameters that are never sent."""


class AbstractStrategy(FedAvg, ABC):
    """A Flower strategy with two hooks: what goes out to a client, and what is done with the answers.

    Sampling, guards, order of replies and the round loop are not a strategy's business; see `fedbayes.server.rounds`.

    Attributes:
        counted: names in `shared` that are counted and not learnt: no server optimiser moves them, no clipping shortens
            them.
        closed_form: whether parameters are computed afresh each round, so that no step from the old ones has a meaning.
        plain_mean: whether `aggregate` does nothing but average what clients send, which privacy's noise is made for.
        shared: the server's parameters, taken anew from what Flower hands in before each message, since a wrapper (such
            as Flower's for differential privacy) or a checkpoint may have changed what `aggregate` left.
    """

    counted: tuple[str, ...] = ()
    closed_form: bool = False
    plain_mean: bool = False

    @property
    def afresh(self) -> tuple[str, ...]:
        """Names in `shared` that each round makes anew, so that no server optimiser moves them."""
        return ()

    def __init__(self) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.shared: Arrays = {}
        self._partitions: dict[int, int] = {}  # of the nodes addressed last

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002  (a hook: methods may use both)
        """What one client is sent; the same for everybody unless a method says otherwise."""
        return self.shared

    def answer_like(self, arrays: Arrays) -> Arrays:
        """Arrays with the names, shapes and types that each client answer has at least; see `server.validation`.

        Args:
            arrays: the server's parameters; an answer has all that may be sent unless a method says otherwise.
        """
        return sendable(arrays)

    def impossible(self, update: ClientUpdate) -> str | None:  # noqa: ARG002
        """Why an answer of the right form, as it came, cannot be true; None if it may be. Asked before any clipping."""
        return None

    def state(self) -> Arrays:
        """What the strategy remembers between rounds beside `shared`, by name; a checkpoint keeps it."""
        return {}

    def restore(self, state: Arrays) -> None:
        """Take back what `state` gave in an earlier process."""

    @abstractmethod
    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Take the answers of a round into the server's state.

        Args:
            updates: in the order of their partitions; all finite, at least one.
        """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's hook: one message for each sampled client."""
        return self._messages(server_round, arrays, config, grid, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's hook: one message for each client to be evaluated."""
        return self._messages(server_round, arrays, config, grid, MessageType.EVALUATE)

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's hook: decode the replies and hand them to `aggregate`."""
        self.aggregate([read_update(self._partitions[reply.metadata.src_node_id], reply.content) for reply in replies])
        return to_record(self.shared), MetricRecord()

    def _messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, kind: str
    ) -> list[Message]:
        if not isinstance(grid, SampledGrid):
            raise TypeError(f"strategy got a {type(grid).__name__}; the round loop hands out a SampledGrid.")
        config[ROUND] = server_round
        self._partitions = {node: grid.partition_of(node) for node in grid.get_node_ids()}
        self.shared = from_record(arrays)
        records = {id(self.shared): (self.shared, arrays)}  # clients that are sent the same object share its bytes
        messages = []
        for node, partition in self._partitions.items():
            sent = self.outgoing(server_round, partition)
            _, record = records.setdefault(id(sent), (sent, arrays if sent is self.shared else to_record(sent)))
            messages.append(Message(RecordDict({ARRAYS: record, CONFIG: config}), node, kind))
        return messages


def weighted_mean(updates: Sequence[ClientUpdate]) -> Arrays:
    """`sum_i (n_i / n) arrays_i`, n_i the images of client i, summed in float64 in the order given."""
    total = sum(update.num_examples for update in updates)
    mean: Arrays = {}
    for name, like in updates[0].arrays.items():
        rows = (update.arrays[name].astype(np.float64) * (update.num_examples / total) for update in updates)
        mean[name] = np.asarray(sum(rows), dtype=like.dtype)
    return mean


def sendable(arrays: Arrays) -> Arrays:
    """The server's parameters but for those that are never sent."""
    return {name: array for name, array in arrays.items() if not name.startswith(SERVER)}


def miscounted(update: ClientUpdate, name: str) -> str | None:
    """What is wrong with an array that counts a client's images; None for nothing."""
    counts = update.arrays[name].astype(np.float64)
    if (counts < 0).any() or (counts != np.floor(counts)).any():
        return f"{name} are no numbers of images"
    if counts.sum() != update.num_examples:
        return f"{name} sum to {counts.sum():g} for {update.num_examples} images"
    return None

"""The server's side: what every strategy has, so that a method only says how it combines replies; and wrappers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedbayes.arrays import Arrays, by_name, by_partition
from fedbayes.comm.messages import ClientUpdate, Kind
from fedbayes.server.strategy import ServerStrategy

SERVER = "server."  # leads the names of parameters that are never sent


class AbstractStrategy(ServerStrategy, ABC):
    """A strategy with two hooks: `outgoing`, what a client is sent, and `aggregate`, what is done with the replies.

    Attributes:
        seen: arrays that the strategy remembers of each client, by partition; part of its state.
    """

    def __init__(self) -> None:
        self.shared: Arrays = {}
        self.seen: dict[int, Arrays] = {}

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002  (a hook: methods may use both)
        """Return what a client is sent; the same object for all clients that are sent the same."""
        return self.shared

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:  # noqa: ARG002
        """Return what `outgoing` says for each client."""
        return {partition: self.outgoing(server_round, partition) for partition in partitions}

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return all parameters that may be sent; a method whose clients reply with others overrides this."""
        return sendable(initial)

    def state(self) -> Arrays:
        """Return what is remembered of each client."""
        return by_name(self.seen)

    def restore(self, state: Arrays) -> None:
        """Take back what is remembered of each client."""
        self.seen = by_partition(state)


@ServerStrategy.register
class AbstractWrapper(ABC):
    """A strategy around another, which has the parameters and everything of the contract that a wrapper lacks."""

    plain_mean = False

    def __init__(self, strategy: ServerStrategy) -> None:
        self.strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.strategy, name)

    @property
    def shared(self) -> Arrays:
        """The wrapped strategy's parameters."""
        return self.strategy.shared

    @shared.setter
    def shared(self, arrays: Arrays) -> None:
        self.strategy.shared = arrays

    @abstractmethod
    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Let the wrapped strategy aggregate, and do something before or after."""


def weighted_mean(updates: Sequence[ClientUpdate]) -> Arrays:
    """Return `sum_i (n_i / n) arrays_i`, n_i the images of client i, summed in float64 in the order given."""
    total = sum(update.num_examples for update in updates)
    mean: Arrays = {}
    for name, like in updates[0].arrays.items():
        rows = (update.arrays[name].astype(np.float64) * (update.num_examples / total) for update in updates)
        mean[name] = np.asarray(sum(rows), dtype=like.dtype)
    return mean


def sendable(arrays: Arrays) -> Arrays:
    """Return the parameters that may be sent to clients."""
    return {name: array for name, array in arrays.items() if not name.startswith(SERVER)}


def miscounted(update: ClientUpdate, name: str) -> str | None:
    """Say why an array cannot count the images of a client; None if it can, or the reply lacks it."""
    if name not in update.arrays:
        return None
    counts = update.arrays[name].astype(np.float64)
    if (counts < 0).any() or (counts != np.floor(counts)).any():
        return f"{name} are not numbers of images"
    if counts.sum() != update.num_examples:
        return f"{name} sum to {counts.sum():g} for {update.num_examples} images"
    return None

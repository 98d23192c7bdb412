"""The server's side: what every strategy has, so that a method only says how it combines replies."""

from abc import ABC
from collections.abc import Sequence

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate, Kind
from fedbayes.server.strategy import ServerStrategy

SERVER = "server."  # leads the names of parameters that are never sent


class AbstractStrategy(ServerStrategy, ABC):
    """A strategy with two hooks: `outgoing`, what a client is sent, and `aggregate`, what is done with the replies."""

    def __init__(self) -> None:
        self.shared: Arrays = {}

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002  (a hook: methods may use both)
        """Return what a client is sent; the same object for all clients that are sent the same."""
        return self.shared

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:  # noqa: ARG002
        """Return what `outgoing` says for each client."""
        return {partition: self.outgoing(server_round, partition) for partition in partitions}

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return all parameters that may be sent; a method whose clients reply with others overrides this."""
        return sendable(initial)


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
    """Say why an array cannot count the images of a client; None if it can."""
    counts = update.arrays[name].astype(np.float64)
    if (counts < 0).any() or (counts != np.floor(counts)).any():
        return f"{name} are not numbers of images"
    if counts.sum() != update.num_examples:
        return f"{name} sum to {counts.sum():g} for {update.num_examples} images"
    return None

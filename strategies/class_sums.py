"""What training-free methods have in common: every client's class sums, each counted once."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from fedbayes.messages import Arrays, ClientUpdate
from fedbayes.named_arrays import by_name, by_partition
from strategies.base import AbstractStrategy, counting


class AbstractClassSums(AbstractStrategy):
    """Keeps each client's sums, however often it is sampled; the order of rounds does not matter.

    Attributes:
        seen: by partition, what its client sent last.
        closed_form: parameters are computed afresh each round, so no step from the old ones has a meaning.
        summed: names of the arrays that clients send.
    """

    closed_form = True
    summed: tuple[str, ...] = ("sums", "counts")

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Arrays] = {}

    @abstractmethod
    def classifier(self, clients: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
        """The linear classifier of everybody's sums.

        Args:
            clients: what each client sent, in the order of their partitions; at least one.

        Returns:
            Weights `(classes, d)` and bias `(classes,)`; those of classes without images are ignored.
        """

    def answer_like(self, arrays: Arrays) -> Arrays:
        """Sums, which are no parameters of the server's."""
        known = {"sums": arrays["weights"], "counts": arrays["counts"], "squares": np.zeros(1)}
        return {name: known[name] for name in self.summed}

    def state(self) -> Arrays:
        """Everybody's sums."""
        return by_name(self.seen)

    def restore(self, state: Arrays) -> None:
        """Take back everybody's sums."""
        self.seen = by_partition(state)

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """The classifier of all clients heard so far, but for those whose counts no images can have."""
        self.seen |= {update.partition: update.arrays for update in counting(updates, "counts")}
        if not self.seen:
            return
        clients = [self.seen[partition] for partition in sorted(self.seen)]
        weights, bias = self.classifier(clients)
        self.shared = {"weights": weights, "bias": bias, "counts": total(clients, "counts")}


def total(clients: Sequence[Arrays], name: str) -> np.ndarray:
    """The sum of an array over clients, in the order given."""
    return np.asarray(sum(one[name] for one in clients))


def class_means(clients: Sequence[Arrays]) -> np.ndarray:
    """`mu_c = sum_i sums_ic / sum_i n_ic`, `(classes, d)`; 0 for a class without images."""
    means: np.ndarray = total(clients, "sums") / np.maximum(total(clients, "counts"), 1)[:, None]
    return means

"""What training-free methods have in common: every client's class sums, each counted once."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from strategies.base import AbstractStrategy, miscounted


class AbstractClassSums(AbstractStrategy):
    """Keeps each client's last sums, however often it is sampled; the order of rounds does not matter."""

    closed_form = True
    summed: tuple[str, ...] = ("sums", "counts")  # names of the arrays that clients send

    @abstractmethod
    def classifier(self, clients: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
        """Return weights `(classes, d)` and bias `(classes,)`; those of classes without images are ignored."""

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return sums, which are no parameters of the server's."""
        width = initial["weights"].shape[1]
        forms = {"sums": initial["weights"], "counts": initial["counts"], "squares": np.zeros(1)}
        forms["gram"] = np.zeros((width, width))
        return {name: forms[name] for name in self.summed}

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Reject counts or lengths that no images can have: `sum |z|^2` is at least `sum_c |sum z|^2 / n_c`."""
        reason = miscounted(update, "counts")
        arrays = update.arrays
        if reason is not None or not {"squares", "gram"} & set(self.summed):
            return reason
        squares = float(np.trace(arrays["gram"]) if "gram" in self.summed else arrays["squares"].item())
        least = (np.square(arrays["sums"]).sum(1) / np.maximum(update.arrays["counts"], 1)).sum()
        return None if squares >= least * (1 - 1e-6) else f"squares are {squares:g}, and by its sums at least {least:g}"

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Compute the classifier of all clients heard so far, in the order of their partitions."""
        self.seen |= {update.partition: update.arrays for update in updates}
        clients = [self.seen[partition] for partition in sorted(self.seen)]
        weights, bias = self.classifier(clients)
        self.shared = {"weights": weights, "bias": bias, "counts": total(clients, "counts")}


def total(clients: Sequence[Arrays], name: str) -> np.ndarray:
    """Return the sum of an array over clients, in the order given."""
    return np.asarray(sum(arrays[name] for arrays in clients))


def class_means(clients: Sequence[Arrays]) -> np.ndarray:
    """Return `mu_c = sum_i sums_ic / sum_i n_ic`, `(classes, d)`; 0 for a class without images."""
    means: np.ndarray = total(clients, "sums") / np.maximum(total(clients, "counts"), 1)[:, None]
    return means

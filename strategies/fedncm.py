"""FedNCM's server: class means from sums (Legate et al., NeurIPS 2023, arXiv 2402.01862)."""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.messages import Arrays, ClientUpdate
from strategies.base import AbstractStrategy


@final
class FedNCM(AbstractStrategy):
    """Adds up each client's sums once, however often it is sampled; the order of rounds does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Arrays] = {}

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """`mu_c = sum_i sums_ic / sum_i n_ic` and `v = (sum |z|^2 - sum_c n_c |mu_c|^2) / (n d)`."""
        for update in updates:
            self.seen[update.partition] = update.arrays
        totals = {
            name: sum(self.seen[partition][name] for partition in sorted(self.seen)) for name in updates[0].arrays
        }
        counts = np.asarray(totals["counts"])
        means = np.asarray(totals["sums"]) / np.maximum(counts, 1)[:, None]
        within = float(np.asarray(totals["squares"]).item()) - float((counts * np.square(means).sum(1)).sum())
        variance = max(within / (counts.sum() * means.shape[1]), 1e-12)
        self.shared = {"means": means, "counts": counts, "variance": np.array([variance])}

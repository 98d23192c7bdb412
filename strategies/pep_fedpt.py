"""PEP-FedPT's server: averaged prompts, and class prototypes (Yashwanth et al., TMLR 2026, arXiv 2510.25372)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from strategies.base import AbstractStrategy, miscounted, weighted_mean
from strategies.class_sums import class_means

PROTOTYPES = "generator.prototypes"


@final
class PEPFedPT(AbstractStrategy):
    """Averages what is trained; prototypes are the class means of the frozen features of all clients heard so far."""

    counted = (PROTOTYPES,)

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return the server's parameters and, per class, sums of features and their number, in float64."""
        if PROTOTYPES not in initial:  # the clients' generators are personal
            return initial
        sums = np.zeros(initial[PROTOTYPES].shape)
        return {**initial, "sums": sums, "counts": sums[:, 0]}

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Reject counts that no images can have."""
        return miscounted(update, "counts")

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Set `mu_c = sum_i sums_ic / sum_i n_ic`, and all else to the mean, weighted by images."""
        if "sums" not in updates[0].arrays:
            self.shared = weighted_mean(updates)
            return
        trained = []
        for update in updates:
            parameters = dict(update.arrays)
            self.seen[update.partition] = {name: parameters.pop(name) for name in ("sums", "counts")}
            trained.append(replace(update, arrays=parameters))
        means = class_means([self.seen[partition] for partition in sorted(self.seen)])
        self.shared = {**weighted_mean(trained), PROTOTYPES: means.astype(np.float32)}

"""Federated averaging of what clients share (McMahan et al., AISTATS 2017, arXiv 1602.05629), or a robust mean."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError, require_choice, require_number
from fedbayes.models.adapters import exact_pairs
from fedbayes.models.anchoring import anchored, noise_layers
from strategies.base import AbstractStrategy, weighted_mean
from strategies.robust import ROBUST, combined


@final
class Averaging(AbstractStrategy):
    """Averages shared parameters, weighted by images.

    `aggregate` is `mean`; `anchored`: each generator's noise coordinates are first turned back onto those that were
    handed out (`fedbayes.models.anchoring`), so that equal posteriors average to themselves; or a name in
    `strategies.robust`, which has no weights and allows for `malicious_fraction` of the clients. Without noise to
    anchor, the first message is a ConfigError. `exact` averages the products of low-rank changes, the rest as `mean`.
    """

    def __init__(self, aggregate: str = "mean", malicious_fraction: float = 0.2) -> None:
        super().__init__()
        self.aggregate_name = require_choice(
            "method.strategy.aggregate", aggregate, ("mean", "anchored", "exact", *ROBUST)
        )
        self.plain_mean = aggregate == "mean"
        self.malicious_fraction = require_number("method.strategy.malicious_fraction", malicious_fraction, 0)
        if malicious_fraction >= 0.5:
            raise ConfigError(
                f"method.strategy.malicious_fraction={malicious_fraction} leaves no honest majority; set it below 0.5."
            )

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """Return the same for every client."""
        if self.aggregate_name == "anchored":
            noise_layers(self.shared)
        return self.shared

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Set `phi <- sum_i (n_i / n) phi_i`, or what `aggregate` names."""
        if self.aggregate_name in ROBUST:
            self.shared = combined(updates, self.aggregate_name, self.malicious_fraction)
            return
        if self.aggregate_name == "anchored":
            updates = [replace(update, arrays=anchored(update.arrays, self.shared)) for update in updates]
        self.shared = weighted_mean(updates)
        if self.aggregate_name == "exact":
            total = sum(update.num_examples for update in updates)
            fractions = [update.num_examples / total for update in updates]
            self.shared |= exact_pairs([update.arrays for update in updates], fractions)

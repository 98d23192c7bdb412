"""Federated averaging of whatever the clients share (McMahan et al., AISTATS 2017, arXiv 1602.05629)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from fedbayes.errors import require_choice
from fedbayes.messages import Arrays, ClientUpdate
from fedbayes.models.anchoring import anchored, noise_layers
from strategies.base import AbstractStrategy, weighted_mean


@final
class Averaging(AbstractStrategy):
    """Averages shared parameters, weighted by images; what a client keeps to itself never arrives here.

    Args:
        aggregate: `mean`, or `anchored`: each generator's noise coordinates are first turned back onto those that were
            handed out (`fedbayes.models.anchoring`), so that equal posteriors average to themselves.

    Raises:
        ConfigError: if there is no such aggregate; before the first message, if there is no noise to anchor.
    """

    def __init__(self, aggregate: str = "mean") -> None:
        super().__init__()
        self.anchored = require_choice("method.strategy.aggregate", aggregate, ("mean", "anchored")) == "anchored"

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """The same for everybody."""
        if self.anchored:
            noise_layers(self.shared)
        return self.shared

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """`phi <- sum_i (n_i / n) phi_i`."""
        if self.anchored:
            updates = [replace(update, arrays=anchored(update.arrays, self.shared)) for update in updates]
        self.shared = weighted_mean(updates)

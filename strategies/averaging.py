"""Federated averaging of what clients share (McMahan et al., AISTATS 2017, arXiv 1602.05629), or a robust mean."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError, require_choice, require_number
from fedbayes.models.anchoring import anchored, noise_layers
from strategies.base import AbstractStrategy, weighted_mean
from strategies.robust import ROBUST, combined

AGGREGATES = ("mean", "anchored", *ROBUST)


@final
class Averaging(AbstractStrategy):
    """Averages shared parameters, weighted by images.

    Args:
        aggregate: `mean`; `anchored`: each generator's noise coordinates are first turned back onto those that were
            handed out (`fedbayes.models.anchoring`), so that equal posteriors average to themselves; or an aggregate of
            `strategies.robust`, which has no weights.
        malicious_fraction: of the clients, that `trimmed_mean`, `krum` and `multi_krum` allow for, below 1/2.

    Raises:
        ConfigError: if there is no such aggregate; before the first message, if there is no noise to anchor.
    """

    def __init__(self, aggregate: str = "mean", malicious_fraction: float = 0.2) -> None:
        super().__init__()
        self.anchored = require_choice("method.strategy.aggregate", aggregate, AGGREGATES) == "anchored"
        key = "method.strategy.malicious_fraction"
        if require_number(key, malicious_fraction, 0) >= 0.5:
            raise ConfigError(f"{key}={malicious_fraction} leaves no honest majority; set it below 0.5.")
        self._robust = ROBUST[aggregate](malicious_fraction) if aggregate in ROBUST else None
        self._aggregate = aggregate

    @property
    def plain_mean(self) -> bool:
        """Whether the aggregate is the mean."""
        return self._aggregate == "mean"

    def outgoing(self, server_round: int, partition: int) -> Arrays:  # noqa: ARG002
        """Return the same for every client."""
        if self.anchored:
            noise_layers(self.shared)
        return self.shared

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Set `phi <- sum_i (n_i / n) phi_i`, or what `aggregate` names."""
        if self.anchored:
            updates = [replace(update, arrays=anchored(update.arrays, self.shared)) for update in updates]
        self.shared = weighted_mean(updates) if self._robust is None else combined(updates, self._robust)

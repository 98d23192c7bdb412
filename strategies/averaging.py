"""Federated averaging of whatever the clients share (McMahan et al., AISTATS 2017, arXiv 1602.05629)."""

from collections.abc import Sequence
from typing import final

from fedbayes.messages import ClientUpdate
from strategies.base import AbstractStrategy, weighted_mean


@final
class Averaging(AbstractStrategy):
    """Averages shared parameters, weighted by images; what a client keeps to itself never arrives here."""

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """`phi <- sum_i (n_i / n) phi_i`."""
        self.shared = weighted_mean(updates)

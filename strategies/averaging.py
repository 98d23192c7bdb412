"""Federated averaging of whatever the clients share (McMahan et al., AISTATS 2017, arXiv 1602.05629)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from fedbayes.errors import ConfigError, require_choice
from fedbayes.messages import ClientUpdate
from fedbayes.models.anchoring import RECEIVED, SENT, rotation, turned
from strategies.base import AbstractStrategy, weighted_mean


@final
class Averaging(AbstractStrategy):
    """Averages shared parameters, weighted by images; what a client keeps to itself never arrives here.

    Args:
        aggregate: `mean`, or `anchored`: each generator's noise coordinates are first turned back onto those that were
            handed out, by what it answers to a noise bank shared by all: equal posteriors average to themselves.

    Raises:
        ConfigError: if there is no such aggregate.
    """

    def __init__(self, aggregate: str = "mean") -> None:
        anchored = require_choice("method.strategy.aggregate", aggregate, ("mean", "anchored")) == "anchored"
        super().__init__(noise_bank=anchored)

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """`phi <- sum_i (n_i / n) phi_i`."""
        self.shared = weighted_mean([_anchored(update) for update in updates] if self.noise_bank else updates)


def _anchored(update: ClientUpdate) -> ClientUpdate:
    """A client's parameters in the noise coordinates of what it was sent."""
    arrays = dict(update.arrays)
    received, sent = arrays.pop(RECEIVED, None), arrays.pop(SENT, None)
    if received is None or sent is None:
        raise ConfigError(
            f"method.strategy.aggregate=anchored: client {update.partition} says nothing about a noise bank; use a "
            "generator with noise (generator.kind=semi_implicit or low_rank) that is shared, or aggregate=mean."
        )
    return replace(update, arrays=turned(arrays, rotation(sent, received)))

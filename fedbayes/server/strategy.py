"""The contract between the round loop and a strategy: all that the loop asks of the server's side of a method.

Methods inherit from `strategies.base.AbstractStrategy`, wrappers from `strategies.base.AbstractWrapper`, and
`FlowerStrategy` adapts Flower's own strategies. An evaluation calls `requests` alone, a round also `aggregate`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate, Kind


class ServerStrategy(ABC):
    """Combines the replies of clients into the server's parameters.

    Attributes:
        shared: the server's parameters by name. The loop sets them once, before the first round.
        counted: names in `shared` that are counted and not learnt: no server optimiser or update clipping changes them.
        recomputed: first parts of names in `shared` that each round computes anew: no server optimiser changes them.
        closed_form: whether each round computes all parameters anew, so that no step from the old ones has a meaning.
        plain_mean: whether `aggregate` only averages what clients send, which privacy's noise is calibrated for.
    """

    shared: Arrays
    counted: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    closed_form = False
    plain_mean = False

    @property
    def name(self) -> str:
        """Name for messages to the user."""
        return type(self).__name__

    @abstractmethod
    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Return what each client is sent, by partition, ascending; a client that is left out is not asked."""

    @abstractmethod
    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Take the replies of a round into `shared`, as new arrays; those that are there stay as they are.

        Args:
            updates: at least one, in the order of their partitions; valid, all of the expected form.
        """

    @property
    def evaluated(self) -> Arrays:
        """The server's parameters that predictions are made with."""
        return self.shared

    def arrays_for(self, server_round: int, partition: int) -> Arrays:
        """Return what one client would be sent for an evaluation, also where the others are not there."""
        return self.requests(server_round, [partition], "evaluate")[partition]

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return arrays with the names, shapes and types of each training reply, from the run's initial parameters."""
        return initial

    def expected_from(self, partition: int, expected: Arrays) -> Arrays:  # noqa: ARG002  (a hook)
        """Return the part of the expected reply that one client sends, of those asked last."""
        return expected

    def rejection_reason(self, update: ClientUpdate) -> str | None:  # noqa: ARG002  (a hook)
        """Say why a reply of the expected form cannot be true; None if it may be. Asked before update clipping."""
        return None

    def facts(self) -> Mapping[str, float]:
        """Return numbers for the log of a round, after its aggregate, by name."""
        return {}

    def state(self) -> Arrays:
        """Return what the strategy remembers between rounds beside `shared`; a checkpoint stores it."""
        return {}

    def restore(self, state: Arrays) -> None:  # noqa: B027  (a hook)
        """Take back what `state` returned in an earlier process."""

    def require_sizes(self, trained: int, evaluated: int) -> None:  # noqa: B027  (a hook)
        """Raise a ConfigError if the strategy does not work with so many clients in a round or an evaluation."""

    def privacy_spent(self, rounds: int) -> Mapping[str, Any] | None:  # noqa: ARG002  (a hook)
        """Return what `summary.json` says of client-level privacy after so many rounds; None without privacy."""
        return None

    def secure_costs(self) -> Mapping[str, Any] | None:
        """Return what `secure.json` says of aggregation on shares; None where clients send their steps."""
        return None


def snapshot(strategy: ServerStrategy) -> Callable[[], None]:
    """Return a function that puts a strategy, and those that it wraps, back to where they are now."""
    layers: list[object] = [strategy]
    for layer in layers:
        layers += [value for value in vars(layer).values() if isinstance(value, ServerStrategy | Strategy)]
    before = [{name: _copy(value) for name, value in vars(layer).items()} for layer in layers]

    def undo() -> None:
        for layer, attributes in zip(layers, before, strict=True):
            vars(layer).clear()
            vars(layer).update(attributes)

    return undo


def _copy(value: Any) -> Any:
    """Return arrays and containers of arrays as copies, since `aggregate` may work in place; all else as it is."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value

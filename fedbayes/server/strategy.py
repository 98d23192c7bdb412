"""The contract between the round loop and a strategy: all that the loop asks of the server's side of a method.

Methods inherit from `strategies.base.AbstractStrategy`, wrappers from `strategies.wrapping.AbstractWrapper`, and
`FlowerStrategy` adapts Flower's own strategies. In a round the loop calls `requests`, then `aggregate`; an evaluation
calls `requests` alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate, Kind


class ServerStrategy(ABC):
    """Combines the replies of clients into the server's parameters.

    Sampling, reply validation, the order of replies and the round loop are not a strategy's business.

    Attributes:
        shared: the server's parameters by name. The loop sets them once, before the first round.
    """

    shared: Arrays

    @property
    def name(self) -> str:
        """Name for messages to the user."""
        return type(self).__name__

    @property
    def counted(self) -> tuple[str, ...]:
        """Names in `shared` that are counted and not learnt: no server optimiser or update clipping changes them."""
        return ()

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Names in `shared` that each round computes anew: no server optimiser changes them."""
        return ()

    @property
    def closed_form(self) -> bool:
        """Whether each round computes all parameters anew, so that no step from the old ones has a meaning."""
        return False

    @property
    def plain_mean(self) -> bool:
        """Whether `aggregate` only averages what clients send, which privacy's noise is calibrated for."""
        return False

    @abstractmethod
    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Return what each client is sent, by partition; a client that is left out is not asked.

        Args:
            server_round: the round, from 1.
            partitions: the clients of the round, ascending.
            kind: `train` or `evaluate`.
        """

    @abstractmethod
    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Take the replies of a round into `shared`, as new arrays; those that are there stay as they are.

        Args:
            updates: at least one, in the order of their partitions; valid, all of the expected form.
        """

    def arrays_for(self, server_round: int, partition: int) -> Arrays:
        """Return what one client would be sent for an evaluation, also where the others are not there."""
        return self.requests(server_round, [partition], "evaluate")[partition]

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Return arrays with the names, shapes and types of each training reply of the run.

        Args:
            initial: the server's parameters before the first round.
        """
        return initial

    def rejection_reason(self, update: ClientUpdate) -> str | None:  # noqa: ARG002  (a hook)
        """Say why a reply of the expected form cannot be true; None if it may be. Asked before update clipping."""
        return None

    def state(self) -> Arrays:
        """Return what the strategy remembers between rounds beside `shared`; a checkpoint stores it."""
        return {}

    def restore(self, state: Arrays) -> None:  # noqa: B027  (a hook)
        """Take back what `state` returned in an earlier process."""

    def snapshot(self) -> Callable[[], None]:
        """Return a function that puts the strategy back to where it is now."""
        attributes, state = dict(vars(self)), self.state()
        shared = {name: array.copy() for name, array in self.shared.items()}  # `aggregate` may work in place

        def undo() -> None:
            vars(self).clear()
            vars(self).update(attributes)
            self.restore(state)
            self.shared = shared

        return undo

    def require_sizes(self, trained: int, evaluated: int) -> None:  # noqa: B027  (a hook)
        """Check that the strategy works with so many clients in a round and in an evaluation.

        Raises:
            ConfigError: naming the strategy's argument.
        """

    def privacy_spent(self, rounds: int) -> Mapping[str, Any] | None:  # noqa: ARG002  (a hook)
        """Return what `summary.json` says of client-level privacy after so many rounds; None without privacy."""
        return None

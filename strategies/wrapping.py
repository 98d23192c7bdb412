"""A strategy around another, for what happens before or after its aggregation."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate, Kind
from fedbayes.server.strategy import ServerStrategy


class AbstractWrapper(ServerStrategy, ABC):
    """Delegates everything but `aggregate` to the wrapped strategy, which holds the parameters."""

    def __init__(self, strategy: ServerStrategy) -> None:
        self.strategy = strategy

    @property
    def shared(self) -> Arrays:
        """The wrapped strategy's parameters."""
        return self.strategy.shared

    @shared.setter
    def shared(self, arrays: Arrays) -> None:
        self.strategy.shared = arrays

    @property
    def name(self) -> str:
        """Delegated."""
        return self.strategy.name

    @property
    def counted(self) -> tuple[str, ...]:
        """Delegated."""
        return self.strategy.counted

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Delegated."""
        return self.strategy.recomputed

    @property
    def closed_form(self) -> bool:
        """Delegated."""
        return self.strategy.closed_form

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Delegated."""
        return self.strategy.requests(server_round, partitions, kind)

    def arrays_for(self, server_round: int, partition: int) -> Arrays:
        """Delegated."""
        return self.strategy.arrays_for(server_round, partition)

    def expected_reply(self, initial: Arrays) -> Arrays:
        """Delegated."""
        return self.strategy.expected_reply(initial)

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Delegated."""
        return self.strategy.rejection_reason(update)

    def state(self) -> Arrays:
        """Delegated."""
        return self.strategy.state()

    def restore(self, state: Arrays) -> None:
        """Delegated."""
        self.strategy.restore(state)

    def snapshot(self) -> Callable[[], None]:
        """Return a function that puts wrapper and wrapped strategy back to where they are now."""
        undo_inner, undo_wrapper = self.strategy.snapshot(), super().snapshot()

        def undo() -> None:
            undo_wrapper()
            undo_inner()

        return undo

    def require_sizes(self, trained: int, evaluated: int) -> None:
        """Delegated."""
        self.strategy.require_sizes(trained, evaluated)

    def privacy_spent(self, rounds: int) -> Mapping[str, Any] | None:
        """Delegated."""
        return self.strategy.privacy_spent(rounds)

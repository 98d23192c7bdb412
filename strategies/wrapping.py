"""A strategy around another one, for what happens before or after whatever that one aggregates."""

from abc import ABC
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import from_record
from fedbayes.server.strategy_state import restore, state_of


class AbstractWrapper(Strategy, ABC):
    """Passes on everything; `aggregate_train` is the wrapper's business.

    Args:
        strategy: the wrapped one.

    Attributes:
        before: the parameters that the last training messages started from.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.before: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's hook: the strategy's messages; what they start from is kept."""
        self.before = from_record(arrays)
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's hook: the strategy's messages."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Flower's hook: the strategy's."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Flower's hook: the strategy's."""
        self.strategy.summary()

    def state(self) -> Arrays:
        """What the strategy remembers."""
        return state_of(self.strategy)

    def restore(self, state: Arrays) -> None:
        """Take back what `state` gave in an earlier process."""
        restore(self.strategy, state)

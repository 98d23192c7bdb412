"""The server's side of sparse training: selections, partial replies, and the importance of blocks.

What a client did not train is filled with what it was sent, so the denominator of block b is all images of the round:

    w_b <- w_b + sum_{i: b in S_i} n_i (w_b^i - w_b) / sum_i n_i.

Dividing by the images of those that trained b would overshoot: each client fits the residual with its own blocks alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np

from fedbayes.arrays import Arrays, blocks_of, in_blocks, under
from fedbayes.comm.messages import ClientUpdate, Kind
from fedbayes.errors import ConfigError
from fedbayes.optim.sparse import IMPORTANCE, LOSS, BlockChoice
from fedbayes.server.flower_strategy import FlowerStrategy
from fedbayes.server.strategy import ServerStrategy
from strategies.averaging import Averaging
from strategies.base import AbstractWrapper, sendable

WRAPPED = "inner/"  # leads the names of the wrapped strategy's state


@final
class SparseTraining(AbstractWrapper):
    """A strategy whose clients send some blocks.

    Args:
        strategy: aggregates, as if everybody had sent everything.
        choice: of blocks.

    Raises:
        ConfigError: if the strategy does more than to aggregate each parameter, or its median would often be no step.
    """

    def __init__(self, strategy: ServerStrategy, choice: BlockChoice) -> None:
        if not isinstance(strategy, Averaging | FlowerStrategy):
            raise ConfigError(
                f"sparse: {strategy.name} needs all parameters of its clients; choose sparse=none, or a method with "
                "method.strategy._target_=strategies.averaging.Averaging."
            )
        name = strategy.aggregate_name if isinstance(strategy, Averaging) else strategy.name
        if choice.fraction < 0.5 and any(word in name.lower() for word in ("median", "trim")):
            raise ConfigError(
                f"sparse.fraction={choice.fraction}: most clients send no step of a block, so {name} would be none; "
                "raise it to 0.5 or choose method.strategy.aggregate=mean."
            )
        super().__init__(strategy)
        self.plain_mean = strategy.plain_mean
        self._choice, self._round = choice, 0
        self.importance = np.zeros(0)  # of no block before the first round

    @property
    def _blocks(self) -> list[int]:
        """Blocks that a client may train, ascending."""
        return blocks_of(sendable(self.shared))

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Return the strategy's requests; those to train carry the importance, where it is learnt."""
        requests = self.strategy.requests(server_round, partitions, kind)
        if kind == "evaluate":
            return requests
        self._round = server_round
        if not self.importance.size:
            self.importance = np.zeros(len(self._blocks))
        if not self._choice.candidates:
            return requests
        same = {id(arrays): {**arrays, IMPORTANCE: self.importance} for arrays in requests.values()}
        return {partition: same[id(arrays)] for partition, arrays in requests.items()}

    def expected_from(self, partition: int, expected: Arrays) -> Arrays:
        """Return the part of an expected reply that belongs to a client's blocks, or to none."""
        chosen = self._choice.selected(self._blocks, self.importance, self._round, partition)
        return {name: array for name, array in expected.items() if in_blocks(name, chosen)}

    def rejection_reason(self, update: ClientUpdate) -> str | None:
        """Reject a reply without a loss for each candidate set."""
        for j in range(len(self._suppressed_sets())):
            if not update.metrics.get(f"{LOSS}{j}", -1.0) >= 0:
                return f"it lacks the metric {LOSS}{j}, nats from 0"
        return self.strategy.rejection_reason(update)

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Fill the replies, aggregate them, and update the importance."""
        before = sendable(self.shared)
        filled = [
            replace(update, arrays={name: update.arrays.get(name, array) for name, array in before.items()})
            for update in updates
        ]
        self.strategy.aggregate(filled)
        if self._choice.candidates:
            sets = self._suppressed_sets()
            losses = np.array([[u.metrics[f"{LOSS}{j}"] for j in range(len(sets))] for u in updates])
            images = np.array([update.num_examples for update in updates])
            self.importance = self._choice.updated(self._blocks, self.importance, sets, losses, images)

    def facts(self) -> Mapping[str, float]:
        """Return the importance of each block, where it is learnt."""
        importance = self.importance.tolist() if self._choice.candidates else []
        return {f"importance_{b}": value for b, value in zip(self._blocks, importance, strict=False)} | dict(
            self.strategy.facts()
        )

    def _suppressed_sets(self) -> list[frozenset[int]]:
        """Return the candidate sets of the round."""
        return self._choice.suppressed_sets(self._blocks, self.importance, self._round)

    def state(self) -> Arrays:
        """Return the importance and the strategy's own state."""
        inner = {WRAPPED + name: array for name, array in self.strategy.state().items()}
        return {IMPORTANCE: self.importance} | inner

    def restore(self, state: Arrays) -> None:
        """Take back what `state` returned in an earlier process."""
        self.importance = state[IMPORTANCE]
        self.strategy.restore(under(WRAPPED, state))

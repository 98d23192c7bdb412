"""What the server does after the aggregate: an optimiser's step, and a mean over rounds that is evaluated.

Training goes on from the parameters of the last round; clients are evaluated with the mean of the last few. A mean of
iterates has less noise than any of them (Izmailov et al., UAI 2018, arXiv 1803.05407).
"""

from collections.abc import Sequence
from typing import cast, final

import numpy as np

from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientUpdate, Kind
from fedbayes.errors import ConfigError, require_whole
from fedbayes.server.strategy import ServerStrategy
from strategies.base import AbstractWrapper
from strategies.server_optimiser import ServerOptimiser

RECENT, WRAPPED = "recent/", "inner/"  # lead the names of the last rounds' parameters and of the wrapped state


def after_aggregate(
    strategy: ServerStrategy,
    *,
    name: str | None,
    average: int,
    lr: float | None,
    momentum: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> ServerStrategy:
    """Return the strategy, with a server optimiser unless `name` is none, and with a mean over `average` rounds."""
    if name not in (None, "none"):
        optimiser = ServerOptimiser(strategy, name=name, lr=lr, momentum=momentum, beta1=beta1, beta2=beta2, tau=tau)
        strategy = cast(ServerStrategy, optimiser)
    return strategy if average == 1 else cast(ServerStrategy, RoundAverage(strategy, average))


@final
class RoundAverage(AbstractWrapper):
    """A strategy whose parameters are averaged over `rounds` rounds for evaluations and predictions.

    Floating-point arrays that are learnt are averaged; all others are those of the last round.

    Raises:
        ConfigError: if the number is out of range, or the strategy computes its parameters anew each round.
    """

    def __init__(self, strategy: ServerStrategy, rounds: int) -> None:
        super().__init__(strategy)
        self.rounds = require_whole("server.average", rounds, 1)
        if strategy.closed_form:
            raise ConfigError(
                f"server.average={rounds}: {strategy.name} computes its parameters anew each round; use 1."
            )
        self._recent: list[Arrays] = []

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Let the strategy aggregate, and remember the result."""
        self.strategy.aggregate(updates)
        self._recent = [*self._recent, dict(self.shared)][-self.rounds :]

    @property
    def evaluated(self) -> Arrays:
        """The mean of the last rounds."""
        mean = dict(self.shared)
        for name, array in self.shared.items():
            rows = [arrays[name] for arrays in self._recent if name in arrays and arrays[name].shape == array.shape]
            if rows and array.dtype.kind == "f" and name not in self.counted and not name.startswith(self.recomputed):
                mean[name] = np.mean(rows, axis=0, dtype=np.float64).astype(array.dtype)
        return mean

    def requests(self, server_round: int, partitions: Sequence[int], kind: Kind) -> dict[int, Arrays]:
        """Return the strategy's own requests; for an evaluation those of the mean."""
        if kind == "train":
            return self.strategy.requests(server_round, partitions, kind)
        shared = self.shared
        self.shared = self.evaluated
        try:
            return self.strategy.requests(server_round, partitions, kind)
        finally:
            self.shared = shared

    def arrays_for(self, server_round: int, partition: int) -> Arrays:
        """Return what one client would be sent for an evaluation."""
        return self.requests(server_round, [partition], "evaluate")[partition]

    def state(self) -> Arrays:
        """Return the last rounds' parameters, and the strategy's own state."""
        recent = {f"{RECENT}{i}/{n}": array for i, arrays in enumerate(self._recent) for n, array in arrays.items()}
        return recent | {WRAPPED + name: array for name, array in self.strategy.state().items()}

    def restore(self, state: Arrays) -> None:
        """Take back what `state` returned in an earlier process."""
        rows = [under(f"{RECENT}{i}/", state) for i in range(self.rounds)]
        self._recent = [arrays for arrays in rows if arrays]
        self.strategy.restore(under(WRAPPED, state))

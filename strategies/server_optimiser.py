r"""Server optimisers, after whatever a strategy aggregates: FedAvgM, FedAdam and FedYogi.

The change that a round's aggregate makes is taken as a gradient, `g = before - after`, entry by entry:

    momentum      m <- momentum m + g,               w <- w - lr m
    adam, yogi    m <- beta1 m + (1 - beta1) g,      w <- w - lr m / (sqrt(v) + tau)
        adam      v <- beta2 v + (1 - beta2) g^2
        yogi      v <- v - (1 - beta2) g^2 sign(v - g^2)

`momentum` is FedAvgM (Hsu et al. 2019, arXiv 1909.06335), the others are algorithm 2 of Reddi et al. (ICLR 2021, arXiv
2003.00295): m starts at 0, v at tau^2, and there is no bias correction. Flower's own FedAdam and FedYogi start v at 0,
and its FedAdam corrects m and v for their start.
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from fedbayes.arrays import Arrays, under
from fedbayes.comm.messages import ClientUpdate
from fedbayes.errors import ConfigError, require_choice, require_number
from fedbayes.server.strategy import ServerStrategy
from strategies.base import AbstractWrapper

RATES = {"momentum": 1.0, "adam": 0.01, "yogi": 0.01}  # learning rates that `lr: null` stands for
FIRST, SECOND, WRAPPED = "first/", "second/", "inner/"  # lead the names of m, of v and of the wrapped strategy's state


@final
class ServerOptimiser(AbstractWrapper):
    """A strategy, ours or Flower's, whose aggregate becomes a step of an optimiser.

    Floating-point arrays of unchanged shape are optimised, unless the strategy says that they are counted or computed
    anew; all others are passed on. `name` is one of those above; `lr=None` stands for the one in `RATES`.

    Raises:
        ConfigError: if a value is out of range, or the strategy computes its parameters anew each round.
    """

    def __init__(
        self,
        strategy: ServerStrategy,
        *,
        name: str,
        lr: float | None = None,
        momentum: float = 0.9,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(strategy)
        self.optimiser = require_choice("server.name", name, tuple(RATES))
        if strategy.closed_form:
            raise ConfigError(
                f"server.name={name}: {strategy.name} computes its parameters anew each round, so there is no step for "
                "an optimiser; set server.name=none."
            )
        self.lr = require_number("server.lr", RATES[name] if lr is None else lr, 0, open_low=True)
        self.momentum = require_number("server.momentum", momentum, 0, 1)
        self.beta1 = require_number("server.beta1", beta1, 0, 1)
        self.beta2 = require_number("server.beta2", beta2, 0, 1)
        self.tau = require_number("server.tau", tau, 0, open_low=True)
        self._first: Arrays = {}  # m
        self._second: Arrays = {}  # v

    def aggregate(self, updates: Sequence[ClientUpdate]) -> None:
        """Step towards, or past, the strategy's aggregate."""
        before = dict(self.shared)
        self.strategy.aggregate(updates)
        if all(self.shared.get(name) is array for name, array in before.items()):
            return  # a strategy of Flower's gave the round up
        optimised = dict(self.shared)
        for name, after in self.shared.items():
            old = before.get(name)
            if name in self.counted or name.startswith(self.recomputed) or after.dtype.kind != "f":
                continue
            if old is not None and old.shape == after.shape:
                step = self._step(name, old.astype(np.float64) - after)
                optimised[name] = np.asarray(old - self.lr * step, dtype=after.dtype)
        self.shared = optimised

    def state(self) -> Arrays:
        """Return the moments, float64, and the strategy's own state."""
        parts = {WRAPPED: self.strategy.state(), FIRST: self._first, SECOND: self._second}
        return {prefix + name: array for prefix, arrays in parts.items() for name, array in arrays.items()}

    def restore(self, state: Arrays) -> None:
        """Take back what `state` returned in an earlier process."""
        self._first, self._second = under(FIRST, state), under(SECOND, state)
        self.strategy.restore(under(WRAPPED, state))

    def _step(self, name: str, gradient: np.ndarray) -> np.ndarray:
        """Update the moments of an array and return its step, per unit of learning rate."""
        zero = np.zeros_like(gradient)
        m, v, square = self._first.get(name, zero), self._second.get(name, zero + self.tau**2), np.square(gradient)
        if self.optimiser == "momentum":
            self._first[name] = self.momentum * m + gradient
            return self._first[name]
        self._first[name] = self.beta1 * m + (1 - self.beta1) * gradient
        if self.optimiser == "adam":
            self._second[name] = self.beta2 * v + (1 - self.beta2) * square
        else:
            self._second[name] = v - (1 - self.beta2) * square * np.sign(v - square)
        step: np.ndarray = self._first[name] / (np.sqrt(self._second[name]) + self.tau)
        return step

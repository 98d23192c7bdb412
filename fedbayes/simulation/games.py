r"""Zero-sum repeated games in which one player knows the state and the other does not.

Nature draws a type k of K with prior p; the informed player, who maximises, learns it, the uninformed player does not.
In every stage the informed player takes an action a of A, the uninformed one an action b of B, the informed one is paid
`M^k[a, b]`, and a is seen by both. Stage t counts `w_t`. Both security strategies depend on the history of the informed
player's actions alone [1], so both are linear programs over the tree of these histories, and each is the other's dual:

    informed:    max  sum_t sum_h L_t(h)     L_t(h) <= w_t sum_k p_k sum_a r^k(h, a) M^k[a, b]   for all b
                 r^k(h, .) is a realisation plan: sum_a r^k(h, a) = r^k(h), and 1 at the root
    uninformed:  min  sum_k p_k v^k(root)    v^k(h) >= w_t sum_b y(h, b) M^k[a, b] + v^k(h, a)    for all a
                 y(h, .) is a mixture over B

With discount d, stage t counts `(1 - d) d^t`. The infinite game has a state of fixed size for each player: the belief
`p_a^k ~ p^k x^k(a)` of the informed, after the action a of its own mixture x; and for the uninformed the worst-case
regret r of each type, anti-discounted: `r' = (r + (1 - d) sum_b y_b M[a, b]) / d`. Each solves a game of a few stages
from its state; the last stage carries all later weight `d^(T-1)`, as if the value of one stage were paid for ever [1].

[1] F. Aziz, L. Li, J. Shamma, G. Stüber, Smart jammer and LTE network strategies in an infinite-horizon zero-sum
repeated game with asymmetric and incomplete information, 2019, arXiv 1904.11184.
[2] R. Aumann, M. Maschler, Repeated games with incomplete information, MIT Press, 1995.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from fedbayes.errors import ConfigError

LARGEST_TREE = 200_000
"""Unknowns of a program; beyond it a stage would take minutes."""


@final
@dataclass(frozen=True)
class InformedSolution:
    """What the informed player's program says.

    Attributes:
        value: of the game, which this player is sure to get.
        mixture: of the first stage, `(K, A)`: what each type plays.
    """

    value: float
    mixture: np.ndarray


@final
@dataclass(frozen=True)
class UninformedSolution:
    """What the uninformed player's program says.

    Attributes:
        value: of the game, beyond which the other player never gets.
        mixture: of the first stage, `(B,)`.
        by_type: the most that each type can get against the whole strategy, `(K,)`.
    """

    value: float
    mixture: np.ndarray
    by_type: np.ndarray


def stage_weights(horizon: int, discount: float | None = None) -> np.ndarray:
    """Return the weights of T stages, which sum to 1.

    Args:
        horizon: T.
        discount: d, of the infinite game whose later stages the last one stands for; None for equal weights.
    """
    if horizon < 1:
        raise ConfigError(f"horizon={horizon} must be at least 1 stage.")
    if discount is None:
        return np.full(horizon, 1 / horizon)
    require_discount(discount)
    weights = (1 - discount) * discount ** np.arange(horizon)
    weights[-1] = discount ** (horizon - 1)
    return weights


def require_discount(discount: float) -> float:
    """Return the discount, if it lies strictly between 0 and 1.

    Raises:
        ConfigError: if it does not.
    """
    if not 0 < discount < 1:
        raise ConfigError(f"discount={discount} must be above 0 and below 1.")
    return discount


def require_game(payoffs: np.ndarray, prior: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return payoffs `(K, A, B)` and prior `(K,)` as float64.

    Raises:
        ConfigError: if the shapes differ, a payoff is not finite, or the prior is no distribution.
    """
    payoffs, prior = np.asarray(payoffs, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    if payoffs.ndim != 3 or 0 in payoffs.shape or not np.isfinite(payoffs).all():
        raise ConfigError(
            f"payoffs of shape {payoffs.shape} must be finite numbers of shape (types, actions, actions)."
        )
    if prior.shape != payoffs.shape[:1] or (prior < 0).any() or not np.isclose(prior.sum(), 1, rtol=0, atol=1e-9):
        raise ConfigError(f"prior={prior.tolist()} must be {len(payoffs)} probabilities that sum to 1.")
    return payoffs, prior


def informed_security(
    payoffs: np.ndarray, prior: Sequence[float] | np.ndarray, weights: np.ndarray
) -> InformedSolution:
    """Solve the informed player's program.

    Args:
        payoffs: `(K, A, B)`, to the informed player.
        prior: `(K,)`.
        weights: of the stages, `(T,)`.

    Raises:
        ConfigError: see `require_game`; or if the tree of histories is too large.
    """
    payoffs, prior = require_game(payoffs, prior)
    types, actions, replies = payoffs.shape
    width = types * actions + 1  # per history: K x A of the plan, then the level L
    levels = _levels(actions, len(weights), width)
    size = levels[-1] * width
    upper, equal, equal_to = _Rows(), _Rows(), []
    for stage, weight in enumerate(weights):
        gain = (weight * prior[:, None, None] * payoffs).reshape(width - 1, replies)
        for node in range(actions**stage):
            here = (levels[stage] + node) * width
            columns = np.arange(here, here + width - 1)
            for reply in range(replies):
                upper.add([*columns, here + width - 1], [*-gain[:, reply], 1.0])
            above = (levels[stage - 1] + node // actions) * width + node % actions
            for k in range(types):
                plays = columns[k * actions : (k + 1) * actions]
                parent = [] if stage == 0 else [above + k * actions]
                equal.add([*plays, *parent], [1.0] * actions + [-1.0] * len(parent))
                equal_to.append(1.0 if stage == 0 else 0.0)
    objective = np.zeros(size)
    objective[width - 1 :: width] = -1
    lowest = np.zeros(size)
    lowest[width - 1 :: width] = -np.inf
    solution = _solve(objective, upper.matrix(size), np.zeros(len(upper)), equal.matrix(size), equal_to, lowest)
    mixture = np.clip(solution[: width - 1].reshape(types, actions), 0, None)
    return InformedSolution(float(-objective @ solution), mixture / mixture.sum(1, keepdims=True))


def uninformed_security(
    payoffs: np.ndarray,
    weights: np.ndarray,
    prior: Sequence[float] | np.ndarray | None = None,
    regret: np.ndarray | None = None,
) -> UninformedSolution:
    """Solve the uninformed player's program, for a prior or for the regrets that a longer game has brought.

    Args:
        payoffs: `(K, A, B)`, to the informed player.
        weights: of the stages, `(T,)`.
        prior: `(K,)`: the mean over types is minimised.
        regret: `(K,)`, in place of a prior: the largest of `regret + v` over types is minimised.

    Raises:
        ConfigError: see `require_game`; or if the tree of histories is too large.
    """
    payoffs, _ = require_game(payoffs, np.full(len(payoffs), 1 / len(payoffs)) if prior is None else prior)
    types, actions, replies = payoffs.shape
    width = types + replies  # per history: v of each type, then the mixture y
    levels = _levels(actions, len(weights), width)
    size = levels[-1] * width + 1  # the last: the largest regret
    upper, upper_to, equal = _Rows(), [], _Rows()
    for stage, weight in enumerate(weights):
        for node in range(actions**stage):
            here = (levels[stage] + node) * width
            mixture = list(range(here + types, here + width))
            equal.add(mixture, [1.0] * replies)
            for action in range(actions):
                below = (levels[stage + 1] + node * actions + action) * width
                for k in range(types):
                    later = [below + k] if stage + 1 < len(weights) else []
                    costs = [*(weight * payoffs[k, action]), -1.0, *[1.0] * len(later)]
                    upper.add([*mixture, here + k, *later], costs)
                    upper_to.append(0.0)
    objective = np.zeros(size)
    if regret is None:
        objective[:types] = require_game(payoffs, prior if prior is not None else ())[1]
    else:
        objective[-1] = 1
        for k in range(types):
            upper.add([k, size - 1], [1.0, -1.0])
            upper_to.append(-float(regret[k]))
    lowest = np.full(size, -np.inf)
    lowest[:-1].reshape(-1, width)[:, types:] = 0
    if regret is None:
        lowest[-1] = 0
    solution = _solve(objective, upper.matrix(size), upper_to, equal.matrix(size), np.ones(len(equal)), lowest)
    mixture_now = np.clip(solution[types:width], 0, None)
    return UninformedSolution(float(objective @ solution), mixture_now / mixture_now.sum(), solution[:types])


def believe(belief: np.ndarray, mixture: np.ndarray, action: int) -> np.ndarray:
    """Return the belief `(K,)` after an action of a mixture `(K, A)`, by Bayes' rule; as it was if nobody plays it."""
    joint = belief * mixture[:, action]
    return belief if joint.sum() <= 0 else joint / joint.sum()


@final
class InformedPlayer:
    """Plays the approximated security strategy of the infinite game; its state is the belief of an onlooker.

    Args:
        payoffs: `(K, A, B)`.
        prior: `(K,)`.
        discount: d of the game.
        horizon: stages that each of its programs looks ahead.
    """

    def __init__(self, payoffs: np.ndarray, prior: Sequence[float] | np.ndarray, discount: float, horizon: int) -> None:
        self.payoffs, self.belief = require_game(payoffs, prior)
        self._weights = stage_weights(horizon, discount)

    def mixture(self) -> np.ndarray:
        """What each type plays now, `(K, A)`."""
        return informed_security(self.payoffs, self.belief, self._weights).mixture

    def observe(self, mixture: np.ndarray, action: int) -> None:
        """Take an action that was played into the belief."""
        self.belief = believe(self.belief, mixture, action)


@final
class UninformedPlayer:
    """Plays the approximated security strategy of the infinite game; its state is the regret of each type.

    Args:
        payoffs: `(K, A, B)`.
        prior: `(K,)`.
        discount: d of the game.
        horizon: stages that each of its programs looks ahead.
    """

    def __init__(self, payoffs: np.ndarray, prior: Sequence[float] | np.ndarray, discount: float, horizon: int) -> None:
        self.payoffs, prior = require_game(payoffs, prior)
        self._discount = require_discount(discount)
        self._weights = stage_weights(horizon, discount)
        start = uninformed_security(self.payoffs, self._weights, prior=prior)
        self.regret = -start.by_type  # what each type is still allowed to get

    def mixture(self) -> np.ndarray:
        """What it plays now, `(B,)`."""
        return uninformed_security(self.payoffs, self._weights, regret=self.regret).mixture

    def observe(self, mixture: np.ndarray, action: np.ndarray | int) -> None:
        """Take the informed player's action into the regret.

        Args:
            mixture: that was played, `(B,)`.
            action: that was seen; or where none can be seen, the mixture `(K, A)` that the informed player is expected
                to play ("expected" strategy of [1]).
        """
        if isinstance(action, int | np.integer):
            stage = self.payoffs[:, action] @ mixture
        else:
            stage = np.einsum("ka,kab,b->k", action, self.payoffs, mixture)
        self.regret = (self.regret + (1 - self._discount) * stage) / self._discount


@final
class _Rows:
    """A sparse matrix, row by row."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, columns: Sequence[int], values: Sequence[float]) -> None:
        self._rows += [self._count] * len(columns)
        self._columns += columns
        self._values += values
        self._count += 1

    def matrix(self, width: int) -> coo_array:
        return coo_array((self._values, (self._rows, self._columns)), shape=(self._count, width))


def _levels(actions: int, stages: int, width: int) -> list[int]:
    """Histories before each stage, and of all."""
    starts = [0]
    for stage in range(stages):
        starts.append(starts[-1] + actions**stage)
        if starts[-1] * width > LARGEST_TREE:
            raise ConfigError(
                f"a game of {stages} stages and {actions} actions has more than {LARGEST_TREE:,} unknowns; "
                "look fewer stages ahead."
            )
    return starts


def _solve(
    objective: np.ndarray,
    upper: coo_array,
    upper_to: Sequence[float] | np.ndarray,
    equal: coo_array,
    equal_to: Sequence[float] | np.ndarray,
    lowest: np.ndarray,
) -> np.ndarray:
    bounds = np.stack([lowest, np.full(len(lowest), np.inf)], axis=1)
    result = linprog(objective, upper, upper_to, equal, equal_to, bounds=bounds, method="highs")
    if not result.success:
        raise ArithmeticError(f"the game's linear program was not solved: {result.message}")
    return np.asarray(result.x)

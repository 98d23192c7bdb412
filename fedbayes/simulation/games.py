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

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from fedbayes.errors import ConfigError

LARGEST_TREE = 200_000
"""Unknowns of a program; beyond it a stage would take minutes."""


class InformedSolution(NamedTuple):
    """The value that the informed player is sure to get, and what each type plays in the first stage, `(K, A)`."""

    value: float
    mixture: np.ndarray


class UninformedSolution(NamedTuple):
    """The value beyond which the informed player never gets, and the mixture `(B,)` of the first stage.

    `by_type` is the most that each type can get against the whole strategy, `(K,)`.
    """

    value: float
    mixture: np.ndarray
    by_type: np.ndarray


def stage_weights(horizon: int, discount: float | None = None) -> np.ndarray:
    """Return the weights of T stages, which sum to 1.

    Args:
        horizon: T.
        discount: d, of the infinite game whose later stages the last one stands for; None for equal weights.

    Raises:
        ConfigError: if T < 1, or d is not strictly between 0 and 1.
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
    """Return the discount, or raise a ConfigError unless it lies strictly between 0 and 1."""
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
    """Solve the informed player's program for payoffs `(K, A, B)`, a prior `(K,)` and weights of the stages `(T,)`.

    Raises:
        ConfigError: see `require_game`; or if the tree of histories is too large.
    """
    payoffs, prior = require_game(payoffs, prior)
    types, actions, replies = payoffs.shape
    width = types * actions + 1  # per history: K x A of the plan, then the level L
    levels = _levels(actions, len(weights), width)
    size = levels[-1] * width
    upper, equal = _Rows(), _Rows()
    for stage, weight in enumerate(weights):
        gain = (weight * prior[:, None, None] * payoffs).reshape(width - 1, replies)
        for node in range(actions**stage):
            first = (levels[stage] + node) * width
            columns = np.arange(first, first + width - 1)
            for reply in range(replies):
                upper.add([*columns, first + width - 1], [*-gain[:, reply], 1.0])
            above = (levels[stage - 1] + node // actions) * width + node % actions
            for k in range(types):
                plays = columns[k * actions : (k + 1) * actions]
                if stage == 0:
                    equal.add(plays, [1.0] * actions, to=1.0)
                else:
                    equal.add([*plays, above + k * actions], [1.0] * actions + [-1.0])
    objective, lowest = np.zeros(size), np.zeros(size)
    objective[width - 1 :: width] = -1
    lowest[width - 1 :: width] = -np.inf
    solution = _solve(objective, upper, equal, lowest)
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
    payoffs, means = require_game(payoffs, np.full(len(payoffs), 1 / len(payoffs)) if prior is None else prior)
    types, actions, replies = payoffs.shape
    width = types + replies  # per history: v of each type, then the mixture y
    levels = _levels(actions, len(weights), width)
    size = levels[-1] * width + 1  # the last: the largest regret
    upper, equal = _Rows(), _Rows()
    for stage, weight in enumerate(weights):
        for node in range(actions**stage):
            first = (levels[stage] + node) * width
            mixture = range(first + types, first + width)
            equal.add(mixture, [1.0] * replies, to=1.0)
            for action in range(actions):
                below = (levels[stage + 1] + node * actions + action) * width
                for k in range(types):
                    later = [below + k] if stage + 1 < len(weights) else []
                    costs = [*(weight * payoffs[k, action]), -1.0, *[1.0] * len(later)]
                    upper.add([*mixture, first + k, *later], costs)
    objective, lowest = np.zeros(size), np.full(size, -np.inf)
    lowest[:-1].reshape(-1, width)[:, types:] = 0
    if regret is None:
        objective[:types] = means
        lowest[-1] = 0
    else:
        objective[-1] = 1
        for k in range(types):
            upper.add([k, size - 1], [1.0, -1.0], to=-float(regret[k]))
    solution = _solve(objective, upper, equal, lowest)
    y = np.clip(solution[types:width], 0, None)
    return UninformedSolution(float(objective @ solution), y / y.sum(), solution[:types])


def believe(belief: np.ndarray, mixture: np.ndarray, action: int) -> np.ndarray:
    """Return the belief `(K,)` after an action of a mixture `(K, A)`, by Bayes' rule; as it was if nobody plays it."""
    joint = belief * mixture[:, action]
    return belief if joint.sum() <= 0 else joint / joint.sum()


@final
class InformedPlayer:
    """Plays the approximated security strategy of the infinite game; its state is the belief of an onlooker.

    Each of its programs looks `horizon` stages ahead.
    """

    def __init__(self, payoffs: np.ndarray, prior: Sequence[float] | np.ndarray, discount: float, horizon: int) -> None:
        self.payoffs, self.belief = require_game(payoffs, prior)
        self._weights = stage_weights(horizon, discount)

    def mixture(self) -> np.ndarray:
        """Return what each type plays now, `(K, A)`."""
        return informed_security(self.payoffs, self.belief, self._weights).mixture

    def observe(self, mixture: np.ndarray, action: int) -> None:
        """Take an action that was played into the belief."""
        self.belief = believe(self.belief, mixture, action)


@final
class UninformedPlayer:
    """Plays the approximated security strategy of the infinite game; its state is the regret of each type.

    Each of its programs looks `horizon` stages ahead.
    """

    def __init__(self, payoffs: np.ndarray, prior: Sequence[float] | np.ndarray, discount: float, horizon: int) -> None:
        self.payoffs, prior = require_game(payoffs, prior)
        self._discount = require_discount(discount)
        self._weights = stage_weights(horizon, discount)
        self.regret = -uninformed_security(self.payoffs, self._weights, prior=prior).by_type

    def mixture(self) -> np.ndarray:
        """Return what it plays now, `(B,)`."""
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
    """Sparse rows of a linear program, each with its right-hand side."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self.to: list[float] = []

    def add(self, columns: Iterable[int], values: Sequence[float], to: float = 0.0) -> None:
        self._rows += [len(self.to)] * len(values)
        self._columns.extend(columns)
        self._values += values
        self.to.append(to)

    def matrix(self, width: int) -> Any:
        from scipy.sparse import coo_array

        return coo_array((self._values, (self._rows, self._columns)), shape=(len(self.to), width))


def _levels(actions: int, stages: int, width: int) -> list[int]:
    """Return the number of histories before each stage, and of all."""
    starts = [0]
    for stage in range(stages):
        starts.append(starts[-1] + actions**stage)
        if starts[-1] * width > LARGEST_TREE:
            raise ConfigError(
                f"a game of {stages} stages and {actions} actions has more than {LARGEST_TREE:,} unknowns; "
                "look fewer stages ahead."
            )
    return starts


def _solve(objective: np.ndarray, upper: _Rows, equal: _Rows, lowest: np.ndarray) -> np.ndarray:
    """Return the unknowns of least objective, with `upper` rows at most and `equal` rows at their right-hand sides."""
    from scipy.optimize import linprog  # half a second that only a jammer's run should pay

    size = len(lowest)
    bounds = np.stack([lowest, np.full(size, np.inf)], axis=1)
    result = linprog(objective, upper.matrix(size), upper.to, equal.matrix(size), equal.to, bounds=bounds)
    if not result.success:
        raise ArithmeticError(f"the game's linear program was not solved: {result.message}")
    return np.asarray(result.x)

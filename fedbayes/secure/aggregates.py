r"""Aggregates of clients' steps that nobody sees: two parties hold shares `(M, d)`, and open one vector.

    mean           sum_i n_i x_i is opened, with whole public weights n_i and without truncation
    krum           the step with the least sum of squared distances to its nearest ones; which it is, is opened
    multi_krum     the mean of the steps for which that sum is least; which they are, is opened
    median         of each entry
    trimmed_mean   of each entry, without the largest and the smallest

The definitions are those of `strategies.robust` (Blanchard et al., NeurIPS 2017; Yin et al., ICML 2018). Steps are
whole numbers: fixed point. Squares need room, and a client may send any element of the ring, whose square would wrap
and look short. So whatever judges steps takes shares in the smallest ring that holds an honest step, and widens them
exactly, one comparison for each entry.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.secure.arithmetic import Less, msb, order_statistics, widen
from fedbayes.secure.bilinear import gram
from fedbayes.secure.gmodule import module_transform
from fedbayes.secure.party import Party
from fedbayes.secure.rings import BIT, Elements, Ring

WIDE = Ring(64)
RANKS = Ring(16)
"""Where ranks of clients are counted."""


@final
@dataclass(frozen=True)
class Rule:
    """How steps are combined.

    Attributes:
        name: of the aggregate.
        weights: whole weights of the clients, for the mean; ones for all others.
        removed: how many malicious clients are allowed for.
        bound: the largest squared length of a step, in squared units of the fixed point; None for no bound.
        fewest: steps without which nothing is opened.
    """

    name: str
    weights: tuple[int, ...]
    removed: int = 0
    bound: int | None = None
    fewest: int = 1


def aggregate(party: Party, ring: Ring, steps: Elements, rule: Rule, less: Less) -> tuple[np.ndarray, list[int]]:
    """Return what is opened, int64 `(d,)`, and whose steps are in it; the sum of steps, weighted for the mean.

    For `median` with an even number of clients it is the sum of the two middle ones; for `trimmed_mean` the sum of what
    is left. `divisor` says what to divide by.

    Args:
        party: who runs it.
        ring: where the shares lie.
        steps: the party's shares, `(M, d)`.
        rule: how.
        less: the comparison.

    Raises:
        ArithmeticError: if too few steps are within the bound; no step and no sum is opened then.
    """
    count = len(steps)
    if rule.name == "mean" and rule.bound is None:
        return _opened(party, ring, steps, rule.weights), list(range(count))
    if rule.name in ("median", "trimmed_mean"):
        # Differences of two steps, and sums of all, stay signed numbers.
        wide = Ring(min(64, ring.bits + 2 + count.bit_length()))
        steps = widen(party, ring, steps, wide, less)
        ranks = middle(count) if rule.name == "median" else list(range(*_trimmed(count, rule.removed)))
        ordered = order_statistics(party, wide, steps, ranks, less)
        return _opened(party, wide, ordered, (1,) * len(ranks)), list(range(count))
    steps = widen(party, ring, steps, WIDE, less)
    products = gram(party, WIDE, steps)
    chosen = list(range(count))
    if rule.bound is not None:
        chosen = _within(party, np.diagonal(products), rule.bound, less)
    if rule.name in ("krum", "multi_krum") and len(chosen) > 1:
        chosen = _krum(party, products, chosen, rule, less)
    if len(chosen) < rule.fewest:
        raise ArithmeticError(
            f"{len(chosen)} steps are within the bound, too few to hide one; {rule.fewest} are needed"
        )
    weights = tuple(rule.weights[client] for client in chosen)
    return _opened(party, WIDE, steps[chosen], weights), chosen


def divisor(rule: Rule, chosen: list[int]) -> int:
    """Return what the opened sum is divided by."""
    if rule.name == "median":
        return len(middle(len(chosen)))
    if rule.name == "trimmed_mean":
        low, high = _trimmed(len(chosen), rule.removed)
        return high - low
    return sum(rule.weights[client] for client in chosen)


def middle(count: int) -> list[int]:
    """Return the ranks whose mean is the median."""
    return [count // 2] if count % 2 else [count // 2 - 1, count // 2]


def _trimmed(count: int, removed: int) -> tuple[int, int]:
    """Return the first rank that is left, and the one behind the last."""
    cut = min(removed, (count - 1) // 2)
    return cut, count - cut


def _opened(party: Party, ring: Ring, steps: Elements, weights: tuple[int, ...]) -> np.ndarray:
    """Open the weighted sum of steps."""
    factors = ring.reduce(np.array(weights, np.uint64))
    total = np.zeros(steps.shape[1:], ring.dtype)
    for factor, step in zip(factors, steps, strict=True):
        total = ring.add(total, ring.reduce(step * factor))
    with party.protocol("open"):
        (value,) = party.open((ring, total))
    return ring.signed(value)


def _within(party: Party, squares: Elements, bound: int, less: Less) -> list[int]:
    """Open whose squared length is at most the bound."""
    limit = WIDE.reduce(np.full(len(squares), (bound + 1) * (party.index == 0), np.uint64))
    with party.protocol("bound"):
        (is_short,) = party.open((BIT, msb(party, WIDE, WIDE.subtract(squares, limit), less)))
    return [int(client) for client in np.flatnonzero(is_short)]


def _krum(party: Party, products: Elements, clients: list[int], rule: Rule, less: Less) -> list[int]:
    """Open which clients Krum trusts, among some; of equal scores the earlier client's counts."""
    count = len(clients)
    products = products[np.ix_(clients, clients)]
    squares = np.diagonal(products)
    distances = WIDE.subtract(WIDE.add(squares[:, None], squares[None, :]), WIDE.add(products, products))
    others = [[other for other in range(count) if other != client] for client in range(count)]
    rows = np.stack([distances[client, near] for client, near in enumerate(others)], axis=1)  # (M - 1, M)
    trusted = max(1, count - rule.removed - 2)
    with party.protocol("krum"):
        nearest = order_statistics(party, WIDE, rows, list(range(min(trusted, count - 1))), less)
        scores = np.zeros(count, np.uint64)
        for row in nearest:
            scores = WIDE.add(scores, row)
        later, earlier = np.tril_indices(count, -1)
        is_less = msb(party, WIDE, WIDE.subtract(scores[later], scores[earlier]), less)
        passed = module_transform(party, RANKS, is_less)  # 1 where the later client comes before the earlier one
        stayed = RANKS.subtract(RANKS.reduce(np.full(len(later), int(party.index == 0))), passed)
        ranks = np.zeros(count, RANKS.dtype)
        np.add.at(ranks, earlier, passed)
        np.add.at(ranks, later, stayed)
        wanted = trusted if rule.name == "multi_krum" else 1
        limit = RANKS.reduce(np.full(count, wanted * int(party.index == 0)))
        (is_chosen,) = party.open((BIT, msb(party, RANKS, RANKS.subtract(ranks, limit), less)))
    return [clients[place] for place in np.flatnonzero(is_chosen)]

"""Aggregates on shares are those of the plain steps, and choose the same clients."""

import numpy as np
import pytest

from fedbayes.secure.aggregates import Rule, aggregate, divisor
from fedbayes.secure.arithmetic import COMPARISONS
from fedbayes.secure.party import in_threads
from fedbayes.secure.rings import Ring
from fedbayes.secure.stream import Shares, expanded
from strategies.robust import ROBUST, allowed

SEED = bytes(range(32))


def opened(steps, rule, bits=12, compare="tree"):
    """What both parties open of whole numbers `(M, d)`."""
    ring = Ring(bits)
    shares = [Shares.split(ring, ring.reduce(step), SEED[:31] + bytes([i])) for i, step in enumerate(steps)]
    own = [
        np.stack([share.vector for share in shares]),
        np.stack([expanded(ring, steps.shape[1:], share.seed) for share in shares]),
    ]
    first, second = in_threads(lambda party: aggregate(party, ring, own[party.index], rule, COMPARISONS[compare]))
    assert first[1] == second[1]
    assert (first[0] == second[0]).all()
    return first


def test_the_sum_has_whole_weights():
    steps = np.random.default_rng(0).integers(-1000, 1000, (4, 7))
    total, chosen = opened(steps, Rule("mean", (3, 1, 0, 9)), bits=32)
    assert (total == np.array([3, 1, 0, 9]) @ steps).all()
    assert chosen == [0, 1, 2, 3]


@pytest.mark.parametrize("compare", list(COMPARISONS))
@pytest.mark.parametrize("count", [5, 8])
@pytest.mark.parametrize("name", ["krum", "multi_krum", "median", "trimmed_mean"])
def test_robust_aggregates_are_those_of_the_plain_steps(name, count, compare):
    steps = np.random.default_rng(count).integers(-300, 300, (count, 6))
    steps[1] = 2000 - 7 * steps[0]  # far away
    steps[3] = steps[2]  # equal scores
    rule = Rule(name, (1,) * count, removed=allowed(0.2, count))
    total, chosen = opened(np.clip(steps, -2047, 2047), rule, compare=compare)
    plain = ROBUST[name](np.clip(steps, -2047, 2047).astype(float), 0.2)
    assert total / divisor(rule, chosen) == pytest.approx(plain, abs=1e-9)


def test_longer_steps_are_left_out():
    steps = np.array([[3, 4], [5, 0], [5, 1], [-3, -4]])
    total, chosen = opened(steps, Rule("mean", (1, 2, 3, 4), bound=25))
    assert chosen == [0, 1, 3]
    assert (total == [3 + 10 - 12, 4 - 16]).all()


def test_a_norm_cannot_wrap():
    # In Z/2^64 four entries of 2^32 would have length 0; the narrow ring holds no such number.
    steps = np.full((3, 4), 2**10)
    steps[0] = -(2**11)
    total, chosen = opened(steps, Rule("mean", (1, 1, 1), bound=4 * 2**20))
    assert chosen == [1, 2]
    assert (total == 2**11).all()


def test_too_few_steps_within_the_bound_are_not_opened():
    steps = Ring(12).reduce(np.array([[1, 0], [9, 9], [9, 9], [9, 9]]))
    shares = [Shares.split(Ring(12), step) for step in steps]
    sides = [np.stack([s.vector for s in shares]), np.stack([expanded(Ring(12), (2,), s.seed) for s in shares])]
    transcripts = []

    def program(party):
        transcripts.append(party.transcript)
        rule = Rule("mean", (1, 1, 1, 1), bound=4, fewest=3)
        return aggregate(party, Ring(12), sides[party.index], rule, COMPARISONS["tree"])

    with pytest.raises(ArithmeticError, match="within the bound"):
        in_threads(program)
    assert not any(row["protocol"] == "open" for transcript in transcripts for row in transcript.rows())

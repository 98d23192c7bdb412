"""No party learns anything: for every protocol at toy size, all draws of the dealer and all inputs are enumerated."""

from itertools import product

import numpy as np
import pytest
from every_draw import check

from fedbayes.secure import actions, approximate, arithmetic, bilinear, carry_tree, gmodule, lookup
from fedbayes.secure.rings import BIT, Residues, Ring, integers

SIGN, SHIFT, BOTH = actions.Sign(3, 1), actions.Shift(2, 2), actions.ShiftScale(3, 2)
TWO = Ring(2)
TABLE = np.array([[2, 3], [1, 0]])


def every(*modules):
    """All tuples of arrays with elements of these modules, `(module, shape)` each."""
    arrays = []
    for module, shape in modules:
        size = int(np.prod(shape))
        arrays.append(
            [module.reduce(np.array(values)).reshape(shape) for values in product(range(module.modulus), repeat=size)]
        )
    return list(product(*arrays))


class Case:
    """A protocol, the pairs of inputs, and what comes out: `expected` of both inputs, in `module`."""

    def __init__(self, program, domains, expected, module):
        self.arguments = program, list(product(*domains)), expected, module.add

    def faults(self, slip=None):
        return check(*self.arguments, slip)


def shared(program, modules, expected, module):
    """A case whose inputs are all in two shares; `expected` takes the secrets."""

    def of_shares(first, second):
        return expected(*(ring.add(a, b) for (ring, _), a, b in zip(modules, first, second, strict=True)))

    return Case(program, [every(*modules)] * 2, of_shares, module)


def selected(choice, x):
    return x * choice


CASES = {
    "module_transform": shared(
        lambda party, b: gmodule.module_transform(party, Residues(3), b), [(BIT, ())], lambda b: b, Residues(3)
    ),
    "cross_action": shared(
        lambda party, g, x: gmodule.cross_action(party, SIGN, "sign", g, x),
        [(BIT, ()), (SIGN.module, (1,))],
        lambda g, x: SIGN.act([g], x),
        SIGN.module,
    ),
    "action": Case(
        lambda party, operand: gmodule.action(party, SHIFT, "shift", operand),
        [every((BIT, ())), every((BIT, (2,)))],
        lambda g, x: np.roll(x[0], -int(g[0])),
        BIT,
    ),
    "triple": shared(
        lambda party, x, y: bilinear.product(party, TWO, x, y), [(TWO, ()), (TWO, ())], lambda x, y: x * y & 3, TWO
    ),
    "private_triple": Case(
        lambda party, x: bilinear.private_bilinear(party, TWO, "multiply", x, x.shape),
        [every((TWO, ()))] * 2,
        lambda x, y: x[0] * y[0] & 3,
        TWO,
    ),
    "gram": shared(lambda party, x: bilinear.gram(party, BIT, x), [(BIT, (2, 1))], lambda x: x @ x.T & 1, BIT),
    "select": shared(lambda party, s, x: arithmetic.select(party, TWO, s, x), [(BIT, ()), (TWO, ())], selected, TWO),
    "less_tree": Case(
        lambda party, x: carry_tree.less(party, x, 2),
        [every((TWO, ()))] * 2,
        lambda x, y: x[0] < y[0],
        BIT,
    ),
    "relu": shared(
        lambda party, x: arithmetic.relu(party, TWO, x, carry_tree.less), [(TWO, ())], lambda x: x * (x < 2), TWO
    ),
    "narrow": shared(
        lambda party, x: arithmetic.narrow(party, TWO, x, 1, carry_tree.less), [(TWO, ())], lambda x: x >> 1, BIT
    ),
    "table": shared(
        lambda party, i, j: lookup.look_up(party, TABLE, TWO, (BIT, i), (BIT, j)),
        [(BIT, ()), (BIT, ())],
        lambda i, j: TABLE[i, j],
        TWO,
    ),
    "widen": shared(
        lambda party, x: arithmetic.widen(party, BIT, x, Ring(2), carry_tree.less), [(BIT, ())], lambda x: x * 3, TWO
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_results_are_right_and_views_say_nothing(case):
    assert case.faults() == set()


def test_the_sigmoid_says_nothing():
    """Two bits have no room for its values, so that views alone are looked at."""

    def program(party, x):
        return approximate.sigmoid(party, TWO, x, 0, period=2, terms=1)

    pairs = list(product(every((TWO, ())), repeat=2))
    assert check(program, pairs, lambda *_: np.True_, lambda *_: np.True_) == set()


def orbit(b0, b1):
    """Which entries are 0, up to a shift: all that party 1 of `recover` learns."""
    return int((BOTH.module.add(b0[0], b1[0]) == 0).sum())


def recovery(secret_pairs, **options):
    """The faults of `recover` for pairs of shares."""

    def program(party, b):
        return [*gmodule.recover(party, BOTH, "shift_scale", b), b]

    def combine(first, second):
        *g, b0 = first
        image, b1 = second
        return (BOTH.act(g, BOTH.module.add(b0, b1)) == image).all(axis=1)

    return check(program, secret_pairs, lambda *_: np.True_, combine, **options)


def test_recovery_shows_the_orbit_alone():
    pairs = list(product(every((BOTH.module, (2,))), repeat=2))
    assert recovery(pairs, classes=(None, orbit)) == set()
    assert recovery(pairs) == {"view of 1"}, "views of two orbits differ, or the check sees nothing"


def first_one(count, p, slip=None, splits=25):
    """The faults of `first_nonzero` on all bits that are not all 0, each in a number of splits over Z/p."""
    field = Residues(p)
    masks = every((field, (count,)))[:splits]
    secrets = [np.array(bits, np.uint8) for bits in product((0, 1), repeat=count) if any(bits)]
    pairs = [((mask,), (field.subtract(secret, mask),)) for secret in secrets for (mask,) in masks]

    def expected(first, second):
        return np.argmax(field.add(first[0], second[0]))

    return check(lambda party, z: gmodule.first_nonzero(party, field, z), pairs, expected, integers(count).add, slip)


def test_the_first_one_is_found_at_a_place_that_says_nothing():
    assert first_one(2, 5) == set()


MASKS = ["module_transform", "cross_action", "action", "triple", "private_triple", "gram", "table"]


@pytest.mark.parametrize(
    ("name", "party", "place"), [(n, party, i) for n in MASKS for party in (0, 1) for i in range(3)]
)
def test_a_mask_that_is_always_zero_is_caught(name, party, place):
    """Each sample of each party, one at a time: an index, a share or an image that is not masked."""
    spoilt = []

    def slip(correlation, *samples):
        if place < len(samples[party]):
            samples[party][place][...] = 0
            spoilt.append(place)

    faults = CASES[name].faults(slip)
    assert bool(faults) == bool(spoilt)
    assert "wrong results" not in faults, "results are right, which is why a test of results would not see it"


def test_a_mask_that_serves_two_operands_is_caught():
    def slip(correlation, first, second):
        first[1][...], second[1][...] = first[0], second[0]

    assert CASES["triple"].faults(slip) == {"view of 0", "view of 1"}


def test_a_mask_that_serves_two_requests_is_caught():
    def twice(party, x, y):
        module = Residues(3)
        return module.add(*(gmodule.module_transform(party, module, bit) for bit in (x, y)))

    def slip(correlation, first, second):
        if before:
            first[0][...], second[0][...] = before.pop()
        else:
            before.append((first[0].copy(), second[0].copy()))

    before = []
    case = shared(twice, [(BIT, ()), (BIT, ())], lambda x, y: x + y, Residues(3))
    assert case.faults() == set()
    assert case.faults(slip) == {"view of 0", "view of 1"}


def test_a_mask_that_is_not_uniform_is_caught():
    def slip(correlation, first, second):
        first[1][first[1] == 2] = 0  # as a byte modulo 3 would prefer some residues

    assert CASES["module_transform"].faults(slip) == {"view of 1"}


def test_a_shift_that_is_always_zero_is_caught():
    def slip(correlation, first, second):
        first[0][...] = 0

    assert first_one(2, 5, slip) == {"view of 1"}


def test_multipliers_that_are_all_one_are_caught():
    def slip(correlation, first, second):
        first[1][...] = 0

    assert first_one(2, 5, slip, splits=5) == {"view of 1"}


def test_a_multiplier_that_may_be_zero_is_caught(monkeypatch):
    def act(acting, g, x):
        return Residues(acting.module.modulus).multiply(g[1], actions.shifted(x, g[0]))

    monkeypatch.setattr(actions.ShiftScale, "act", act)
    assert "wrong results" in first_one(2, 5, splits=5)


def test_a_field_that_is_too_small_is_caught():
    assert "wrong results" in first_one(3, 3, splits=1)


def test_a_share_that_is_sent_instead_of_its_masked_value_is_caught(monkeypatch):
    """Party 1 sends x itself in the action; the other party's part is changed to suit."""

    def action(party, acting, name, operand):
        masks = party.deal(gmodule.ActionMasks(name, 2, 2, operand.shape[:1]))
        if party.index == 0:
            (x,) = party.exchange([], [(BIT, (len(operand), 2))])
            return acting.act([operand], x) ^ masks[-1]
        party.exchange([(BIT, operand)], [])
        return masks[-1] * 0

    monkeypatch.setattr(gmodule, "action", action)
    assert "view of 0" in CASES["action"].faults()


@pytest.mark.slow
def test_the_whole_comparison_of_one_bit_numbers():
    """12.8 million draws for each pair of numbers."""
    case = Case(lambda party, x: gmodule.less(party, x, 1), [every((BIT, ()))] * 2, lambda x, y: x[0] < y[0], BIT)
    assert case.faults() == set()

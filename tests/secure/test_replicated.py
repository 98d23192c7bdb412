"""Three parties: products at three elements for each output, and the way from two shares and back."""

from itertools import product

import numpy as np
import pytest
from two_parties import split as split_in_two
from two_parties import uniform

from fedbayes.errors import RunError
from fedbayes.secure import replicated
from fedbayes.secure.replicated import bilinear, from_pair, in_threads, split, to_pair
from fedbayes.secure.rings import Ring


def whole(ring, results):
    """The secret, from every pair of neighbours."""
    assert all((results[i][1] == results[(i + 1) % 3][0]).all() for i in range(3))
    return ring.add(ring.add(results[0][0], results[1][0]), results[2][0])


@pytest.mark.parametrize("bits", [8, 20, 64])
def test_a_layer_of_one_bit_weights_costs_its_outputs(bits):
    ring = Ring(bits)
    x, signs = uniform(ring, (6, 40)), 2 * (uniform(Ring(1), (40, 3)).astype(int)) - 1
    shares = [split(ring, secret) for secret in (x, ring.reduce(signs))]

    def program(member):
        return bilinear(member, ring, "matmul", *(share[member.index] for share in shares)), member.transcript

    results = in_threads(program)
    assert (whole(ring, [result for result, _ in results]) == x.astype(object) @ signs % ring.modulus).all()
    assert {transcript.total("online").bits for _, transcript in results} == {3 * 18 * bits}
    assert {transcript.total("online").rounds for _, transcript in results} == {1}


def test_from_two_shares_to_three_and_back():
    ring, x = Ring(16), uniform(Ring(16), (50,))
    pair = [np.zeros_like(x), *split_in_two(ring, x)]

    def program(member):
        three = from_pair(member, ring, pair[member.index])
        return three, to_pair(member, ring, three)

    results = in_threads(program)
    assert (whole(ring, [three for three, _ in results]) == x).all()
    assert (ring.add(results[1][1], results[2][1]) == x).all()
    assert not results[0][1].any()


class EveryMask:
    """In place of the streams of three seeds, labelled 0, 1, 2: all values of what they expand to, counted through."""

    def __init__(self, seed, number):
        self.place = int(seed)

    def sample(self, ring, shape):
        digits = np.arange(shape[0]) // ring.modulus**self.place % ring.modulus
        return ring.reduce(digits).reshape(shape)


def views(monkeypatch, ring, x, w, masks):
    """What each party gets from the others in a product, its masks beside it, for every value of the masks."""
    labels = iter(b"012")
    monkeypatch.setattr(replicated, "fresh_seed", lambda: bytes([next(labels)]))
    monkeypatch.setattr(replicated, "Stream", masks)
    count = ring.modulus**3
    operands = [np.repeat(ring.reduce(np.array(parts)), count).reshape(3, count) for parts in (x, w)]

    def program(member):
        i, j = member.index, (member.index + 1) % 3
        z, following = bilinear(member, ring, "multiply", *((parts[i], parts[j]) for parts in operands))
        expansions = [masks(seed, 0).sample(ring, (count,)) for seed in member.seeds]
        return z, np.sort(np.ravel_multi_index([following, *expansions], 3 * [ring.modulus]))

    results = in_threads(program)
    total = ring.add(ring.add(results[0][0], results[1][0]), results[2][0])
    assert (total == sum(x) * sum(w) % ring.modulus).all()
    return [view.tobytes() for _, view in results]


def secrets_seen(monkeypatch, masks):
    """For each party and what it holds, the views that there are; more than one tell secrets apart."""
    ring, seen = Ring(1), {}
    for x in product((0, 1), repeat=3):
        for w in product((0, 1), repeat=3):
            for i, view in enumerate(views(monkeypatch, ring, x, w, masks)):
                j = (i + 1) % 3
                seen.setdefault((i, x[i], x[j], w[i], w[j]), set()).add(view)
    return {len(each) for each in seen.values()}


def test_a_product_says_nothing_to_any_party(monkeypatch):
    assert secrets_seen(monkeypatch, EveryMask) == {1}


def test_a_product_that_is_not_masked_is_caught(monkeypatch):
    class NoMask(EveryMask):
        def sample(self, ring, shape):
            return np.zeros(shape, ring.dtype)

    assert max(secrets_seen(monkeypatch, NoMask)) > 1


def test_an_error_of_one_member_ends_the_others():
    def program(member):
        if member.index == 1:
            raise ZeroDivisionError
        return member.reshare(Ring(8), np.zeros(3, np.uint8))

    with pytest.raises((ZeroDivisionError, RunError)) as caught:
        in_threads(program)
    assert caught.type is ZeroDivisionError

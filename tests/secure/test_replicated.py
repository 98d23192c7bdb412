"""Three parties: products at three elements for each output, and the way from two shares and back."""

import numpy as np
import pytest
from scipy.stats import chisquare
from two_parties import split as split_in_two
from two_parties import uniform

from fedbayes.errors import RunError
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


def test_what_a_party_gets_is_uniform_though_the_product_is_not():
    ring = Ring(4)
    ones = np.ones(20_000, np.uint8)
    shares = [split(ring, ones), split(ring, ones)]
    results = in_threads(lambda member: bilinear(member, ring, "multiply", *(s[member.index] for s in shares)))
    for _, following in results:
        assert chisquare(np.bincount(following, minlength=16)).pvalue > 1e-3 / 3


def test_an_error_of_one_member_ends_the_others():
    def program(member):
        if member.index == 1:
            raise ZeroDivisionError
        return member.reshare(Ring(8), np.zeros(3, np.uint8))

    with pytest.raises((ZeroDivisionError, RunError)) as caught:
        in_threads(program)
    assert caught.type is ZeroDivisionError

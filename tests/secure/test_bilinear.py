"""Extended triples: exact in every ring, at the edges, and at the counted costs."""

import pytest
from two_parties import run, uniform

from fedbayes.secure.bilinear import bilinear, gram, matmul, private_bilinear, product
from fedbayes.secure.party import in_threads
from fedbayes.secure.rings import Ring


@pytest.mark.parametrize("bits", [1, 7, 24, 32, 64])
def test_products_are_exact_modulo_the_ring(bits):
    ring = Ring(bits)
    x, y = uniform(ring, (40, 1)), uniform(ring, (1, 30), 1)
    x[0], y[0, 0] = ring.modulus - 1, ring.modulus // 2
    result, transcript = run(lambda party, *xy: product(party, ring, *xy), ring, (ring, x), (ring, y))
    assert (result == x.astype(object) * y.astype(object) % ring.modulus).all()
    online, offline = transcript.total("online"), transcript.total("offline")
    assert (online.bits, online.rounds, offline.bits) == (2 * 70 * bits, 1, 1200 * bits)


@pytest.mark.parametrize("bits", [8, 33, 64])
def test_matrix_products_are_exact_and_cost_their_operands(bits):
    ring = Ring(bits)
    x, y = uniform(ring, (5, 7)), uniform(ring, (7, 3), 1)
    result, transcript = run(lambda party, *xy: matmul(party, ring, *xy), ring, (ring, x), (ring, y))
    assert (result == x.astype(object) @ y.astype(object) % ring.modulus).all()
    assert transcript.total("online").bits == 2 * (35 + 21) * bits
    assert transcript.total("offline").bits == 15 * bits


def test_a_gram_matrix_opens_its_rows_once():
    ring = Ring(64)
    x = uniform(ring, (4, 9))
    x[0] = 2**63
    result, transcript = run(lambda party, share: gram(party, ring, share), ring, (ring, x))
    assert (result == x.astype(object) @ x.astype(object).T % 2**64).all()
    assert transcript.total("online").bits == 2 * 36 * 64
    assert transcript.total("offline").bits == 16 * 64


def test_a_convolution_costs_a_fourteenth_of_its_matrix_form():
    """Published: 5x5 kernels, 3 to 16 channels, 32 pixels."""
    ring = Ring(64)
    image, kernel = uniform(ring, (3, 32, 32)), uniform(ring, (16, 3, 5, 5), 1)
    result, transcript = run(
        lambda party, *xy: bilinear(party, ring, "convolve", *xy), ring, (ring, image), (ring, kernel)
    )
    patch = image[:, 3:8, 20:25].astype(object)
    assert result[7, 3, 20] == (patch * kernel[7].astype(object)).sum() % 2**64
    assert transcript.total("online").bits == 546_816
    assert transcript.total("offline").bits == 802_816
    as_matrices = 2 * (75 * 28 * 28 + 75 * 16) * 64
    assert as_matrices == 7_680_000
    scalar_triples = 16 * 28 * 28 * 75 * 64
    assert scalar_triples // 802_816 == 75


def test_operands_that_are_private_cross_the_line_once():
    ring = Ring(32)
    x, y = uniform(ring, (6, 4)), uniform(ring, (4, 2), 1)
    operands = [x, y]

    def program(party):
        other = operands[1 - party.index].shape
        return private_bilinear(party, ring, "matmul", operands[party.index], other), party.transcript

    (first, transcript), (second, _) = in_threads(program)
    assert (ring.add(first, second) == x.astype(object) @ y.astype(object) % 2**32).all()
    assert transcript.total("online").bits == (24 + 8) * 32
    assert transcript.total("offline").bits == 12 * 32

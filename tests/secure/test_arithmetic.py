"""Signs, selection, ReLU, argmax, changes of ring and order statistics: exact at the edges, at the counted costs."""

from itertools import product

import numpy as np
import pytest
from two_parties import counts, edges, run, uniform

from fedbayes.secure.arithmetic import (
    COMPARISONS,
    argmax,
    msb,
    narrow,
    network,
    order_statistics,
    relu,
    select,
    truncate,
    widen,
)
from fedbayes.secure.rings import BIT, Ring

BOTH = pytest.mark.parametrize("less", COMPARISONS.values(), ids=COMPARISONS.keys())
WIDTHS = pytest.mark.parametrize("bits", [2, 7, 8, 9, 31, 32, 33, 63, 64])


@BOTH
@WIDTHS
def test_signs_and_relu(less, bits):
    ring = Ring(bits)
    x = edges(ring)
    sign, _ = run(lambda party, share: msb(party, ring, share, less), BIT, (ring, x))
    assert (sign == (ring.signed(x) < 0)).all()
    positive, _ = run(lambda party, share: relu(party, ring, share, less), ring, (ring, x))
    assert (ring.signed(positive) == np.maximum(ring.signed(x), 0)).all()


@WIDTHS
def test_selection_keeps_or_clears(bits):
    ring = Ring(bits)
    x = np.repeat(edges(ring), 2)
    choice = np.arange(len(x), dtype=np.uint8) % 2
    result, transcript = run(lambda party, s, share: select(party, ring, s, share), ring, (BIT, choice), (ring, x))
    assert (result == x * choice).all()
    assert counts(transcript, len(x)) == (2 * (bits + 1) + 2, 1, bits + 1)


def test_one_bit_selects_a_row():
    ring, choice = Ring(64), np.array([1, 0], np.uint8)
    x = uniform(ring, (2, 30))
    result, transcript = run(lambda party, s, share: select(party, ring, s, share), ring, (BIT, choice), (ring, x))
    assert (result == x * choice[:, None]).all()
    assert transcript.total("online").bits == 2 * (60 * 65 + 2)


def test_relu_against_the_published_costs():
    """B: 1,224 bits online, 2,242 in all, 5 rounds; SecureNN: 8 n log p + 24 n = 4,642 bits, 10 rounds."""
    ring = Ring(64)
    costs = {}
    for name, less in COMPARISONS.items():
        _, transcript = run(lambda party, x: relu(party, ring, x, less), ring, (ring, edges(ring, 95)))  # noqa: B023
        costs[name] = counts(transcript, 100)
    assert costs == {"g_module": (1224, 5, 1018), "tree": (620, 8, 247)}
    secure_nn = 8 * 64 * np.log2(67) + 24 * 64
    assert round(secure_nn) == 4642
    assert (round(secure_nn / 1224, 1), round(secure_nn / (1224 + 1018), 1)) == (3.8, 2.1)


@BOTH
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_argmax_is_numpys_also_among_equals(less, count):
    ring = Ring(32)
    x = ring.reduce(np.random.default_rng(count).integers(-3, 3, (200, count)))
    x[:5] = 7
    place, largest, transcript = run(lambda party, share: argmax(party, ring, share, less), (ring, ring), (ring, x))
    assert (place == ring.signed(x).argmax(axis=1)).all()
    assert (ring.signed(largest) == ring.signed(x).max(axis=1)).all()
    one_level = (483, 4) if less is COMPARISONS["g_module"] else (234, 6)
    levels = (count - 1).bit_length()
    assert counts(transcript, 200)[:2] == ((count - 1) * (one_level[0] + 2 * (2 * 33) + 2), levels * (one_level[1] + 1))


@BOTH
@pytest.mark.parametrize(("bits", "dropped"), [(8, 1), (16, 7), (32, 12), (64, 20), (64, 63)])
def test_narrowing_is_the_exact_floor(less, bits, dropped):
    ring = Ring(bits)
    x = edges(ring)
    result, transcript = run(lambda party, s: narrow(party, ring, s, dropped, less), Ring(bits - dropped), (ring, x))
    assert result.tolist() == [value >> dropped for value in x.tolist()]
    if dropped == 12:
        assert counts(transcript, len(x))[0] == (173 if less is COMPARISONS["g_module"] else 86)


@BOTH
@pytest.mark.parametrize(("bits", "wider"), [(2, 3), (8, 9), (24, 64), (32, 64), (63, 64)])
def test_widening_keeps_the_signed_number(less, bits, wider):
    ring, large = Ring(bits), Ring(wider)
    x = edges(ring)
    result, transcript = run(lambda party, share: widen(party, ring, share, large, less), large, (ring, x))
    assert (large.signed(result) == ring.signed(x)).all()
    if bits == 24 and less is COMPARISONS["tree"]:
        assert counts(transcript, len(x))[0] == 180


def test_local_truncation_fails_as_often_as_predicted():
    """Wrong by 2^(k-f) with probability |x| / 2^k; otherwise the floor, or one below or above it."""
    ring, dropped, count = Ring(64), 14, 200_000
    for exponent in (20, 61):
        x = np.full(count, 2**exponent, np.uint64)
        result, _ = run(lambda party, share: truncate(party, ring, share, dropped), ring, (ring, x))
        error = ring.signed(result) - (2**exponent >> dropped)
        wrong = np.abs(error) > 1
        assert wrong.mean() == pytest.approx(2.0 ** (exponent - 64), rel=0.05, abs=1e-9)
        assert set(np.abs(np.abs(error[wrong]) - 2.0 ** (64 - dropped)) <= 2) <= {True}


@pytest.mark.parametrize("count", range(1, 11))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(count):
    """And therefore every sequence: Knuth's 0-1 principle. Pruned, the ranks that are asked for are right."""
    for ranks in (list(range(count)), [count // 2], [(count - 1) // 2, count // 2]):
        layers = network(count, ranks)
        for bits in product((0, 1), repeat=count):
            row = list(bits)
            for layer in layers:
                assert len({place for pair in layer for place in pair}) == 2 * len(layer)
                for low, high in layer:
                    row[low], row[high] = min(row[low], row[high]), max(row[low], row[high])
            assert [row[rank] for rank in ranks] == [sorted(bits)[rank] for rank in ranks]


@BOTH
def test_medians_are_exact(less):
    ring = Ring(32)
    x = ring.reduce(np.random.default_rng(0).integers(-(2**29), 2**29, (10, 50)))
    x[:4, :5] = 3
    result, transcript = run(lambda party, share: order_statistics(party, ring, share, [4, 5], less), ring, (ring, x))
    assert (ring.signed(result) == np.sort(ring.signed(x), axis=0)[4:6]).all()
    bits, rounds = (483, 4) if less is COMPARISONS["g_module"] else (234, 6)
    assert counts(transcript, 50)[:2] == (29 * (bits + 68), 10 * (rounds + 1))

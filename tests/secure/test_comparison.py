"""Both comparisons: all pairs of bytes, every width against Python, and the costs of every width."""

import math

import numpy as np
import pytest
from two_parties import counts

from fedbayes.secure import carry_tree, gmodule
from fedbayes.secure.party import in_threads

BOTH = pytest.mark.parametrize("less", [gmodule.less, carry_tree.less], ids=["g_module", "tree"])


def compare(less, width, pair, **options):
    """The opened answers and the transcript."""
    results = in_threads(lambda party: (less(party, pair[party.index], width, **options), party.transcript))
    return results[0][0] ^ results[1][0], results[0][1]


@BOTH
@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_all_pairs_of_bytes(less, dtype):
    x, y = (axis.ravel().astype(dtype) for axis in np.meshgrid(np.arange(256), np.arange(256)))
    assert (compare(less, 8, (x, y))[0] == (x < y)).all()
    assert (compare(less, 8, (x, y), or_equal=True)[0] == (x <= y)).all()


@BOTH
@pytest.mark.parametrize("width", range(1, 64))
def test_every_width_against_python_with_its_costs(less, width):
    rng = np.random.default_rng(width)
    top = 2**width - 1
    x, y = rng.integers(0, top, (2, 40), np.uint64, endpoint=True)
    near = np.array([0, top, top, 0, top - 1, top], np.uint64), np.array([top, 0, top, 0, top, top - 1], np.uint64)
    x, y = np.concatenate([x, x, near[0]]), np.concatenate([y, x ^ np.uint64(1), near[1]])
    strict, transcript = compare(less, width, (x, y))
    assert strict.tolist() == [a < b for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    weak, again = compare(less, width, (x, y), or_equal=True)
    assert weak.tolist() == [a <= b for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    expected = of_g_module(width) if less is gmodule.less else of_the_tree(width)
    assert counts(transcript, len(x)) == counts(again, len(x)) == expected


def of_g_module(n):
    """Online bits, rounds, offline bits by SECURE.md's table, from primes listed by hand."""
    p = next(prime for prime in (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67) if prime >= n + 3)
    log_p, size = math.ceil(math.log2(p)), n + 1
    return 2 * n + 2 * size * log_p + size + math.ceil(math.log2(size)), 4, n * log_p + size * log_p + size


def of_the_tree(n):
    """The leaves open a bit each way; a node opens three bits of both parties, the lowest node of a level two."""
    online, offline, places, levels = 2 * n, n, n, 0
    while places > 1:
        nodes, lowest = places // 2, places % 2 == 0
        online, offline = online + 6 * nodes - 2 * lowest, offline + 2 * nodes - lowest
        places, levels = places - nodes, levels + 1
    return online, 1 + levels, offline


def test_the_counts_that_were_published_or_measured():
    assert [of_g_module(n) for n in (8, 23, 31, 63)] == [(101, 4, 77), (315, 4, 259), (483, 4, 410), (1092, 4, 953)]
    assert [of_the_tree(n) for n in (31, 63)] == [(234, 6, 87), (488, 7, 182)]


@BOTH
def test_any_shape_of_numbers(less):
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert (compare(less, 5, (x, x[::-1]))[0] == (x < x[::-1])).all()
    assert compare(less, 5, (x[:0], x[:0]))[0].shape == (0, 3, 4)

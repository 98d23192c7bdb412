"""Tables of one and of several shared indices, on every input; changes of precision."""

import numpy as np
import pytest
from two_parties import counts, run, split

from fedbayes.secure.lookup import look_up, narrow_locally, widen_by_table
from fedbayes.secure.rings import Ring


@pytest.mark.parametrize(("indices", "bits"), [((1,), 1), ((8,), 64), ((4, 4), 8), ((3, 1, 2), 33)])
def test_every_input_is_read_right(indices, bits):
    ring, rings = Ring(bits), [Ring(width) for width in indices]
    table = np.random.default_rng(0).integers(-(2**40), 2**40, [2**width for width in indices])
    places = [axis.reshape(2, -1) for axis in np.indices(table.shape)]
    secrets = [(index, index.reduce(place)) for index, place in zip(rings, places, strict=True)]

    def program(party, *shares):
        return look_up(party, table, ring, *zip(rings, shares, strict=True))

    result, transcript = run(program, ring, *secrets)
    assert (result == ring.reduce(table).reshape(2, -1)).all()
    assert counts(transcript, table.size) == (2 * sum(indices), 1, table.size * bits)


def test_widening_by_a_table_is_exact_on_every_number():
    narrow, wide = Ring(8), Ring(40)
    x = np.arange(256, dtype=np.uint8)
    result, transcript = run(lambda party, share: widen_by_table(party, narrow, share, wide), wide, (narrow, x))
    assert (wide.signed(result) == narrow.signed(x)).all()
    assert counts(transcript, 256) == (16, 1, 256 * 40)


def test_local_narrowing_is_the_floor_or_one_less():
    ring, dropped, less = Ring(12), 5, Ring(7)
    x = np.repeat(np.arange(2**12, dtype=np.uint16), 50)
    shares = split(ring, x)
    result = less.add(*(narrow_locally(ring, share, dropped) for share in shares))
    lost = less.subtract(less.reduce(x >> 5), result)
    assert set(lost) == {0, 1}
    assert lost.mean() == pytest.approx(0.5 * (1 - 1 / 32), abs=0.005), "a carry of five uniform bits"

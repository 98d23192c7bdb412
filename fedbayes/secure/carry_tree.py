"""Comparison by a tree of carries: the baseline, with fewer bits and more rounds than `gmodule.less`.

`x < y` is the carry out of y + (2^n - 1 - x). Each place generates a carry (g) or propagates it (p); neighbours are
combined by (g, p) = (g_high xor p_high g_low, p_high p_low), in ceil(log2 n) levels of extended triples over Z/2.
"""

import numpy as np

from fedbayes.secure.bilinear import bilinear, private_bilinear
from fedbayes.secure.party import Party
from fedbayes.secure.rings import BIT, Elements


def less(party: Party, value: Elements, width: int, *, or_equal: bool = False) -> Elements:
    """Return a share over Z/2 of `x < y`, or of `x <= y`, where party 0 knows x and party 1 knows y.

    1 + ceil(log2 width) rounds. Online 8 width - 6 - 2 r bits, offline 3 width - 2 - r, where r is the number of levels
    whose lowest place is combined: of the widths width, ceil(width / 2), .., 2 those that are even.

    Args:
        party: who runs it.
        value: x or y, unsigned, below 2^width.
        width: bits of the numbers, 1 to 63.
        or_equal: compare by <=.
    """
    places = np.arange(width, dtype=value.dtype)
    p = (value[..., None] >> places & value.dtype.type(1)).astype(np.uint8)  # (..., width), least significant first
    if party.index == 0:
        p ^= np.uint8(1)
    with party.protocol("less_tree"):
        g = private_bilinear(party, BIT, "multiply", p, p.shape)
        if or_equal:  # a carry into the lowest place
            g[..., 0] ^= p[..., 0]
        p = p[..., 1:]  # nothing is below the lowest place, so its p is never asked for
        while g.shape[-1] > 1:
            lowest = g.shape[-1] % 2  # an odd place out waits at the low end
            high_g, low_g = g[..., lowest + 1 :: 2], g[..., lowest::2]
            high_p, low_p = p[..., lowest::2], p[..., 1 - lowest :: 2]
            products = bilinear(party, BIT, "carry", high_p, np.concatenate([low_g, low_p], axis=-1))
            pairs = high_g.shape[-1]
            g = np.concatenate([g[..., :lowest], high_g ^ products[..., :pairs]], axis=-1)
            p = products[..., pairs:]
    return g[..., 0]

"""What comparisons give: signs, selection, ReLU, maxima, order statistics, exact changes of ring, and truncation.

Every function has a comparison as its argument: `gmodule.less` has four rounds, `carry_tree.less` fewer bits. Numbers
of a ring of k bits are signed, and a comparison of two of them is right while their difference is: keep them below
2^(k-2) in absolute value.
"""

from typing import Protocol

import numpy as np

from fedbayes.secure import carry_tree, gmodule
from fedbayes.secure.party import Party
from fedbayes.secure.rings import Elements, Ring, Ring65, integers


class Less(Protocol):
    """A comparison of party 0's numbers with party 1's, as `gmodule.less`."""

    def __call__(self, party: Party, value: Elements, width: int, *, or_equal: bool = False) -> Elements:
        """Return a share over Z/2 of `x < y`, or of `x <= y`."""


COMPARISONS: dict[str, Less] = {"g_module": gmodule.less, "tree": carry_tree.less}
"""Comparisons by the name that a configuration gives them."""


def carry(party: Party, value: Elements, width: int, less: Less) -> Elements:
    """Return a share over Z/2 of whether the sum of two parties' numbers below 2^width reaches 2^width."""
    limit = value.dtype.type(2**width - 1)
    return less(party, limit - value if party.index == 0 else value, width)


def msb(party: Party, ring: Ring, x: Elements, less: Less) -> Elements:
    """Return a share over Z/2 of the top bit of x: is x negative?

    It is the sum of both shares' top bits and the carry of the lower parts, one comparison of `ring.bits - 1` bits.
    """
    width = ring.bits - 1
    top = (x >> x.dtype.type(width)).astype(np.uint8)
    with party.protocol("msb"):
        low = x & x.dtype.type(2**width - 1)
        return np.asarray(top ^ carry(party, low, width, less)) if width else top


def select(party: Party, ring: Ring, choice: Elements, x: Elements) -> Elements:
    """Return a share of `x` where the bit `choice` is 1, and of 0 elsewhere.

    One round. Online 2 (k + 1) bits for each entry of k bits and 2 for each choice, offline k + 1. In Z/2^(k+1) the
    choice times x is half of `x - (-1)^choice x`, which is even.

    Args:
        party: who runs it.
        ring: where x lies.
        choice: share over Z/2, `(...)`.
        x: share, `(..., count)`: a bit decides over all entries of the last axis. Or `(...)`: it decides over one.
    """
    wide = integers(2 * ring.modulus)
    lifted = wide.reduce(x if x.ndim > choice.ndim else x[..., None])
    with party.protocol("select"):
        difference = wide.subtract(lifted, gmodule.reflect(party, wide, choice, lifted))
    if party.index == 1:  # both halves have a remainder or none has: one goes down, the other up
        difference = wide.add(difference, wide.reduce(np.ones_like(x, shape=lifted.shape)))
    if isinstance(wide, Ring65):
        half = difference["low"] >> np.uint64(1) | difference["top"].astype(np.uint64) << np.uint64(63)
    else:
        half = difference >> difference.dtype.type(1)
    return ring.reduce(half).reshape(x.shape)


def relu(party: Party, ring: Ring, x: Elements, less: Less) -> Elements:
    """Return a share of `max(x, 0)`; one comparison and one selection."""
    with party.protocol("relu"):
        is_positive = msb(party, ring, x, less) ^ np.uint8(party.index == 0)
        return select(party, ring, is_positive, x)


def sort_pair(party: Party, ring: Ring, x: Elements, y: Elements, less: Less) -> tuple[Elements, Elements]:
    """Return shares of the smaller and of the larger of two numbers."""
    step = ring.subtract(y, x)
    down = select(party, ring, msb(party, ring, step, less), step)  # y - x where y < x, else 0
    return ring.add(x, down), ring.subtract(y, down)


def argmax(party: Party, ring: Ring, x: Elements, less: Less) -> tuple[Elements, Elements]:
    """Return shares of the largest number's place along the last axis and of the number; the first of equal ones.

    A tournament of ceil(log2 count) levels and count - 1 comparisons, a comparison and a selection each.
    """
    place = np.broadcast_to(np.arange(x.shape[-1]) * (party.index == 0), x.shape)
    candidates = np.stack([x, ring.reduce(place)], axis=-1)  # (..., count, 2): the number and its place
    with party.protocol("argmax"):
        while candidates.shape[-2] > 1:
            pairs = candidates.shape[-2] // 2
            left, right = candidates[..., : 2 * pairs : 2, :], candidates[..., 1 : 2 * pairs : 2, :]
            is_right = msb(party, ring, ring.subtract(left[..., 0], right[..., 0]), less)
            winners = ring.add(left, select(party, ring, is_right, ring.subtract(right, left)))
            candidates = np.concatenate([winners, candidates[..., 2 * pairs :, :]], axis=-2)
    return candidates[..., 0, 1], candidates[..., 0, 0]


def narrow(party: Party, ring: Ring, x: Elements, dropped: int, less: Less) -> Elements:
    """Return a share over Z/2^(k - dropped) of `floor(x / 2^dropped)`, exactly.

    The carry of the dropped bits is one comparison of that width, and 2 bits to bring it into the ring.
    """
    low, narrower = x & x.dtype.type(2**dropped - 1), Ring(ring.bits - dropped)
    with party.protocol("narrow"):
        carried = gmodule.module_transform(party, narrower, carry(party, low, dropped, less))
    return narrower.add(narrower.reduce(x >> x.dtype.type(dropped)), carried)


def widen(party: Party, ring: Ring, x: Elements, wider: Ring, less: Less) -> Elements:
    """Return a share over a larger ring of the same signed number, exactly.

    The shares of `x + 2^(k-1)`, which is not negative, reach 2^k together or not: one comparison of k bits, and 2 bits
    to bring it into the ring.
    """
    offset = 2 ** (ring.bits - 1) * (party.index == 0)
    raised = ring.add(x, ring.reduce(np.full(x.shape, offset, np.uint64)))
    top = Ring(wider.bits - ring.bits)  # the carry counts 2^k, so it is needed modulo the rest
    with party.protocol("widen"):
        carried = gmodule.module_transform(party, top, carry(party, raised, ring.bits, less))
    excess = wider.reduce(carried) << wider.dtype.type(ring.bits)
    value = wider.subtract(wider.reduce(raised), wider.reduce(excess))
    return wider.subtract(value, wider.reduce(np.full(x.shape, offset, np.uint64)))


def truncate(party: Party, ring: Ring, x: Elements, dropped: int) -> Elements:
    """Return a share of about `x / 2^dropped` without a message [1].

    It is off by one unit in about half of the cases, and wrong altogether with probability |x| / 2^k. `narrow` is
    exact.

    [1] Mohassel and Zhang, SecureML, IEEE S&P 2017.
    """
    shift = x.dtype.type(dropped)
    return x >> shift if party.index == 0 else ring.negate(ring.negate(x) >> shift)


def order_statistics(party: Party, ring: Ring, x: Elements, ranks: list[int], less: Less) -> Elements:
    """Return shares of the numbers with these ranks (0 is the smallest) along the first axis: `(len(ranks), ...)`.

    A sorting network without the comparators that the ranks do not need; a layer is one comparison and one selection.
    """
    rows = list(x)
    with party.protocol("order_statistics"):
        for layer in network(len(rows), ranks):
            lower, upper = (np.stack([rows[pair[side]] for pair in layer]) for side in (0, 1))
            for (i, j), small, large in zip(layer, *sort_pair(party, ring, lower, upper, less), strict=True):
                rows[i], rows[j] = small, large
    return np.stack([rows[rank] for rank in ranks])


def network(count: int, ranks: list[int]) -> list[list[tuple[int, int]]]:
    """Return the layers of Batcher's odd-even merge sort [1] that the ranks need, comparators (lower, upper).

    [1] Batcher, Sorting networks and their applications, AFIPS 1968.
    """
    needed, layers = set(ranks), []
    for layer in reversed(_odd_even_merge_sort(count)):
        pruned = [pair for pair in layer if needed & set(pair)]
        needed.update(place for pair in pruned for place in pair)
        if pruned:
            layers.append(pruned)
    return layers[::-1]


def _odd_even_merge_sort(count: int) -> list[list[tuple[int, int]]]:
    """Return all layers of the network; places from `count` on would hold infinities and are left out."""
    layers, size = [], 1
    while size < count:
        step = size
        while step:
            layers.append(
                [
                    (low + i, low + i + step)
                    for low in range(step % size, count, 2 * step)
                    for i in range(step)
                    if low + i + step < count and (low + i) // (2 * size) == (low + i + step) // (2 * size)
                ]
            )
            step //= 2
        size *= 2
    return layers

"""Tables on shared indices, and changes of precision by tables, after [1].

[1] had to be reconstructed from its abstract and from its predecessor [2]: no code and no full text were at hand. The
dealer shifts a table by a random r and shares it; the parties open x - r and read. A table of 2^n entries of l bits
costs 2^n l bits offline for each reading, hence numbers of few bits.

[1] Lu et al., Privacy-preserving inference for quantized BERT models, 2025.
[2] Lu et al., secure transformer inference, NDSS 2025.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fedbayes.secure.dealer import AbstractCorrelation, Arrays
from fedbayes.secure.party import Party
from fedbayes.secure.rings import Elements, Form, Ring, Shape


@final
@dataclass(frozen=True)
class Table(AbstractCorrelation):
    """A table whose every axis is shifted by a random number: the shifts and the shifted table in shares.

    Attributes:
        entries: the table in C order, as the hexadecimal digits of little-endian 64-bit numbers.
        indices: bits of each axis's index.
        bits: bits of an entry.
        batch: shape of the readings; each has shifts of its own.
    """

    entries: str
    indices: tuple[int, ...]
    bits: int
    batch: Shape

    @property
    def axes(self) -> Shape:
        """The shape of the table."""
        return tuple(2**bits for bits in self.indices)

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return a share of each shift for both parties, and party 0's share of the shifted tables."""
        shifts = [(Ring(bits), self.batch) for bits in self.indices]
        return [*shifts, *self.corrections()], shifts

    def corrections(self) -> Sequence[Form]:
        """Return the form of party 1's share of the shifted tables."""
        return [(Ring(self.bits), (*self.batch, *self.axes))]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return the shifted tables less party 0's share."""
        ring = Ring(self.bits)
        table = ring.reduce(np.frombuffer(bytes.fromhex(self.entries), "<u8").reshape(self.axes))
        places = []
        for axis, (bits, a, b) in enumerate(zip(self.indices, first, second, strict=False)):
            shift = Ring(bits).add(a, b).reshape(*self.batch, *[1] * len(self.axes))
            index = np.arange(2**bits).reshape([-1 if axis == k else 1 for k in range(len(self.axes))])
            places.append((index + shift) % 2**bits)
        return [ring.subtract(table[tuple(places)], first[-1])]


def look_up(party: Party, table: np.ndarray, ring: Ring, *indices: tuple[Ring, Elements]) -> Elements:
    """Return a share over `ring` of `table[x1, x2, ..]` for shared indices.

    One round. With indices of n1, n2, .. bits: online 2 (n1 + n2 + ..) bits, offline 2^(n1 + n2 + ..) times the bits of
    an entry.

    Args:
        party: who runs it.
        table: public whole numbers, `(2^n1, 2^n2, ..)`.
        ring: where the entries lie.
        indices: the ring of each index, and this party's share of it; all of one shape.
    """
    batch, widths = indices[0][1].shape, tuple(index.bits for index, _ in indices)
    entries = table.astype("<i8" if table.dtype.kind == "i" else "<u8").tobytes().hex()
    with party.protocol("look_up"):
        masks = party.deal(Table(entries, widths, ring.bits, batch))
        shifts, share = masks[: len(widths)], masks[-1]
        masked = [(index, index.subtract(x, shift)) for (index, x), shift in zip(indices, shifts, strict=True)]
        places = [place.astype(np.intp) for place in party.open(*masked)]
    return np.asarray(share[(*np.indices(batch, sparse=True), *places)])


def widen_by_table(party: Party, ring: Ring, x: Elements, wider: Ring) -> Elements:
    """Return a share over a larger ring of the same signed number; a reading of a table of 2^ring.bits entries."""
    return look_up(party, ring.signed(ring.reduce(np.arange(ring.modulus))), wider, (ring, x))


def narrow_locally(ring: Ring, x: Elements, dropped: int) -> Elements:
    """Return a share over Z/2^(k - dropped) of `floor(x / 2^dropped)` or of one less, without a message.

    The carry of the dropped bits is lost, and nothing else: the ring shrinks with the number, so nothing can wrap.
    """
    return Ring(ring.bits - dropped).reduce(x >> x.dtype.type(dropped))

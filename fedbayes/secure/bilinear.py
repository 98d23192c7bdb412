"""Extended Beaver triples: any bilinear map of two shared arrays in one round [1].

The dealer masks the two operands, not the scalar products inside the map: a convolution opens its image and its kernel
once, whatever the number of products. With masks x~, y~ and their image u = f(x~, y~) in shares, the parties open
d = x - x~ and e = y - y~, and f(x, y) = f(d, e) + f(d, y~) + f(x~, e) + u.

[1] Zhang et al., Morse-STF: improved protocols for privacy-preserving machine learning, 2021, arXiv 2109.11726.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedbayes.secure.dealer import AbstractCorrelation, Arrays
from fedbayes.secure.party import Party
from fedbayes.secure.rings import Elements, Form, Ring, Shape


def _convolve(image: Elements, kernel: Elements) -> Elements:
    """Return the valid cross-correlation: `(C, H, W)` and `(O, C, h, w)` give `(O, H - h + 1, W - w + 1)`."""
    windows = sliding_window_view(image, kernel.shape[2:], axis=(1, 2))  # (C, H', W', h, w)
    return np.tensordot(kernel, windows, axes=((1, 2, 3), (0, 3, 4)))


def _carry(high: Elements, low: Elements) -> Elements:
    """Return the products of `high` (..., n) with both parts of `low`: n entries, and the last n or n - 1 of them."""
    pairs = high.shape[-1]
    count = low.shape[-1] - pairs
    return np.concatenate([high * low[..., :pairs], high[..., pairs - count :] * low[..., pairs:]], axis=-1)


MAPS: dict[str, Callable[[Elements, Elements], Elements]] = {
    "multiply": np.multiply,
    "matmul": np.matmul,
    "convolve": _convolve,
    "carry": _carry,
}
"""Bilinear maps by name."""


@final
@dataclass(frozen=True)
class Triple(AbstractCorrelation):
    """Masks of both operands and their image in shares."""

    name: str
    bits: int
    x: Shape
    y: Shape

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return x~ and y~ for both parties, and u for party 0."""
        ring = Ring(self.bits)
        masks = [(ring, self.x), (ring, self.y)]
        return [*masks, (ring, self.z)], masks

    def corrections(self) -> Sequence[Form]:
        """Return the form of party 1's u: as many elements as the image has."""
        return [(Ring(self.bits), self.z)]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return u - u0."""
        ring = Ring(self.bits)
        x, y = (ring.add(a, b) for a, b in zip(first[:2], second, strict=True))
        return [ring.subtract(ring.reduce(MAPS[self.name](x, y)), first[2])]

    @property
    def z(self) -> Shape:
        """The shape of the image."""
        return _image_shape(self.name, self.x, self.y)


def _image_shape(name: str, x: Shape, y: Shape) -> Shape:
    """Return the shape of a bilinear map's image."""
    if name == "multiply":
        return np.broadcast_shapes(x, y)
    if name == "carry":
        return y
    if name == "convolve":
        return (y[0], x[1] - y[2] + 1, x[2] - y[3] + 1)
    return (*np.broadcast_shapes(x[:-2], y[:-2]), x[-2], y[-1])


def bilinear(party: Party, ring: Ring, name: str, x: Elements, y: Elements) -> Elements:
    """Return a share of `f(x, y)` for shares of x and y.

    One round. Online 2 (|x| + |y|) elements, offline |f(x, y)| elements.

    Args:
        party: who runs it.
        ring: where the numbers lie.
        name: a key of `MAPS`.
        x: share of the first operand.
        y: share of the second operand.
    """
    f = MAPS[name]
    with party.protocol(name):
        x_mask, y_mask, u = party.deal(Triple(name, ring.bits, x.shape, y.shape))
        d, e = party.open((ring, ring.subtract(x, x_mask)), (ring, ring.subtract(y, y_mask)))
    z = ring.add(u, ring.reduce(f(d, y_mask) + f(x_mask, e)))
    return ring.add(z, ring.reduce(f(d, e))) if party.index == 0 else z


def product(party: Party, ring: Ring, x: Elements, y: Elements) -> Elements:
    """Return a share of the products entry by entry, broadcast as NumPy does."""
    return bilinear(party, ring, "multiply", x, y)


def matmul(party: Party, ring: Ring, x: Elements, y: Elements) -> Elements:
    """Return a share of `x @ y`."""
    return bilinear(party, ring, "matmul", x, y)


def private_bilinear(party: Party, ring: Ring, name: str, operand: Elements, other: Shape) -> Elements:
    """Return a share of `f(x, y)` where party 0 knows x and party 1 knows y.

    One round. Online |x| + |y| elements, offline |f(x, y)| elements.

    Args:
        party: who runs it.
        ring: where the numbers lie.
        name: a key of `MAPS`.
        operand: x for party 0, y for party 1.
        other: the shape of the other party's operand.
    """
    f = MAPS[name]
    shapes = (operand.shape, other) if party.index == 0 else (other, operand.shape)
    with party.protocol(name):
        mask, u = party.deal(PrivateTriple(name, ring.bits, *shapes))
        (masked,) = party.exchange([(ring, ring.subtract(operand, mask))], [(ring, other)])
    image = f(mask, masked) if party.index == 0 else f(masked, operand)
    return ring.add(ring.reduce(image), u)


@final
@dataclass(frozen=True)
class PrivateTriple(AbstractCorrelation):
    """A mask of each party's operand and their image in shares."""

    name: str
    bits: int
    x: Shape
    y: Shape

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return x~ and u0 for party 0, y~ for party 1."""
        ring = Ring(self.bits)
        return [(ring, self.x), *self.corrections()], [(ring, self.y)]

    def corrections(self) -> Sequence[Form]:
        """Return the form of party 1's u."""
        return [(Ring(self.bits), _image_shape(self.name, self.x, self.y))]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return u - u0."""
        ring = Ring(self.bits)
        return [ring.subtract(ring.reduce(MAPS[self.name](first[0], second[0])), first[1])]


@final
@dataclass(frozen=True)
class Square(AbstractCorrelation):
    """A mask X~ of a matrix and X~ X~^T in shares."""

    bits: int
    shape: Shape

    def samples(self) -> tuple[Sequence[Form], Sequence[Form]]:
        """Return X~ for both parties, and the image for party 0."""
        mask = (Ring(self.bits), self.shape)
        return [mask, *self.corrections()], [mask]

    def corrections(self) -> Sequence[Form]:
        """Return the form of party 1's share of the image."""
        return [(Ring(self.bits), (*self.shape[:-1], self.shape[-2]))]

    def correct(self, first: Arrays, second: Arrays) -> Arrays:
        """Return u - u0."""
        ring = Ring(self.bits)
        x = ring.add(first[0], second[0])
        return [ring.subtract(ring.reduce(x @ _transposed(x)), first[1])]


def gram(party: Party, ring: Ring, x: Elements) -> Elements:
    """Return a share of the Gram matrix `x x^T` of rows; x is opened once under one mask.

    One round. Online 2 |x| elements, offline the square of the number of rows.
    """
    with party.protocol("gram"):
        mask, u = party.deal(Square(ring.bits, x.shape))
        (d,) = party.open((ring, ring.subtract(x, mask)))
    cross = d @ _transposed(mask)
    z = ring.add(u, ring.reduce(cross + _transposed(cross)))
    return ring.add(z, ring.reduce(d @ _transposed(d))) if party.index == 0 else z


def _transposed(x: Elements) -> Elements:
    """Return matrices with rows as columns."""
    return np.swapaxes(x, -1, -2)

"""Z/m: the rings and fields whose elements are shared, their bits on the wire, and fixed-point numbers in Z/2^k.

Elements are NumPy arrays of the smallest unsigned type. A module over these rings is an array with more axes.
Every element takes `bits = ceil(log2 m)` bits of a message, and a message is filled up to a whole byte once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, final

import numpy as np

from fedbayes.errors import ConfigError

Elements = np.ndarray
Shape = tuple[int, ...]
Read = Callable[[int], bytes]
"""Returns the next bytes of a stream of uniform bytes."""


class AbstractIntegers(ABC):
    """Z/m.

    Attributes:
        modulus: m.
        bits: bits of an element in a message, `ceil(log2 m)`.
        dtype: the type of an element in memory.
    """

    def __init__(self, modulus: int, dtype: np.dtype) -> None:
        self.modulus, self.bits, self.dtype = modulus, (modulus - 1).bit_length(), dtype

    @abstractmethod
    def reduce(self, values: Any) -> Elements:
        """Return whole numbers of any sign and type modulo m."""

    @abstractmethod
    def add(self, a: Elements, b: Elements) -> Elements:
        """Return `a + b`."""

    @abstractmethod
    def negate(self, a: Elements) -> Elements:
        """Return `-a`."""

    @abstractmethod
    def sample(self, read: Read, shape: Shape) -> Elements:
        """Return uniform elements, made of the next bytes of a stream."""

    def subtract(self, a: Elements, b: Elements) -> Elements:
        """Return `a - b`."""
        return self.add(a, self.negate(b))

    def to_bits(self, a: Elements) -> np.ndarray:
        """Return the bits of each element, least significant first: `(size, bits)`, uint8."""
        if self.bits == 1:
            return a.reshape(-1, 1)
        octets = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        return np.unpackbits(octets, bitorder="little").reshape(-1, 8 * self.dtype.itemsize)[:, : self.bits]

    def from_bits(self, bits: np.ndarray, shape: Shape) -> Elements:
        """Return the elements whose bits `to_bits` returned."""
        if self.bits == 1:
            return bits.reshape(shape)
        padded = np.zeros((len(bits), 8 * self.dtype.itemsize), np.uint8)
        padded[:, : self.bits] = bits  # one axis packs many times as fast as rows of a few bits
        return np.packbits(padded, bitorder="little").view(self.dtype).reshape(shape)


@final
class Ring(AbstractIntegers):
    """Z/2^bits, up to 64 bits; NumPy's unsigned numbers wrap as the ring does."""

    def __init__(self, bits: int) -> None:
        if not 1 <= bits <= 64:
            raise ValueError(f"bits={bits} must be in 1..64.")
        width = next(width for width in (8, 16, 32, 64) if bits <= width)
        super().__init__(2**bits, np.dtype(f"<u{width // 8}"))
        self._unit: Any = self.dtype.type(1)
        self._mask: Any = self.dtype.type(2**bits - 1)

    def reduce(self, values: Any) -> Elements:
        """Return whole numbers of any sign and type modulo 2^bits."""
        return np.asarray(np.asarray(values).astype(self.dtype) & self._mask)

    def add(self, a: Elements, b: Elements) -> Elements:
        """Return `a + b`."""
        return np.asarray((a + b) & self._mask)

    def negate(self, a: Elements) -> Elements:
        """Return `-a`."""
        return np.asarray((~a + self._unit) & self._mask)

    def sample(self, read: Read, shape: Shape) -> Elements:
        """Return uniform elements: the low bits of as many bytes as an element has in memory; of bits, every bit."""
        size = math.prod(shape)
        if self.bits == 1:
            return np.unpackbits(np.frombuffer(read(-(-size // 8)), np.uint8), count=size).reshape(shape)
        return self.reduce(np.frombuffer(read(size * self.dtype.itemsize), self.dtype).reshape(shape))

    def signed(self, a: Elements) -> np.ndarray:
        """Return int64 numbers from -2^(bits-1) to 2^(bits-1) - 1."""
        shift = 64 - self.bits
        return np.asarray((a.astype(np.uint64) << np.uint64(shift)).view(np.int64) >> shift)


@final
class Residues(AbstractIntegers):
    """Z/m for m <= 128, a field where m is prime; the sum of two elements fits a byte."""

    def __init__(self, modulus: int) -> None:
        if not 2 <= modulus <= 128:
            raise ValueError(f"modulus={modulus} must be in 2..128.")
        super().__init__(modulus, np.dtype(np.uint8))

    def reduce(self, values: Any) -> Elements:
        """Return whole numbers of any sign and type modulo m."""
        values = np.asarray(values)
        return np.asarray(values % values.dtype.type(self.modulus), np.uint8)

    def add(self, a: Elements, b: Elements) -> Elements:
        """Return `a + b`."""
        total = a + b
        return np.asarray(np.where(total >= self.modulus, total - np.uint8(self.modulus), total))

    def negate(self, a: Elements) -> Elements:
        """Return `-a`."""
        return np.where(a == 0, a, np.uint8(self.modulus) - a)

    def multiply(self, a: Elements, b: Elements) -> Elements:
        """Return `a b`."""
        return self.reduce(a.astype(np.uint16) * b)

    def sample(self, read: Read, shape: Shape) -> Elements:
        """Return uniform elements, from 16-bit numbers below the largest multiple of m; larger ones are rejected."""
        size, limit = math.prod(shape), 2**16 // self.modulus * self.modulus
        numbers = np.empty(0, np.uint16)
        while len(numbers) < size:
            fresh = np.frombuffer(read(2 * (size - len(numbers))), "<u2")
            numbers = np.concatenate([numbers, fresh[fresh < limit]])
        return self.reduce(numbers).reshape(shape)


@final
class Ring65(AbstractIntegers):
    """Z/2^65, to which `arithmetic.select` lifts numbers of 64 bits: the low 64 bits and the top bit."""

    def __init__(self) -> None:
        super().__init__(2**65, np.dtype([("low", "<u8"), ("top", "u1")]))

    def join(self, low: np.ndarray, top: np.ndarray | int) -> Elements:
        """Return elements from their low 64 bits and their top bit."""
        joined = np.empty(low.shape, self.dtype)
        joined["low"], joined["top"] = low, top
        return joined

    def reduce(self, values: Any) -> Elements:
        """Return whole numbers of 64 bits as elements."""
        return self.join(np.asarray(values, np.uint64), 0)

    def add(self, a: Elements, b: Elements) -> Elements:
        """Return `a + b`."""
        low = a["low"] + b["low"]
        return self.join(low, a["top"] ^ b["top"] ^ (low < a["low"]))

    def negate(self, a: Elements) -> Elements:
        """Return `-a`."""
        low = ~a["low"] + np.uint64(1)
        return self.join(low, a["top"] ^ (low != 0))

    def sample(self, read: Read, shape: Shape) -> Elements:
        """Return uniform elements."""
        return self.join(Ring(64).sample(read, shape), Ring(1).sample(read, shape))

    def to_bits(self, a: Elements) -> np.ndarray:
        """Return the bits of each element, least significant first: `(size, 65)`, uint8."""
        return np.hstack([Ring(64).to_bits(a["low"]), a["top"].reshape(-1, 1)])

    def from_bits(self, bits: np.ndarray, shape: Shape) -> Elements:
        """Return the elements whose bits `to_bits` returned."""
        return self.join(Ring(64).from_bits(bits[:, :64], shape), bits[:, 64].reshape(shape))


@lru_cache(maxsize=256)
def integers(modulus: int) -> AbstractIntegers:
    """Return Z/modulus: a ring for a power of two up to 2^65, residues for other numbers up to 128."""
    if modulus == 2**65:
        return Ring65()
    return Ring(modulus.bit_length() - 1) if modulus & (modulus - 1) == 0 else Residues(modulus)


BIT = Ring(1)
Form = tuple[AbstractIntegers, Shape]
"""Where the elements of an array lie, and its shape."""


def size_in_bits(forms: Sequence[Form]) -> int:
    """Return the bits of a message of such arrays."""
    return sum(module.bits * math.prod(shape) for module, shape in forms)


def pack(parts: Sequence[tuple[AbstractIntegers, Elements]]) -> bytes:
    """Return arrays as bytes, `bits` bits for each element, filled up with zeros to a whole byte at the end."""
    if all(module.bits == 8 * module.dtype.itemsize for module, _ in parts):
        return b"".join(array.tobytes() for _, array in parts)
    bits = [module.to_bits(array).ravel() for module, array in parts]
    return np.packbits(np.concatenate(bits), bitorder="little").tobytes()


def unpack(data: bytes, forms: Sequence[Form]) -> list[Elements]:
    """Return the arrays that `pack` packed.

    Raises:
        ValueError: if the bytes are not as many as the forms take.
    """
    total = size_in_bits(forms)
    if len(data) != -(-total // 8):
        raise ValueError(f"a message has {len(data)} bytes, {-(-total // 8)} expected; the two parties disagree.")
    arrays, start = [], 0
    if all(module.bits == 8 * module.dtype.itemsize for module, _ in forms):
        for module, shape in forms:
            arrays.append(np.frombuffer(data, module.dtype, math.prod(shape), start).reshape(shape))
            start += arrays[-1].nbytes
        return arrays
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=total, bitorder="little")
    for module, shape in forms:
        stop = start + module.bits * math.prod(shape)
        arrays.append(module.from_bits(bits[start:stop].reshape(-1, module.bits), shape))
        start = stop
    return arrays


def encode(values: np.ndarray, ring: Ring, fraction: int) -> Elements:
    """Return `round(values 2^fraction)` in a ring, ties to even; the error is at most 2^-(fraction+1).

    Raises:
        ConfigError: if a value is not finite or does not fit.
    """
    scaled = np.rint(np.asarray(values, np.float64) * 2.0**fraction)
    limit = 2.0 ** (ring.bits - 1)
    if not (np.abs(scaled) < limit).all():
        worst = np.abs(values).max()
        raise ConfigError(
            f"a value of {worst:g} does not fit {ring.bits} bits with {fraction} of them behind the point; "
            f"the largest is below {limit / 2.0**fraction:g}: lower fraction, or clip the values."
        )
    return ring.reduce(scaled.astype(np.int64))


def decode(elements: Elements, ring: Ring, fraction: int) -> np.ndarray:
    """Return elements of a ring as float64, the upper half of the ring as negative numbers."""
    return ring.signed(elements) / 2.0**fraction

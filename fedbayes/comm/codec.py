"""Arrays as bytes: Flower's own form, made and read without parsing a header as Python each time.

That parsing was most of a round's overhead. What somebody else has sent is never parsed at all, since NumPy's reader
also opens archives and evaluates headers: its bytes are compared with what NumPy would have written.
"""

import io
import math
from functools import lru_cache

import numpy as np
from flwr.app import Array

NUMPY = "numpy.ndarray"
NUMBERS = {str(np.dtype(code)): np.dtype(code) for code in "?bhilqBHILQefd"}
"""Types of numbers that an answer may have, by name."""
LONGEST = 2**31 - 1
"""Largest length of one dimension in Flower's messages."""


def encoded(value: np.ndarray) -> Array:
    """An array in C order for the wire, byte for byte Flower's own `Array(value)`."""
    data = _header(value.dtype, value.shape) + value.tobytes()
    return Array(str(value.dtype), value.shape, NUMPY, data)


def decoded(array: Array) -> np.ndarray:
    """An array of our own: what NumPy's reader gives, which gets whatever is not a plain array in C order."""
    data, dtype = array.data, np.dtype(array.dtype)
    start = 10 + int.from_bytes(data[8:10], "little")  # of version 1.0: 6 bytes magic, 2 version, 2 length, header
    plain = dtype.kind in "fiub" and data[:8] == b"\x93NUMPY\x01\x00" and b"'fortran_order': False" in data[10:start]
    if not plain or len(data) - start != math.prod(array.shape) * dtype.itemsize:
        return array.numpy()
    return np.frombuffer(data, dtype, offset=start).reshape(array.shape).copy()


def checked(name: str, array: Array) -> np.ndarray:
    """An array of somebody else's: numbers in C order, exactly as `encoded` writes them.

    Args:
        name: of the array.
        array: as it came.

    Raises:
        ValueError: if it is anything else.
    """
    if array.stype != NUMPY:
        raise ValueError(f"{name} is a {array.stype}, expected a {NUMPY}")
    said, dtype = f"{name} is said to be {array.dtype} {array.shape}", NUMBERS.get(array.dtype)
    if dtype is None:
        raise ValueError(f"{said}; send numbers, one of {', '.join(sorted(NUMBERS))}")
    if not all(type(length) is int and 0 <= length <= LONGEST for length in array.shape):
        raise ValueError(f"{said}; send whole lengths from 0 to {LONGEST}")
    # The size comes first: the header is taken from an array of that shape.
    size = math.prod(array.shape) * dtype.itemsize
    if size > len(array.data):
        raise ValueError(f"{said}, which is {size} bytes, but has {len(array.data)}; send the whole array")
    header = _header(dtype, tuple(array.shape))
    if len(array.data) != len(header) + size or not array.data.startswith(header):
        raise ValueError(f"{said}, but its bytes are not; send what numpy.save writes of such an array in C order")
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(array.shape).copy()


@lru_cache(maxsize=1024)
def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What NumPy writes before the numbers of an array in C order."""
    file = io.BytesIO()
    np.save(file, np.empty(shape, dtype), allow_pickle=False)
    return file.getvalue()[: file.tell() - math.prod(shape) * dtype.itemsize]

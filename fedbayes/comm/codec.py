"""Arrays as bytes: Flower's own form, written and read without parsing a header as Python each time.

That parsing was most of a round's overhead. What others have sent is never parsed at all, since NumPy's reader also
opens archives and evaluates headers: its bytes are compared with what NumPy would have written.
"""

import io
import math
from functools import lru_cache

import numpy as np
from flwr.app import Array

NUMPY = "numpy.ndarray"
NUMBERS = {str(np.dtype(code)): np.dtype(code) for code in "?bhilqBHILQefd"}
LONGEST = 2**31 - 1
"""Largest length of one dimension in Flower's messages."""


def encoded(value: np.ndarray) -> Array:
    """Encode an array in C order, byte for byte as Flower's own `Array(value)`."""
    data = _header(value.dtype, value.shape) + value.tobytes()
    return Array(str(value.dtype), value.shape, NUMPY, data)


def decoded(array: Array) -> np.ndarray:
    """Decode an array of our own; NumPy's reader gets whatever is not a plain array in C order."""
    dtype = NUMBERS.get(array.dtype)
    value = None if dtype is None else _plain(array, dtype)
    return array.numpy() if value is None else value


def checked(name: str, array: Array) -> np.ndarray:
    """Decode an array of somebody else's: numbers in C order, exactly as `encoded` writes them.

    Raises:
        ValueError: if it is anything else.
    """
    if array.stype != NUMPY:
        raise ValueError(f"{name} is a {array.stype}, expected a {NUMPY}")
    claim, dtype = f"{name} is said to be {array.dtype} {array.shape}", NUMBERS.get(array.dtype)
    if dtype is None:
        raise ValueError(f"{claim}; send numbers, one of {', '.join(sorted(NUMBERS))}")
    if not all(type(length) is int and 0 <= length <= LONGEST for length in array.shape):
        raise ValueError(f"{claim}; send whole lengths from 0 to {LONGEST}")
    # The size comes first: the header is taken from an array of that shape.
    size = math.prod(array.shape) * dtype.itemsize
    if size > len(array.data):
        raise ValueError(f"{claim}, which is {size} bytes, but has {len(array.data)}; send the whole array")
    value = _plain(array, dtype)
    if value is None:
        raise ValueError(f"{claim}, but its bytes are not; send what numpy.save writes of such an array in C order")
    return value


def _plain(array: Array, dtype: np.dtype) -> np.ndarray | None:
    """Read an array whose bytes are as `encoded` writes them; None for another."""
    header = _header(dtype, tuple(array.shape))
    size = math.prod(array.shape) * dtype.itemsize
    if len(array.data) != len(header) + size or not array.data.startswith(header):
        return None
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(array.shape).copy()


@lru_cache(maxsize=1024)
def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what NumPy writes before the numbers of an array in C order."""
    file = io.BytesIO()
    np.save(file, np.empty(shape, dtype), allow_pickle=False)
    return file.getvalue()[: file.tell() - math.prod(shape) * dtype.itemsize]

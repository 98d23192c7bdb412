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
    value = _plain(array)
    return array.numpy() if value is None else value


def checked(name: str, array: Array) -> np.ndarray:
    """Decode an array of somebody else's, or raise a ValueError unless it is exactly as `encoded` writes numbers."""
    value = _plain(array)
    if value is None:
        raise ValueError(
            f"{name} is said to be a {array.stype} of {array.dtype} {array.shape} in {len(array.data)} bytes, which it "
            f"is not; send numbers in C order as numpy.save writes them, of one of {', '.join(sorted(NUMBERS))}"
        )
    return value


def _plain(array: Array) -> np.ndarray | None:
    """Read an array of numbers whose bytes are as `encoded` writes them; None for another."""
    dtype, shape = NUMBERS.get(array.dtype), tuple(array.shape)
    if array.stype != NUMPY or dtype is None:
        return None
    if not all(type(length) is int and 0 <= length <= LONGEST for length in shape):
        return None
    size = math.prod(shape) * dtype.itemsize
    if size > len(array.data):  # looked at before the header, which is taken from an array of that shape
        return None
    header = _header(dtype, shape)
    if len(array.data) != len(header) + size or not array.data.startswith(header):
        return None
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape).copy()


@lru_cache(maxsize=1024)
def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what NumPy writes before the numbers of an array in C order."""
    file = io.BytesIO()
    np.save(file, np.empty(shape, dtype), allow_pickle=False)
    return file.getvalue()[: file.tell() - math.prod(shape) * dtype.itemsize]

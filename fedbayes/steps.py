r"""The step that a client took, `u - w`: its length, its multiples, its clipping.

Only floating-point arrays take steps; what else an answer holds is passed on as it is. An array that the client was not
sent, or in another shape, starts from 0.
"""

import math
from collections.abc import Iterable

import numpy as np

from fedbayes.named_arrays import Arrays


def base(sent: Arrays, name: str, like: np.ndarray) -> np.ndarray:
    """Where an array of an answer started, float64."""
    found = sent.get(name)
    return np.zeros(like.shape) if found is None or found.shape != like.shape else found.astype(np.float64)


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Euclidean, of all floating-point numbers together; summed in float64, which overflows for absurd ones only."""
    flat = (array.astype(np.float64).ravel() for array in arrays if array.dtype.kind == "f")
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(one @ one) for one in flat))


def length(sent: Arrays, learnt: Arrays) -> float:
    """`|u - w|`, of all floating-point numbers together."""
    return norm(array - base(sent, name, array) for name, array in learnt.items() if array.dtype.kind == "f")


def moved(sent: Arrays, learnt: Arrays, scale: float) -> Arrays:
    """`w + scale (u - w)`."""
    steps: Arrays = {}
    for name, array in learnt.items():
        start = base(sent, name, array)
        step = np.asarray(start + scale * (array - start), dtype=array.dtype)
        steps[name] = step if array.dtype.kind == "f" else array
    return steps


def clipped(sent: Arrays, learnt: Arrays, longest: float) -> Arrays:
    """The same, its step scaled down to `longest` if it is longer."""
    found = length(sent, learnt)
    return learnt if found <= longest else moved(sent, learnt, longest / found)

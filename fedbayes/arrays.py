"""Parameters by name, and what is done with them off the wire: flat names, mean, check, and the step of a client.

The step that a client took is `u - w`. Only floating-point arrays take steps; other arrays of an answer are passed on
as they are. An array that the client was not sent, or in another shape, starts from 0.
"""

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")
Arrays = dict[str, np.ndarray]
"""A client's or the server's parameters by name, without a client axis."""


def by_name(clients: Mapping[int, Arrays]) -> Arrays:
    """Return the arrays of each partition under one flat name, `PARTITION/NAME`."""
    return {f"{partition}/{name}": array for partition, arrays in clients.items() for name, array in arrays.items()}


def by_partition(state: Mapping[str, np.ndarray]) -> dict[int, Arrays]:
    """Return what `by_name` flattened; a name that does not begin with a partition is a ValueError."""
    clients: dict[int, Arrays] = {}
    for key, array in state.items():
        partition, _, name = key.partition("/")
        clients.setdefault(int(partition), {})[name] = array
    return clients


def under(prefix: str, arrays: Mapping[str, Value]) -> dict[str, Value]:
    """Return the arrays, or tensors, whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def block_of(name: str) -> int | None:
    """Return the block of the ViT that a parameter belongs to by its name, `....blocks.N....`; None for no block."""
    match = re.search(r"(?:^|\.)blocks\.(\d+)(?:\.|$)", name)
    return None if match is None else int(match[1])


def blocks_of(names: Iterable[str]) -> list[int]:
    """Return the blocks that parameters belong to, ascending."""
    return sorted({block for name in names if (block := block_of(name)) is not None})


def in_blocks(name: str, blocks: Container[int]) -> bool:
    """Whether a parameter belongs to one of the blocks, or to no block at all."""
    return (block := block_of(name)) is None or block in blocks


def non_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the first array that holds a NaN or an infinity."""
    bad = (name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all())
    return next(bad, None)


def mean_arrays(states: Sequence[Arrays]) -> Arrays:
    """Return the plain mean of the states whose names and shapes are the most common ones; empty for no states.

    It is summed in float64 in the order given.
    """
    forms = [tuple((name, array.shape) for name, array in state.items()) for state in states]
    usual = max(forms, key=Counter(forms).__getitem__, default=())
    alike = [state for state, form in zip(states, forms, strict=True) if form == usual]
    rows = {name: [state[name] for state in alike] for name, _ in usual}
    return {name: np.asarray(np.mean(each, axis=0, dtype=np.float64), each[0].dtype) for name, each in rows.items()}


def base(start: Arrays, name: str, like: np.ndarray) -> np.ndarray:
    """Return where an array of an answer started, float64."""
    values = start.get(name)
    return np.zeros(like.shape) if values is None or values.shape != like.shape else values.astype(np.float64)


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Return the Euclidean norm of all floating-point numbers together, summed in float64."""
    flat = (array.astype(np.float64).ravel() for array in arrays if array.dtype.kind == "f")
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(array @ array) for array in flat))


def length(start: Arrays, learnt: Arrays) -> float:
    """Return `|u - w|`, of all floating-point numbers together."""
    return norm(array - base(start, name, array) for name, array in learnt.items() if array.dtype.kind == "f")


def moved(start: Arrays, learnt: Arrays, scale: float) -> Arrays:
    """Return `w + scale (u - w)`."""
    steps: Arrays = {}
    for name, array in learnt.items():
        origin = base(start, name, array)
        step = np.asarray(origin + scale * (array - origin), dtype=array.dtype)
        steps[name] = step if array.dtype.kind == "f" else array
    return steps


def clipped(start: Arrays, learnt: Arrays, longest: float) -> Arrays:
    """Return u, its step scaled down to `longest` if it is longer."""
    distance = length(start, learnt)
    return learnt if distance <= longest else moved(start, learnt, longest / distance)

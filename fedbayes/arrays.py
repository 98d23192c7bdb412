"""Parameters by name, and what is done with them off the wire: flat names, mean, check, and the step of a client.

The step that a client took is `u - w`. Only floating-point arrays take steps; other arrays of an answer are passed on
as they are. An array that the client was not sent, or in another shape, starts from 0.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]
"""A client's or the server's parameters by name, without a client axis."""


def by_name(seen: Mapping[int, Arrays]) -> Arrays:
    """Arrays of each partition under one flat name, `PARTITION/NAME`."""
    return {f"{partition}/{name}": array for partition, arrays in seen.items() for name, array in arrays.items()}


def by_partition(state: Mapping[str, np.ndarray]) -> dict[int, Arrays]:
    """What `by_name` flattened.

    Raises:
        ValueError: if a name does not begin with a partition.
    """
    seen: dict[int, Arrays] = {}
    for key, array in state.items():
        partition, _, name = key.partition("/")
        seen.setdefault(int(partition), {})[name] = array
    return seen


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def non_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first array that holds a NaN or an infinity."""
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return name
    return None


def mean_arrays(states: Sequence[Arrays]) -> Arrays:
    """Return the plain mean of the states whose names and shapes are the most common ones; empty for no states.

    It is summed in float64 in the order given. Clients' personal parameters may be of different form.
    """
    forms = [tuple((name, array.shape) for name, array in state.items()) for state in states]
    usual = max(forms, key=Counter(forms).__getitem__, default=())
    alike = [state for state, form in zip(states, forms, strict=True) if form == usual]
    return {
        name: np.asarray(
            np.mean([state[name] for state in alike], axis=0, dtype=np.float64), dtype=alike[0][name].dtype
        )
        for name, _ in usual
    }


def base(sent: Arrays, name: str, like: np.ndarray) -> np.ndarray:
    """Where an array of an answer started, float64."""
    values = sent.get(name)
    return np.zeros(like.shape) if values is None or values.shape != like.shape else values.astype(np.float64)


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Euclidean, of all floating-point numbers together; summed in float64, which overflows for absurd ones only."""
    flat = (array.astype(np.float64).ravel() for array in arrays if array.dtype.kind == "f")
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(array @ array) for array in flat))


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
    distance = length(sent, learnt)
    return learnt if distance <= longest else moved(sent, learnt, longest / distance)

"""Parameters by name, and what is done with them off the wire: flat names for several owners, mean, check."""

from collections.abc import Mapping, Sequence

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
    """The plain mean of arrays with equal names, summed in float64 in the order given; empty for no states."""
    names = states[0] if states else {}
    return {
        name: np.asarray(np.mean([state[name] for state in states], axis=0, dtype=np.float64), dtype=like.dtype)
        for name, like in names.items()
    }

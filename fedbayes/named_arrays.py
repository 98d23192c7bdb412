"""Arrays of several owners under one flat name each, as files and states hold them."""

from collections.abc import Mapping

import numpy as np

from fedbayes.messages import Arrays


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

"""Parameters of a client's own beside global ones of the same names, told apart by a prefix."""

from collections.abc import Mapping

import numpy as np

from fedbayes.arrays import Arrays, under

OWN = "own."
"""Leads the names of what is the client's own, among what it keeps."""


def own(state: Mapping[str, np.ndarray]) -> Arrays:
    """What a client uses: its own parameters, and the global ones where it has none of its own."""
    return {**without_own(state), **under(OWN, state)}


def without_own(state: Mapping[str, np.ndarray]) -> Arrays:
    """The global ones among a client's parameters."""
    return {name: value for name, value in state.items() if not name.startswith(OWN)}

"""Personal parameters beside shared ones of the same names, told apart by a prefix."""

from collections.abc import Mapping

import numpy as np

from fedbayes.arrays import Arrays, under

PERSONAL = "personal."
"""Leads the names of personal parameters that stand beside shared ones."""


def with_prefix(state: Mapping[str, np.ndarray]) -> Arrays:
    """The parameters under their names as personal ones."""
    return {PERSONAL + name: value for name, value in state.items()}


def personalised(state: Mapping[str, np.ndarray]) -> Arrays:
    """What a client uses: personal parameters where it has them, shared ones elsewhere."""
    return {**without_personal(state), **under(PERSONAL, state)}


def without_personal(state: Mapping[str, np.ndarray]) -> Arrays:
    """The shared parameters of a client."""
    return {name: value for name, value in state.items() if not name.startswith(PERSONAL)}

"""What a strategy remembers from round to round, taken out of it and put back, and what it says of answers to it.

Ours say it by `state()` and `restore(state)`. Flower's do not: what their server optimisers remember lies in attributes
that are arrays, lists of arrays or mappings of arrays, and their wrappers hold another strategy under `strategy`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientUpdate

INNER = "strategy"
"""Where a wrapper holds what it wraps."""


def state_of(strategy: Strategy) -> Arrays:
    """Everything that the strategy remembers beside its parameters, by name."""
    if hasattr(strategy, "state"):
        return dict(strategy.state())
    found: Arrays = {}
    for name, value in vars(strategy).items():
        if name == INNER and isinstance(value, Strategy):
            found |= {f"{name}/{key}": array for key, array in state_of(value).items()}
        elif isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, float):  # such as a clipping norm that adapts
            found[f"{name}:number"] = np.asarray(value)
        elif isinstance(value, Mapping) and _arrays(value.values()):
            found |= {f"{name}/{key}": array for key, array in value.items()}
        elif isinstance(value, list) and _arrays(value):
            found |= {f"{name}[{place:06d}]": array for place, array in enumerate(value)}
    return found


def restore(strategy: Strategy, state: Arrays) -> None:
    """Put back what `state_of` gave for a strategy of the same kind."""
    if hasattr(strategy, "restore"):
        strategy.restore(state)
        return
    inner: Arrays = {}
    values: dict[str, Any] = {}
    for name, array in sorted(state.items()):
        attribute, slash, key = name.partition("/")
        if slash and attribute == INNER:
            inner[key] = array
        elif slash:
            values.setdefault(attribute, {})[key] = array
        elif name.endswith(":number"):
            values[name.removesuffix(":number")] = float(array)
        elif name.endswith("]"):
            values.setdefault(name.partition("[")[0], []).append(array)  # in order: states are sorted by name
        else:
            values[name] = array
    for attribute, value in values.items():
        setattr(strategy, attribute, value)
    if isinstance(wrapped := getattr(strategy, INNER, None), Strategy):
        restore(wrapped, inner)


def snapshot(strategy: Strategy) -> Callable[[], None]:
    """What puts a strategy back to where it is now, whatever an aggregate has made of it by then."""
    state = state_of(strategy)
    attributes = [(layer, dict(vars(layer))) for layer in layers(strategy)]

    def undo() -> None:
        for layer, was in attributes:
            vars(layer).clear()
            vars(layer).update(was)
        restore(strategy, state)

    return undo


def answer_like(strategy: Strategy, arrays: Arrays) -> Arrays:
    """What an answer to a strategy has at least, see `strategies.base`; the server's parameters if it does not say.

    Args:
        strategy: the strategy, wrapped or not.
        arrays: the server's parameters.
    """
    inner: Any = layers(strategy)[-1]
    found: Arrays = inner.answer_like(arrays) if hasattr(inner, "answer_like") else arrays
    return found


def impossible(strategy: Strategy, update: ClientUpdate) -> str | None:
    """Why an answer to a strategy cannot be true, see `strategies.base`; None if it may be, or nobody can tell."""
    inner: Any = layers(strategy)[-1]
    found: str | None = inner.impossible(update) if hasattr(inner, "impossible") else None
    return found


def counted_by(strategy: Strategy) -> Sequence[str]:
    """Names of what a strategy counts and nobody learns, see `strategies.base`; none of one of Flower's."""
    return tuple(getattr(layers(strategy)[-1], "counted", ()))


def unstepped_by(strategy: Strategy) -> Sequence[str]:
    """Names of what a server optimiser has no step for: counted, or made afresh each round."""
    return (*counted_by(strategy), *getattr(layers(strategy)[-1], "afresh", ()))


def layers(strategy: Strategy) -> list[Strategy]:
    """A strategy and what it wraps, outermost first."""
    found = [strategy]
    while isinstance(inner := getattr(found[-1], INNER, None), Strategy):
        found.append(inner)
    return found


def _arrays(values: Any) -> bool:
    """Whether these are arrays, and at least one."""
    found = list(values)
    return bool(found) and all(isinstance(one, np.ndarray) for one in found)

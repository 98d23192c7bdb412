"""What a node of the configuration names by its `_target_`; a user's mistake comes out as one."""

import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedbayes.errors import ConfigError, FedbayesError
from fedbayes.text import closest

ROOT = Path(__file__).resolve().parents[2]
METHOD_PACKAGES = ("strategies", "clients")
NOWHERE = ("Are you sure", "Empty path")
"""Hydra's words for a name that is not there; another ImportError is a fault inside what was found."""


@lru_cache(maxsize=1)
def require_own() -> None:
    """Refuse to take methods from elsewhere: `python -m` and PYTHONPATH put other folders first.

    Raises:
        ConfigError: naming the package that is in the way.
    """
    for name in METHOD_PACKAGES:
        spec = find_spec(name)
        if spec is None:
            raise ConfigError(f"{name} is not beside fedbayes in {ROOT}; install fedbayes again.")
        places = [Path(location).resolve() for location in spec.submodule_search_locations or ()]
        if places != [ROOT / name]:
            origin = spec.origin or next(iter(places), "nowhere")
            raise ConfigError(
                f"the package {name} is taken from {origin} and not from {ROOT / name}: it is first on Python's path. "
                "Use the command fedbayes instead of python -m, take that folder off PYTHONPATH, or rename it."
            )


def plain(node: DictConfig) -> dict[str, Any]:
    """A node's values."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def made_of(place: str, node: object, *, having: Sequence[str] = (), **extra: Any) -> Any:
    """What a node names, called with the arguments that it gives.

    Args:
        place: full name of the node, for messages.
        node: with a `_target_`.
        having: attributes that the result must have.
        extra: further arguments.

    Raises:
        ConfigError: if that is not to be had, does not take these arguments, or makes something else.
    """
    instance = _instantiated(place, node, later=False, **extra)
    lacking = [name for name in having if not hasattr(instance, name)]
    if lacking:
        description = f"{type(instance).__name__}, which has no {lacking[0]}"
        raise ConfigError(f"{place}._target_={_target(node)} makes a {description}; choose one of the files in conf/.")
    return instance


def later(place: str, node: object) -> "partial[Any]":
    """The same, yet to be called with the rest of its arguments: see `call`.

    Raises:
        ConfigError: see `made_of`.
    """
    return cast("partial[Any]", _instantiated(place, node, later=True))


def call(place: str, function: Any, *args: Any, **settings: Any) -> Any:
    """Call with settings from a user; a misspelt one is a user's mistake.

    Raises:
        ConfigError: if the function does not take them, or nothing can be made of it.
    """
    keywords = getattr(function, "keywords", {})
    target = getattr(function, "func", function)
    if inspect.isabstract(target):
        raise ConfigError(f"{place}: {target.__name__} is abstract; choose a class that says how.")
    try:
        inspect.signature(target).bind(*getattr(function, "args", ()), *args, **{**keywords, **settings})
    except TypeError as error:
        raise ConfigError(f"{place}: {target.__name__} {error}.") from error
    except ValueError as error:  # of a built-in
        raise ConfigError(f"{place}: {target.__name__} does not say what it takes; choose another.") from error
    return function(*args, **settings)


def takes(function: Any, name: str) -> bool:
    """Whether a function has an argument of that name, as far as it says."""
    with suppress(ValueError):
        return name in inspect.signature(function).parameters
    return False


def _target(node: object) -> object:
    return node.get("_target_") if isinstance(node, DictConfig) else None


def _not_there(place: str, target: str) -> str:
    """What is wrong with a target that cannot be imported: its module, or the name in it."""
    module, _, name = target.rpartition(".")
    with suppress(ImportError, ValueError):
        if module and find_spec(module) is not None:
            close = closest(name, vars(import_module(module)), 1)
            remedy = f"did you mean {close[0]}" if close else "correct it"
            return f"{place}._target_={target}: {module} has no {name}; {remedy}."
    return f"{place}._target_={target} is not installed; install or correct it."


def _instantiated(place: str, node: object, *, later: bool, **extra: Any) -> Any:
    require_own()
    target = _target(node)
    if not isinstance(node, DictConfig) or not isinstance(target, str):
        raise ConfigError(f"{place}._target_={target} names nothing; choose one of the files in conf/.")
    if (said := node.get("_partial_", False)) is not later:
        raise ConfigError(f"{place}._partial_={said} cannot work here; set it to {str(later).lower()}.")
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, FedbayesError):
            raise cause from None
        match = re.search(r"full_key: (\S+)", str(error))  # of a node inside this one
        inner = match[1] if match else place
        if isinstance(cause, TypeError):
            raise ConfigError(f"{inner}: {cause}.") from error
        if cause is None:  # what it names is no function
            raise ConfigError(f"{inner}: {str(error).splitlines()[0]}.") from error
        if isinstance(cause, ImportError) and any(words in str(cause) for words in NOWHERE):
            named = re.search(r"locating target '([^']*)'", str(error))
            raise ConfigError(_not_there(inner, named[1] if named else target)) from error
        raise

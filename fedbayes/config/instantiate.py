"""Objects that nodes of the configuration name by their `_target_`; a user's mistake becomes a `ConfigError`."""

import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedbayes.errors import ConfigError, FedbayesError
from fedbayes.text import closest

ROOT = Path(__file__).resolve().parents[2]
METHOD_PACKAGES = ("strategies", "clients")
UNKNOWN_NAME = ("Are you sure", "Empty path")
"""Hydra's words for a name that cannot be imported; another ImportError is a fault inside the module."""


@lru_cache(maxsize=1)
def require_own() -> None:
    """Raise a `ConfigError` if methods come from elsewhere: `python -m` and PYTHONPATH put other folders first."""
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
    """Return a node's values."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def instance_of(place: str, node: object, *, having: Sequence[str] = (), **extra: Any) -> Any:
    """Call the target of a node with the node's arguments.

    Args:
        place: full name of the node, for messages.
        node: with a `_target_`.
        having: attributes that the result must have.
        extra: further arguments.

    Raises:
        ConfigError: if the target is unknown, does not take these arguments, or its result lacks an attribute.
    """
    instance = _instantiate(place, node, is_partial=False, **extra)
    for name in having:
        if not hasattr(instance, name):
            kind = type(instance).__name__
            target = cast(DictConfig, node)["_target_"]
            raise ConfigError(
                f"{place}._target_={target} makes a {kind}, which has no {name}; choose one of the files in conf/."
            )
    return instance


def deferred(place: str, node: object) -> "partial[Any]":
    """Return the target of a node as a function of its other arguments; see `instance_of` and `call`."""
    return cast("partial[Any]", _instantiate(place, node, is_partial=True))


def call(place: str, function: Any, *args: Any, **settings: Any) -> Any:
    """Call a function with a user's settings.

    Raises:
        ConfigError: if the function does not take them, or is an abstract class.
    """
    target = getattr(function, "func", function)
    if inspect.isabstract(target):
        raise ConfigError(f"{place}: {target.__name__} is abstract; choose a class that says how.")
    keywords = {**getattr(function, "keywords", {}), **settings}
    try:
        inspect.signature(target).bind(*getattr(function, "args", ()), *args, **keywords)
    except TypeError as error:
        raise ConfigError(f"{place}: {target.__name__} {error}.") from error
    except ValueError as error:  # of a built-in
        raise ConfigError(f"{place}: {target.__name__} does not say what it takes; choose another.") from error
    return function(*args, **settings)


def takes(function: Any, name: str) -> bool:
    """Return whether a function has an argument of that name, as far as its signature tells."""
    with suppress(ValueError):
        return name in inspect.signature(function).parameters
    return False


def _instantiate(place: str, node: object, *, is_partial: bool, **extra: Any) -> Any:
    require_own()
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if not isinstance(node, DictConfig) or not isinstance(target, str):
        raise ConfigError(f"{place}._target_={target} names nothing; choose one of the files in conf/.")
    if (value := node.get("_partial_", False)) is not is_partial:
        raise ConfigError(f"{place}._partial_={value} cannot work here; set it to {str(is_partial).lower()}.")
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause, text = error.__cause__, str(error)
        if isinstance(cause, FedbayesError):
            raise cause from None
        match = re.search(r"full_key: (\S+)", text)  # of a node inside this node
        inner = match[1] if match else place
        if cause is None or isinstance(cause, TypeError):  # no cause: the target is no function
            raise ConfigError(f"{inner}: {cause or text.splitlines()[0]}.") from error
        if isinstance(cause, ImportError) and any(words in str(cause) for words in UNKNOWN_NAME):
            match = re.search(r"locating target '([^']*)'", text)
            raise ConfigError(_not_importable(inner, match[1] if match else target)) from error
        raise


def _not_importable(place: str, target: str) -> str:
    """Return why a target cannot be imported: its module is unknown, or the name in it."""
    parent, _, name = target.rpartition(".")
    while parent:
        with suppress(ImportError, ValueError):
            if find_spec(parent) is not None:
                module = import_module(parent)
                names = [*vars(module), *(inner.name for inner in iter_modules(getattr(module, "__path__", ())))]
                close = closest(name, names, 1)
                remedy = f"did you mean {close[0]}" if close else "correct it"
                return f"{place}._target_={target}: {parent} has no {name}; {remedy}."
        parent, _, name = parent.rpartition(".")
    return f"{place}._target_={target} is not installed; install or correct it."

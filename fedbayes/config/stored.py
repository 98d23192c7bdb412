"""Configurations read back from a run directory of anybody: plain values, and only known targets.

Hydra calls the function that a `_target_` names, with arguments from the same file. So a file may name the targets of
`conf/`, Flower's strategies, and the modules that the user lists in the environment variable FEDBAYES_TRUST
(`my_methods,their_methods`). Not every function of this package may be named: many read or write files.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError, scan

from fedbayes.config.compose import CONF, absent
from fedbayes.errors import RunError
from fedbayes.storage import files
from fedbayes.storage.names import CONFIG

STRATEGIES = "flwr.serverapp.strategy"
TRUST = "FEDBAYES_TRUST"


def read(directory: Path) -> DictConfig:
    """Return the configuration of a run.

    Raises:
        RunError: if there is none, it cannot be read, it is of another version, or it names an unknown target.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise RunError(f"{directory} holds no run (no {CONFIG}); give a run directory.")
    cfg = values(path)
    require_trusted(cfg, str(path))
    if not isinstance(cfg.get("names", cfg), DictConfig):
        raise RunError(f"{path}: names={cfg.names} holds no choices; run the experiment again.")
    if lacking := absent(cfg):
        raise RunError(
            f"{path} lacks {', '.join(lacking[:3])}: another version of fedbayes wrote it; read it with that "
            "one, or run the experiment again."
        )
    return cfg


def require_trusted(cfg: DictConfig, where: str) -> None:
    """Raise a `RunError`, which names the file `where`, for a target that neither `conf/` nor the user knows."""
    modules = os.environ.get(TRUST, "").replace(",", " ").split()
    for target in _targets(OmegaConf.to_container(cfg, resolve=True)):
        is_listed = any(f"{target}.".startswith(f"{module}.") for module in modules)
        if not isinstance(target, str) or not (target in _shipped() or _is_strategy(target) or is_listed):
            raise RunError(
                f"{where} names {target}, which is no target of fedbayes's configuration nor a strategy of Flower's; "
                f"if you trust it, list its module in the environment variable {TRUST}."
            )


def values(path: Path) -> DictConfig:
    """Return a file's plain values; nothing is called.

    Raises:
        RunError: if it is no configuration, or holds aliases, or references that would be looked up here, such as
            `${oc.env:...}`.
    """
    try:
        text = files.read_text(path)
        if any(isinstance(token, AliasToken) for token in scan(text)):  # it can stand for itself, or for gigabytes
            raise RunError(f"{path} holds an alias (*name), which no run writes; replace it by its value.")
        cfg = OmegaConf.create(text)
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise RunError(f"{path} cannot be read ({str(error).splitlines()[0]}); it is no configuration.") from error
    if not isinstance(cfg, DictConfig):
        raise RunError(f"{path} holds no mapping; it is no configuration.")
    if path.name == CONFIG and any(
        isinstance(text, str) and "${" in text for pair in _entries(OmegaConf.to_container(cfg)) for text in pair
    ):
        raise RunError(f"{path} holds a reference ($...), which no run writes; replace it by its value.")
    return cfg


def _entries(node: Any) -> Iterator[tuple[object, object]]:
    """Yield every key and value of nested values; entries of a list have the key None."""
    if not isinstance(node, dict | list):
        return
    for name, value in node.items() if isinstance(node, dict) else ((None, entry) for entry in node):
        yield name, value
        yield from _entries(value)


def _targets(node: Any) -> Iterator[object]:
    return (value for name, value in _entries(node) if name == "_target_")


@cache
def _shipped() -> frozenset[object]:
    """Return all targets that the files in `conf/` name."""
    contents = [OmegaConf.to_container(OmegaConf.load(path)) for path in CONF.rglob("*.yaml")]
    return frozenset(target for content in contents for target in _targets(content))


def _is_strategy(target: str) -> bool:
    module, _, name = target.rpartition(".")
    if module != STRATEGIES:
        return False
    from flwr.serverapp import strategy

    kind = getattr(strategy, name, None)
    return isinstance(kind, type) and issubclass(kind, strategy.Strategy)

"""Configurations read back from a run directory, whoever wrote it: plain values, and only known targets.

Hydra calls whatever a `_target_` names, with arguments from the same file. So what is read back may name what the files
in `conf/` name, Flower's strategies, and whatever lies in the modules that the user lists in the environment variable
FEDBAYES_TRUST (`my_methods,their_methods`), for methods outside of the repository. To lie in a package of ours is not
enough: many a function there reads or writes a file that its argument names.
"""

import os
from collections.abc import Iterator, Sequence
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
    """The configuration of a run.

    Raises:
        RunError: if there is none, it cannot be read, it is of another version, or it names what may not be called.
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
    """Refuse targets that neither `conf/` nor the user knows.

    Args:
        cfg: the configuration.
        where: it comes from, for the message.

    Raises:
        RunError: naming the first such target.
    """
    trusted = tuple(filter(None, os.environ.get(TRUST, "").replace(",", " ").split()))
    for target in _targets(OmegaConf.to_container(cfg, resolve=True)):
        if not isinstance(target, str) or not (
            target in _shipped() or _is_strategy(target) or _within(target, trusted)
        ):
            raise RunError(
                f"{where} names {target}, which is no target of fedbayes's configuration nor a strategy of Flower's; "
                f"if you trust it, list its module in the environment variable {TRUST}."
            )


def values(path: Path) -> DictConfig:
    """A file's plain values, whatever they name: nothing is called.

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
    if path.name == CONFIG and any("${" in text for text in _texts(OmegaConf.to_container(cfg))):
        raise RunError(f"{path} holds a reference ($...), which no run writes; replace it by its value.")
    return cfg


def _texts(node: Any) -> Iterator[str]:
    """Every text in nested values, names included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _texts(name)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _targets(node: Any) -> Iterator[object]:
    """Every `_target_` in nested values."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


@cache
def _shipped() -> frozenset[object]:
    """All targets that the files in `conf/` name."""
    files = [OmegaConf.to_container(OmegaConf.load(path)) for path in CONF.rglob("*.yaml")]
    return frozenset(target for file in files for target in _targets(file))


def _is_strategy(target: str) -> bool:
    """Whether it names one of Flower's strategies."""
    module, _, name = target.rpartition(".")
    if module != STRATEGIES:
        return False
    from flwr.serverapp import strategy

    found = getattr(strategy, name, None)
    return isinstance(found, type) and issubclass(found, strategy.Strategy)


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)

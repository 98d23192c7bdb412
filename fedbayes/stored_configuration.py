"""Configurations read back from a run or sweep directory, whoever wrote them: plain values, and only trusted targets.

Hydra calls whatever a `_target_` names, so a directory from somebody else could make it call anything. What is read
back may name classes and functions of fedbayes, of Flower's strategies, and of the modules that the user lists in the
environment variable FEDBAYES_TRUST (`my_methods,their_methods`), for methods outside of the repository.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedbayes.configuration import CONF
from fedbayes.errors import RunError

FILE = "config.yaml"
SWEEP = "multirun.yaml"
"""What Hydra writes into the folder of a sweep."""
SEARCH = "optimization_results.yaml"
"""What Optuna's sweeper writes into the folder of a search."""
TRUSTED = ("fedbayes", "strategies", "clients", "flwr.serverapp.strategy")
TRUST = "FEDBAYES_TRUST"
HYDRA = re.compile(r"(?!.*_target_)hydra([/.](launcher|sweeper)([/.]\w+)*|\.mode|\.sweep\.subdir)=")
"""What of Hydra's own settings a sweep may bring along: how its jobs are started, but nothing that is called."""
_ABSENT = object()


def read(directory: Path) -> DictConfig:
    """The configuration of a run.

    Raises:
        RunError: if there is none, it cannot be read, it is of another version, or it names what may not be called.
    """
    path = directory / FILE
    if not path.is_file():
        raise RunError(f"{directory} holds no run (no {FILE}); give a run directory.")
    cfg = _load(path)
    require_trusted(cfg, str(path))
    lacking = [name for name in _expected(cfg) if OmegaConf.select(cfg, name, default=_ABSENT) is _ABSENT]
    if lacking:
        raise RunError(
            f"{path} lacks {', '.join(lacking[:3])}: another version of fedbayes wrote it; read it with that "
            "one, or run the experiment again."
        )
    return cfg


def require_trusted(cfg: DictConfig, where: str) -> None:
    """Refuse targets outside of fedbayes, Flower's strategies and the modules in FEDBAYES_TRUST.

    Args:
        cfg: the configuration.
        where: it comes from, for the message.

    Raises:
        RunError: naming the first such target.
    """
    trusted = (*TRUSTED, *filter(None, os.environ.get(TRUST, "").replace(",", " ").split()))
    for target in _targets(OmegaConf.to_container(cfg)):
        if not isinstance(target, str) or not _within(target, trusted):
            raise RunError(
                f"{where} names {target}, which is not a part of {', '.join(trusted)}; if you trust it, list its "
                f"module in the environment variable {TRUST}."
            )
        # A trusted module's own imports are reached through its name, too: fedbayes.run.os.system.
        module = getattr(_found(target, where), "__module__", None)
        if not isinstance(module, str) or not _within(module, trusted):
            raise RunError(f"{where} names {target}, which {module or 'nobody'} defines; name it where it is defined.")


def sweep_again(words: Sequence[str]) -> list[str]:
    """The command's words, with `resume=SWEEP_DIR` replaced by the sweep that it names.

    Raises:
        RunError: if the sweep's file cannot be read, or asks for more than a sweep needs.
    """
    found = [Path(word.partition("=")[2].strip("'\"")) for word in words if word.startswith("resume=")]
    if found and (found[0] / SEARCH).is_file():
        raise RunError(
            f"resume={found[0]} names a search, whose next values depend on all results before; start it again, with "
            "hydra.sweeper.storage and hydra.sweeper.study_name if it shall go on from what it knows."
        )
    if not found or not (found[0] / SWEEP).is_file():
        return list(words)
    if len(words) > 1:
        raise RunError(f"resume={found[0]} names a sweep, which goes on as it began; leave out the other words.")
    folder = found[0].absolute()
    said = OmegaConf.select(_load(folder / SWEEP), "hydra.overrides") or {}
    task, own = list(said.get("task") or ()), list(said.get("hydra") or ())
    refused = [one for one in own if not HYDRA.match(one) and not one.startswith("hydra.sweep.dir=")]
    if refused and not os.environ.get(TRUST):
        raise RunError(
            f"{folder / SWEEP} sets {refused[0]}, which may call anything; if you trust it, set the environment "
            f"variable {TRUST} to the modules that its methods are in."
        )
    own = [one for one in own if not one.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return ["-m", *map(str, task), *own, f"hydra.sweep.dir='{quoted}'", f"resume='{quoted}'"]


def _load(path: Path) -> DictConfig:
    """A file's plain values.

    Raises:
        RunError: if it is no configuration, or holds references that would be looked up here, such as `${oc.env:...}`.
    """
    try:
        cfg = OmegaConf.load(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise RunError(f"{path} cannot be read ({str(error).splitlines()[0]}); it is no configuration.") from error
    if not isinstance(cfg, DictConfig):
        raise RunError(f"{path} holds no mapping; it is no configuration.")
    if path.name == FILE and "${" in text:
        raise RunError(f"{path} holds a reference ($...), which no run writes; replace it by its value.")
    return cfg


def _expected(cfg: DictConfig) -> list[str]:
    """Keys that a configuration of this version has, as far as they do not depend on its method and data."""
    own, engine = CONF / "config.yaml", CONF / "simulation" / f"{OmegaConf.select(cfg, 'names.simulation')}.yaml"
    fresh = {**OmegaConf.load(own), "simulation": OmegaConf.load(engine) if engine.is_file() else {}}
    keys = [name for name in fresh if name not in ("defaults", "hydra", "dry_run")]
    return keys + [f"{name}.{key}" for name in keys if isinstance(fresh[name], DictConfig) for key in fresh[name]]


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


def _found(target: str, where: str) -> Any:
    try:
        return get_object(target)
    except Exception as error:  # whatever a module's import may raise
        raise RunError(f"{where} names {target}, which cannot be loaded ({error}).") from error


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)

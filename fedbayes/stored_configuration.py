"""Configurations read back from a run or sweep directory, whoever wrote them: plain values, and only known targets.

Hydra calls whatever a `_target_` names, with arguments from the same file. So what is read back may name what the files
in `conf/` name, Flower's strategies, and whatever lies in the modules that the user lists in the environment variable
FEDBAYES_TRUST (`my_methods,their_methods`), for methods outside of the repository. To lie in a package of ours is not
enough: many a function there reads or writes a file that its argument names.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError, scan

from fedbayes import files
from fedbayes.configuration import CONF, absent
from fedbayes.errors import RunError

FILE = "config.yaml"
MULTIRUN = "multirun.yaml"
"""What Hydra writes into the folder of a sweep."""
STRATEGIES = "flwr.serverapp.strategy"
SEARCH = "optimization_results.yaml"
"""What Optuna's sweeper writes into the folder of a search."""
TRUST = "FEDBAYES_TRUST"
HYDRA = re.compile(
    r"hydra/launcher=(basic|joblib)|hydra/sweeper=(basic|optuna|search)|hydra\.mode=\w+"
    r"|hydra\.launcher\.(n_jobs|batch_size|pre_dispatch|verbose|timeout)=[\w*-]+"
    r"|hydra\.sweeper\.(n_trials|n_jobs|direction|max_failure_rate|max_batch_size|sampler\.seed)=[\w.-]+"
    r"|hydra\.sweep\.subdir=(?!.*\.\.)[\w.,=-]+"
)
"""What of Hydra's own settings a sweep may bring along, word for word: nothing that names a file or is called."""
CHOICE = re.compile(r"[\w,()*'\"-]+")
"""A choice in a group: names of files in `conf/`, and no way out of it."""


def read(directory: Path) -> DictConfig:
    """The configuration of a run.

    Raises:
        RunError: if there is none, it cannot be read, it is of another version, or it names what may not be called.
    """
    path = directory / FILE
    if not path.is_file():
        raise RunError(f"{directory} holds no run (no {FILE}); give a run directory.")
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


def sweep_again(words: Sequence[str]) -> list[str]:
    """The command's words, with `resume=SWEEP_DIR` replaced by the sweep that it names.

    Raises:
        RunError: if the sweep's file cannot be read, or asks for more than values and choices.
    """
    found = [Path(word.partition("=")[2].strip("'\"")) for word in words if word.startswith("resume=")]
    if found and (found[0] / SEARCH).is_file():
        raise RunError(
            f"resume={found[0]} names a search, whose next values depend on all results before; start it again."
        )
    if not found or not (found[0] / MULTIRUN).is_file():
        return list(words)
    if len(words) > 1:
        if "-m" in words or "--multirun" in words:  # somebody writes the whole sweep down again
            return list(words)
        raise RunError(f"resume={found[0]} names a sweep, which goes on as it began; leave out the other words.")
    folder = found[0].absolute()
    plain: Any = OmegaConf.to_container(values(folder / MULTIRUN))  # references stay text
    said = (plain.get("hydra") or {}).get("overrides") or {}
    task, own = [str(one) for one in said.get("task") or ()], [str(one) for one in said.get("hydra") or ()]
    own = [one for one in own if not one.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    task = [one for one in task if not _sets(one, "resume")]  # of an earlier time that it went on
    outside = [one for one in task if _sets(one, "run_dir") and not _inside(one.partition("=")[2], folder)]
    refused = outside + [one for one in task if not _is_value(one)] + [one for one in own if not HYDRA.fullmatch(one)]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    again = [f"hydra.sweep.dir='{quoted}'", f"resume='{quoted}'"]
    if refused:
        raise RunError(
            f"{folder / MULTIRUN} sets {refused[0]}, which may call or write anything; if you trust it, type the sweep "
            f"again: fedbayes -m ... {' '.join(again)}."
        )
    return ["-m", *task, *own, *again]


def _sets(word: str, name: str) -> bool:
    """Whether a word of a sweep sets that value."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0].strip() == name


def _inside(path: str, folder: Path) -> bool:
    """Whether a path, as a word of a sweep gives it, is a single one that lies in the sweep's folder."""
    plain = path.strip("'\"")
    return re.fullmatch(r"[\w./ -]+", plain) is not None and Path(plain).resolve().is_relative_to(folder.resolve())


def _is_value(word: str) -> bool:
    """Whether a word of a sweep sets a value or makes a choice, and nothing of Hydra's own."""
    key, equals, value = word.partition("=")
    key = key.lstrip("+~").partition("@")[0]
    if not equals or not re.match(r"\w", key) or key.partition("/")[0].partition(".")[0] == "hydra" or "${" in word:
        return False
    return CHOICE.fullmatch(value) is not None if "/" in key or (CONF / key).is_dir() else True


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
    if path.name == FILE and any("${" in text for text in _texts(OmegaConf.to_container(cfg))):
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

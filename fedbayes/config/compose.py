"""Where the configuration files lie, composing them, and Hydra's complaints about them in one line."""

import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fedbayes.errors import ConfigError, require_bool
from fedbayes.storage.names import SUBJECT

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The configuration files, beside the packages in a checkout, an editable install and a wheel alike."""

NAMED = (*SUBJECT, "simulation", "attack")
"""Groups whose choice is written down; a configuration alone does not tell."""

_NOWHERE = object()

SWITCHES = ("dry_run", "evaluate.gallery", "data.download", "backbone.pretrained")
"""Values that are true or false, where a configuration has them, and that no constructor of ours checks."""

SWEEPS = ("hydra/launcher/joblib", "hydra/sweeper/optuna")
"""Choices that Hydra has from the extra `[sweeps]`."""

NO_NAME = "Config group override must be"
"""How Hydra's ValueError begins about a choice that is no name."""

SECTIONS = (
    *NAMED,
    "tracking",
    "prompts",
    "generator",
    "head",
    "inference",
    "optim",
    "server",
    "augment",
    "evaluate",
    "checkpoint",
    "faults",
    "update_clipping",
    "privacy",
    "simulation.engine",
    "method.client",
    "method.strategy",
)
"""Parts of a configuration that hold keys, whatever is chosen."""


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that the command line would give.

    Args:
        overrides: as on the command line, e.g. `["method=fedvpt", "rounds=3"]`.

    Returns:
        The configuration, with the names of the chosen groups under `names`.

    Raises:
        ConfigError: if an override names no key or no choice, or cannot be understood, or one text is given for a list.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r} is one text; give a list of such, as in {overrides.split()!r}.")
    try:
        cfg = _compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise in_one_line(error, overrides) from error
    except ValueError as error:
        if not is_hydras(error):
            raise
        raise in_one_line(error, overrides) from error
    choices = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    return named(cfg, choices)


def named(cfg: DictConfig, choices: Mapping[str, Any]) -> DictConfig:
    """Write the names of the chosen groups under `names`.

    Raises:
        ConfigError: if a group has no single choice.
    """
    unnamed = [group for group in NAMED if not isinstance(choices.get(group), str)]
    if unnamed:
        raise ConfigError(f"{unnamed[0]} has no choice; `fedbayes-info` lists them.")
    with open_dict(cfg):
        cfg.names = {group: choices[group] for group in NAMED}
    return cfg


def require_alone(overrides: Sequence[str]) -> None:
    """Refuse other values beside `resume`: a run goes on as it began.

    Raises:
        ConfigError: naming the first.
    """
    others = [one for one in overrides if not one.startswith(("resume=", "hydra"))]
    if others:
        raise ConfigError(f"{others[0]} cannot be given beside resume: a run goes on as it began; leave it out.")


def require_options(words: Sequence[str]) -> None:
    """Refuse options that Hydra's command line has not, or not alone; none of ours is one.

    Args:
        words: of the command.

    Raises:
        ConfigError: naming the first.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(list(words))
    except ArgumentError as error:
        raise ConfigError(f"{error}; see `fedbayes --help` for values, `fedbayes --hydra-help` for options.") from error
    if unknown:
        key = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        instead = f"did you mean {key}" if (CONF / key).is_dir() else _instead(key, ())
        raise ConfigError(f"{unknown[0]} is no option; values are given as KEY=VALUE, without dashes; {instead}.")
    if known.resolve and not (known.cfg or known.help):
        raise ConfigError("--resolve shows nothing by itself; `fedbayes --cfg job --resolve` shows the configuration.")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values.

    Raises:
        ConfigError: if a value is missing or points to nothing, or a switch is neither true nor false.
    """
    for name in SWITCHES:
        require_bool(name, OmegaConf.select(cfg, name, default=False))
    try:
        found = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise in_one_line(error, ()) from error
    assert isinstance(found, dict)
    for name in SECTIONS:
        value = OmegaConf.select(cfg, name)
        if not isinstance(value, DictConfig):
            raise ConfigError(f"{name}={value} replaces a whole section; set its keys, as in {name}.KEY=VALUE.")
    if lacking := absent(cfg):
        raise ConfigError(f"{lacking[0]} is missing; leave out what removes it.")
    return {str(name): value for name, value in found.items()}


def absent(cfg: DictConfig) -> list[str]:
    """Keys that every configuration of this version has and this one has not, whatever its method and data."""
    own, engine = CONF / "config.yaml", CONF / "simulation" / f"{OmegaConf.select(cfg, 'names.simulation')}.yaml"
    engines = [path for path in (CONF / "simulation" / "base" / "engine.yaml", engine) if path.is_file()]
    simulation = {key: value for path in engines for key, value in OmegaConf.load(path).items() if key != "defaults"}
    fresh = {**OmegaConf.load(own), "simulation": OmegaConf.create(simulation)}
    keys = [name for name in fresh if name not in ("defaults", "hydra", "dry_run")]
    keys += [f"{name}.{key}" for name in keys if isinstance(fresh[name], DictConfig) for key in fresh[name]]
    return [name for name in keys if OmegaConf.select(cfg, name, default=_NOWHERE) is _NOWHERE]


def is_hydras(error: Exception) -> bool:
    """Whether it is a complaint of Hydra's or OmegaConf's about what the user asked for."""
    return isinstance(error, HydraException | OmegaConfBaseException) or str(error).startswith(NO_NAME)


def in_one_line(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """What Hydra says over several lines, with the remedy.

    Args:
        error: from Hydra or OmegaConf.
        overrides: those that led to it.
    """
    lacking = [
        one for one in SWEEPS if isinstance(error, MissingConfigException) and one in (error.missing_cfg_file or "")
    ]
    if lacking:
        return ConfigError(f"{lacking[0]} is not installed; install fedbayes[sweeps].")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return ConfigError(f"{group}={name} does not exist; choose one of {', '.join(error.options)}.")
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{error.full_key} has no default; add {error.full_key}=VALUE.")
    text = str(error)
    if text.startswith(NO_NAME):
        return ConfigError(f"{text.rstrip('.')}; choose groups by name, as in method=fedvpt.")
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return ConfigError(f"{unknown[1]} is no key of the configuration; {_instead(unknown[1], overrides)}.")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override} cannot be understood as KEY=VALUE; quote it, or see `fedbayes --help`.")
    return ConfigError(re.sub(r"\s+", " ", text).strip())


def quoted(value: object) -> str:
    """A value's text as an override gives it, whatever characters it has.

    Hydra takes a backslash for itself but before a quote, so only those there are doubled.
    """
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return f"'{text}'"


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def _instead(key: str, overrides: Sequence[str]) -> str:
    """Keys that may have been meant: close ones, or else those that stand in the same place."""
    choices = [one for one in overrides if (CONF / one.partition("=")[0]).is_dir() and "," not in one]
    try:
        cfg = _compose(choices)
    except (HydraException, OmegaConfBaseException):
        cfg = _compose(())
    with open_dict(cfg):
        del cfg["hydra"]
    keys = list(_keys(OmegaConf.to_container(cfg), ""))
    close = difflib.get_close_matches(key, keys, n=1)
    if close:
        return f"did you mean {close[0]}"
    place = key.rpartition(".")[0]
    beside = [one.rpartition(".")[2] for one in keys if one.rpartition(".")[0] == place]
    return f"{place} has {', '.join(beside)}" if place and beside else f"there are {', '.join(sorted(map(str, cfg)))}"


def _keys(node: object, prefix: str) -> Iterator[str]:
    """Full names of all single values."""
    if not isinstance(node, dict):
        yield prefix[:-1]
        return
    for name, value in node.items():
        if name not in ("_target_", "_partial_"):
            yield from _keys(value, f"{prefix}{name}.")

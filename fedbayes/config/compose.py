"""Where the configuration files lie, composing them, and what is wrong with a configuration in one line."""

import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from fedbayes.errors import ConfigError, require_bool
from fedbayes.storage.names import SUBJECT
from fedbayes.text import closest, in_one_line

CONF = Path(__file__).resolve().parents[2] / "conf"
"""Folder of the configuration files, beside the packages in a checkout and a wheel alike."""

NAMED = (*SUBJECT, "simulation", "attack", "emulator", "sparse")
"""Groups whose choice is written under `names`."""

SWITCHES = ("dry_run", "evaluate.gallery", "data.download", "backbone.pretrained", "backbone.random")
"""Values that are true or false, and that no constructor checks."""

EXTRAS = {
    "hydra/launcher/joblib": "sweeps",
    "hydra/sweeper/optuna": "sweeps",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
}
"""The extra that brings a choice of Hydra's."""

SECTIONS = (
    *(*NAMED, "tracking", "prompts", "generator", "head", "inference", "optim", "server", "augment", "evaluate"),
    *("owner", "checkpoint", "faults", "update_clipping", "privacy"),
    *("simulation.engine", "method.client", "method.strategy"),
)
"""Parts of a configuration that hold keys, whatever is chosen."""

CONFIGURATION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
"""Errors of Hydra and OmegaConf about the user's input or files."""

PATHS = ("data.root", "backbone.checkpoint", "owner.emulator", "run_dir", "resume")
"""Values that name a file or a folder."""

_ABSENT = object()


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that the command line would give, with the names of the chosen groups under `names`.

    Raises:
        ConfigError: if an override names no key or no choice, or cannot be understood, or is not in a list.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r} is one text; give a list of such, as in {overrides.split()!r}.")
    overrides = expand_home(overrides)
    require_overrides(overrides)
    try:
        cfg = _compose(overrides)
    except CONFIGURATION_ERRORS as error:
        raise explain(error, overrides) from error
    with open_dict(cfg):
        runtime = cfg.pop("hydra").runtime
    return name_choices(cfg, runtime)


def name_choices(cfg: DictConfig, runtime: Any) -> DictConfig:
    """Write the names of the chosen groups under `names`, as `hydra.runtime` has them, and make paths absolute.

    Raises:
        ConfigError: if a group has no single choice, or its file begins with a byte-order mark.
    """
    for group in NAMED:
        if not isinstance(runtime.choices.get(group), str):
            raise ConfigError(f"{group} has no choice; `fedbayes-info` lists them.")
    for source in runtime.config_sources:
        if source.schema == "file" and Path(source.path) != CONF:
            for group, name in runtime.choices.items():
                path = Path(source.path) / group / f"{name}.yaml"
                # Hydra would not know the first line, such as `# @package _global_`, for an invisible sign.
                if path.is_file() and path.read_bytes().startswith(BOM_UTF8):
                    raise ConfigError(f"{path} begins with a byte-order mark; save it as UTF-8 without one.")
    with open_dict(cfg):
        cfg.names = {group: runtime.choices[group] for group in NAMED}
    for key in PATHS:
        with suppress(OmegaConfBaseException):  # what points to nothing, or has no parent, is said later
            if isinstance(value := OmegaConf.select(cfg, key), str) and value:
                OmegaConf.update(cfg, key, os.path.abspath(Path(value).expanduser()))
    return cfg


def expand_home(words: Sequence[str]) -> list[str]:
    """Return the overrides with the home directory in the place of `~`, which Hydra cannot read."""
    result = []
    for word in words:
        key, _, value = word.partition("=")
        if key in (*PATHS, "data.name", "hydra.sweep.dir") and value.startswith("~"):
            word = f"{key}={quoted(Path(value).expanduser())}"
        result.append(word.replace("://~/", f"://{Path.home()}/") if key == "hydra.searchpath" else word)
    return result


def require_alone(overrides: Sequence[str]) -> None:
    """Raise a `ConfigError` if there are other values beside `resume`: a run goes on as it began."""
    if others := [word for word in overrides if not word.startswith(("resume=", "hydra"))]:
        raise ConfigError(f"{others[0]} cannot be given beside resume: a run goes on as it began; leave it out.")


def require_overrides(words: Sequence[str]) -> None:
    """Raise a `ConfigError` for a word that Hydra cannot read as KEY=VALUE, and for a choice without a name."""
    parser = OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            key, equals, value = word.partition("=")
            quoting = f"quote the value for Hydra, and both for the shell: '{key}=\"{value}\"'"
            remedy = quoting if equals else "add =VALUE"
            raise ConfigError(f"{word} cannot be understood as KEY=VALUE; {remedy}.") from error
        if (CONF / override.key_or_group).is_dir() and not override.is_delete() and override.value() is None:
            raise ConfigError(f"{word} names no choice; choose one by name, as in method=fedvpt.")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values; a missing value or section is a `ConfigError`."""
    for name in SWITCHES:
        require_bool(name, OmegaConf.select(cfg, name, default=False))
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error, ()) from error
    assert isinstance(values, dict)
    for name in SECTIONS:
        value = OmegaConf.select(cfg, name)
        if not isinstance(value, DictConfig):
            raise ConfigError(f"{name}={value} replaces a whole section; set its keys, as in {name}.KEY=VALUE.")
    if lacking := absent(cfg):
        raise ConfigError(f"{lacking[0]} is missing; leave out what removes it.")
    return {str(name): value for name, value in values.items()}


def absent(cfg: DictConfig) -> list[str]:
    """Return keys that every configuration of this version has and this one has not, whatever its method and data."""
    chosen = CONF / "simulation" / f"{OmegaConf.select(cfg, 'names.simulation')}.yaml"
    engines = [path for path in (CONF / "simulation" / "base" / "engine.yaml", chosen) if path.is_file()]
    simulation = {key: value for path in engines for key, value in OmegaConf.load(path).items() if key != "defaults"}
    fresh = {**OmegaConf.load(CONF / "config.yaml"), "simulation": OmegaConf.create(simulation)}
    keys = [name for name in fresh if name not in ("defaults", "hydra", "dry_run")]
    keys += [f"{name}.{key}" for name in keys if isinstance(fresh[name], DictConfig) for key in fresh[name]]
    return [name for name in keys if OmegaConf.select(cfg, name, default=_ABSENT) is _ABSENT]


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Return one of `CONFIGURATION_ERRORS` that overrides led to as a single line with a remedy."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        for choice, extra in EXTRAS.items():
            if choice in error.missing_cfg_file:
                return ConfigError(f"{error.missing_cfg_file} is not installed; install fedbayes[{extra}].")
        group, _, name = error.missing_cfg_file.rpartition("/")
        if error.options:
            close = closest(name, error.options)
            choices = f"did you mean {' or '.join(close)}? " if close else ""
            return ConfigError(f"{group}={name} does not exist; {choices}`fedbayes-info {group}` lists all.")
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{error.full_key} has no default; add {error.full_key}=VALUE.")
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"a file of the configuration is no UTF-8 ({error}); save it as UTF-8.")
    if isinstance(error, YAMLError):
        return ConfigError(f"a file cannot be read as YAML ({in_one_line(error)}); indent by spaces, and correct it.")
    unknown = getattr(error.__cause__, "full_key", None)
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    for key in keys if unknown else ():
        if key == unknown or key.startswith(f"{unknown}."):
            return ConfigError(f"{key} is no key of the configuration; {suggestion(key, overrides)}.")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override} cannot be understood as KEY=VALUE; see `fedbayes --help`.")
    return ConfigError(in_one_line(error))


def quoted(value: object) -> str:
    """Return a value's text as an override gives it, whatever characters it has.

    Hydra takes a backslash for itself but before a quote, so only those there are doubled.
    """
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), str(value))
    return f"'{text}'"


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def suggestion(key: str, overrides: Sequence[str] = ()) -> str:
    """Return the keys that a misspelt one may stand for, in words, where overrides choose groups."""
    choices = [word for word in overrides if (CONF / word.partition("=")[0]).is_dir() and "," not in word]
    try:
        cfg = _compose(choices)
    except CONFIGURATION_ERRORS:
        cfg = _compose(())
    with open_dict(cfg):
        del cfg["hydra"]
    keys = list(_keys(OmegaConf.to_container(cfg)))
    if close := closest(key, keys, 1):
        return f"did you mean {close[0]}"
    place = key.rpartition(".")[0]
    beside = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == place]
    return f"{place} has {', '.join(beside)}" if place and beside else f"there are {', '.join(sorted(map(str, cfg)))}"


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    """Yield the full names of all single values."""
    if not isinstance(node, Mapping):
        yield prefix[:-1]
        return
    for name, value in node.items():
        if name not in ("_target_", "_partial_"):
            yield from _keys(value, f"{prefix}{name}.")

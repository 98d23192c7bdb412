"""From an app's run configuration to fedbayes's configuration; server, clients and `launch.py` read it alike."""

import os
import shlex
from functools import lru_cache

from omegaconf import DictConfig

from fedbayes.config.compose import compose
from fedbayes.errors import ConfigError

ENGINE = "flower"


@lru_cache(maxsize=1)
def configuration(overrides: str) -> DictConfig:
    """The configuration that a text of overrides asks for; not to be changed, as equal texts share it.

    Args:
        overrides: separated and quoted as in a shell.

    Raises:
        ConfigError: if they cannot be understood, or ask for another engine or for what only the command does.
    """
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides={overrides} cannot be split ({error}); close the quotation.") from error
    cfg = compose([f"simulation={ENGINE}", *words])
    if cfg.names.simulation != ENGINE:
        raise ConfigError(
            f"simulation={cfg.names.simulation} does not run in a Flower App; leave it out, or run fedbayes."
        )
    if cfg.resume is not None:
        raise ConfigError(
            f"resume={cfg.resume} does not work in a Flower App, whose clients forget what they kept when a run ends; "
            "run it again, or resume a run of the command fedbayes."
        )
    if cfg.dry_run:
        raise ConfigError(f"dry_run={cfg.dry_run} does not run in a Flower App; ask fedbayes, it starts nothing.")
    return cfg


def go_to(directory: object) -> None:
    """Take relative paths from where the user is, not from where Flower started this process."""
    if directory:
        os.chdir(str(directory))

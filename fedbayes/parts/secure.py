"""Aggregation on secret shares from the configuration, and what does not fit it."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from fedbayes.config.instantiate import call, deferred, plain
from fedbayes.errors import ConfigError, require_choice
from fedbayes.secure.sharing import Sharing
from fedbayes.server.strategy import ServerStrategy


def sharing(cfg: DictConfig) -> Sharing | None:
    """Return how clients share their steps; None where they send them.

    Raises:
        ConfigError: for a value out of range, or a choice that shares do not fit.
    """
    settings: dict[str, Any] = plain(cfg.privacy)["secure"]
    kind = require_choice("privacy.secure.kind", settings.pop("kind"), ("none", "shares"))
    settings.pop("_target_"), settings.pop("_partial_")
    if kind == "none":
        return None
    reasons = {
        f"privacy.noise={cfg.privacy.noise}": cfg.privacy.noise is not None
        and "the noise's clipping would need the steps",
        f"update_clipping.max_norm={cfg.update_clipping.max_norm}": cfg.update_clipping.max_norm is not None
        and "a step cannot be shortened that nobody sees; set privacy.secure.bound",
        f"faults.nan={cfg.faults.nan}": cfg.faults.nan and "a share has no NaN: clients refuse what is not finite",
        f"sparse={cfg.names.get('sparse')}": "_target_" in cfg.sparse and "every client sends all of a step in shares",
        "simulation=flower": cfg.names.simulation == "flower"
        and "replies to deployed aggregators are not sealed yet, so its server would hold both shares",
        f"method={cfg.names.method}": OmegaConf.select(cfg, "method.client.pool")
        and "its one client has the images of all",
    }
    for setting, reason in reasons.items():
        if reason:
            raise ConfigError(f"privacy.secure.kind=shares does not go with {setting}: {reason}.")
    return cast(Sharing, call("privacy.secure", Sharing, **settings))


def secure(cfg: DictConfig, strategy: ServerStrategy) -> ServerStrategy:
    """Return a strategy that opens nothing but the aggregate, or the one that is there where clients send steps."""
    shared = sharing(cfg)
    if shared is None:
        return strategy
    build = deferred("privacy.secure", OmegaConf.masked_copy(cfg.privacy.secure, ["_target_", "_partial_"]))
    return cast(ServerStrategy, call("privacy.secure", build, strategy, shared))

"""Aggregation on secret shares from the configuration, and what does not fit it.

`fedbayes.secure` is imported where clients share, and by no other run.
"""

from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf

from fedbayes.config.instantiate import call, deferred
from fedbayes.errors import ConfigError, require_choice
from fedbayes.server.strategy import ServerStrategy
from fedbayes.simulation.client import CohortClient

if TYPE_CHECKING:
    from fedbayes.secure.sharing import Sharing


def _sharing(cfg: DictConfig) -> "Sharing | None":
    """Return how clients share their steps; None where they send them.

    Raises:
        ConfigError: for a value out of range, or a choice that shares do not fit.
    """
    if require_choice("privacy.secure.kind", cfg.privacy.secure.kind, ("none", "shares")) == "none":
        return None
    from fedbayes.secure.sharing import Sharing

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
    settings = dict(deferred("privacy.secure", cfg.privacy.secure).keywords)
    del settings["kind"]
    return cast(Sharing, call("privacy.secure", Sharing, **settings))


def secure(cfg: DictConfig, strategy: ServerStrategy) -> ServerStrategy:
    """Return a strategy that opens nothing but the aggregate, or the one that is there where clients send steps."""
    sharing = _sharing(cfg)
    if sharing is None:
        return strategy
    build = deferred("privacy.secure", cfg.privacy.secure).func
    return cast(ServerStrategy, call("privacy.secure", build, strategy, sharing))


def sharing_client(cfg: DictConfig, client: CohortClient) -> CohortClient:
    """Return a client that shares its steps, or the one that is there where clients send them."""
    sharing = _sharing(cfg)
    if sharing is None:
        return client
    from fedbayes.simulation.sharing import SharingClient

    return cast(CohortClient, SharingClient(client, sharing))

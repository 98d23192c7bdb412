"""Sparse training from the configuration: which blocks clients train, and the strategy that takes partial replies."""

from typing import cast

from omegaconf import DictConfig

from fedbayes.config.instantiate import call, deferred
from fedbayes.errors import ConfigError
from fedbayes.optim.sparse import BlockChoice
from fedbayes.server.strategy import ServerStrategy


def block_choice(cfg: DictConfig) -> BlockChoice | None:
    """Return how blocks are chosen; None where clients train all.

    Raises:
        ConfigError: for a fraction without a choice, or a value out of range.
    """
    if "_target_" not in cfg.sparse:
        if cfg.sparse.get("fraction") != 1:
            raise ConfigError(
                f"sparse.fraction={cfg.sparse.get('fraction')} has no choice; choose sparse=random or ist."
            )
        return None
    settings = deferred("sparse", cfg.sparse).keywords
    return cast(BlockChoice, call("sparse", BlockChoice, seed=cfg.seed, **settings))


def sparse(cfg: DictConfig, strategy: ServerStrategy) -> ServerStrategy:
    """Return a strategy that takes partial replies, or the one that is there if clients send everything.

    Raises:
        ConfigError: if the strategy, or privacy, does not work with it.
    """
    choice = block_choice(cfg)
    if choice is None:
        return strategy
    if choice.candidates and cfg.privacy.noise is not None:
        raise ConfigError(
            f"privacy.noise={cfg.privacy.noise}: the importance of blocks is learnt from clients' bare losses; "
            "choose sparse=random."
        )
    return cast(ServerStrategy, call("sparse", deferred("sparse", cfg.sparse).func, strategy, choice))

"""The server's side of a run from its configuration: sampling, round loop, strategy and tracking."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.serverapp.strategy import Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedbayes.config.instantiate import call, deferred, instance_of, plain, takes
from fedbayes.data.federated import SPLITS, FederatedData
from fedbayes.errors import ConfigError
from fedbayes.parts.secure import secure
from fedbayes.parts.sparse import sparse
from fedbayes.server.evaluate_round import Assessment
from fedbayes.server.flower_strategy import FlowerStrategy
from fedbayes.server.rounds import RoundLoop
from fedbayes.server.sampling import Sampling, privacy_key
from fedbayes.server.strategy import ServerStrategy
from fedbayes.server.train_round import Training
from fedbayes.server.validation import PartitionSizes, ReplyValidator
from fedbayes.simulation.attacks import AbstractAttack
from fedbayes.simulation.jammer import Jammer, Policy, UplinkGame


def sampling(cfg: DictConfig) -> Sampling:
    """Return who trains, who is evaluated, and who is new; keyed by the privacy key where clients know the seed."""
    knows_seed = OmegaConf.select(cfg, "names.simulation") == "flower"  # clients are processes of somebody else
    return Sampling(
        clients=cfg.clients,
        participation=cfg.participation,
        seed=cfg.seed,
        evaluate_fraction=cfg.evaluate.participation,
        new_clients=cfg.evaluate.new_clients,
        single=bool(OmegaConf.select(cfg, "method.client.pool")),
        key=privacy_key() if cfg.privacy.noise is not None and knows_seed else None,
    )


def loop(cfg: DictConfig, sampled: Sampling, attacker: AbstractAttack | None = None) -> RoundLoop:
    """Return the rounds of training and evaluation."""
    training = Training(
        sampling=sampled,
        min_replies=cfg.simulation.min_replies,
        retries=0 if cfg.get("debug") else cfg.simulation.retries,
        faults=call("faults", deferred("faults", cfg.faults), seed=cfg.seed),
        timeout=cfg.simulation.timeout,
        passes=instance_of("optim", cfg.optim, having=("passes",)).passes,
        max_update_norm=cfg.update_clipping.max_norm,
    )
    assessment = Assessment(
        sampling=sampled,
        every=cfg.evaluate.every,
        best_by=cfg.evaluate.best_by,
        temperature=cfg.evaluate.temperature,
        held_out=bool(cfg.evaluate.held_out),
        backdoor=attacker is not None and attacker.measures_success,
        adapt_steps=plain(cfg.evaluate)["adapt_steps"],
        timeout=training.timeout,
        shares_personal=cfg.privacy.noise is None,  # it would leave the clients without noise
    )
    return RoundLoop(
        rounds=cfg.rounds,
        training=training,
        assessment=assessment,
        validator=ReplyValidator(cfg.simulation.max_norm),
        checkpoint_every=cfg.checkpoint.every,
        patience=cfg.simulation.patience,
    )


def strategy(cfg: DictConfig, rounds: RoundLoop) -> ServerStrategy:
    """Return the server's side: ours or Flower's, if it fits the loop's samples, with privacy and an optimiser."""
    build = deferred("method.strategy", cfg.method.strategy)
    settings = dict(build.keywords)
    if settings.get("aggregate") == "mean" and not takes(build.func, "aggregate"):
        del settings["aggregate"]  # Flower's own strategies have each their one way to aggregate
    server = call("method.strategy", partial(build.func, **settings))
    server = FlowerStrategy(server) if isinstance(server, Strategy) else server
    if not isinstance(server, ServerStrategy):
        raise ConfigError(f"method.strategy._target_={cfg.method.strategy._target_} makes no strategy.")
    server = sparse(cfg, server)
    rounds.require(server)
    if cfg.update_clipping.max_norm is not None and server.closed_form:
        raise ConfigError(
            f"update_clipping.max_norm={cfg.update_clipping.max_norm}: in method={cfg.names.method} clients send sums "
            "and take no steps that could be clipped; leave it out."
        )
    if cfg.privacy.noise is not None:
        if OmegaConf.select(cfg, "method.client.pool"):
            raise ConfigError(
                f"privacy.noise={cfg.privacy.noise} hides nobody in method={cfg.names.method}, whose one client "
                "has the images of all; leave it out."
            )
        sample = rounds.sampling
        size = {"clients": len(sample.known), "per_round": sample.per_round}
        noise = OmegaConf.masked_copy(cfg.privacy, [key for key in cfg.privacy if key != "secure"])
        server = call("privacy", deferred("privacy", noise), server, **size, key=sample.key)
    server = secure(cfg, server)
    return cast(ServerStrategy, call("server", deferred("server", cfg.server), server))


def partition_sizes(
    cfg: DictConfig, federated: FederatedData, attacker: AbstractAttack | None = None
) -> PartitionSizes:
    """Return what the server knows of the images that clients answer for; deployed clients alone know theirs."""
    images: dict[str, list[int]] = {}
    if len(federated.images):
        trained = federated.pooled() if OmegaConf.select(cfg, "method.client.pool") else federated
        images = {split: [len(getattr(client, split)) for client in federated.clients] for split in SPLITS}
        images["train"] = [len(client.train) for client in trained.clients]
        if attacker is not None:
            images["triggered"] = [len(marked) for marked in attacker.marked(federated)]
    return PartitionSizes(federated.num_classes, len(federated.images.domain_names), images)


def uplinks(
    cfg: DictConfig, federated: FederatedData, sampled: Sampling, attacker: AbstractAttack | None
) -> UplinkGame | None:
    """Return the game of a jammer and the server over the clients' uplinks; None without a jammer.

    A policy against a jammer is a ConfigError where there is none, and where privacy counts on uniform sampling.
    """
    policy: Policy = instance_of("sampling", cfg.sampling)
    if policy.name != "uniform" and (not isinstance(attacker, Jammer) or cfg.privacy.noise is not None):
        reason = "privacy.noise counts on uniform sampling" if cfg.privacy.noise is not None else "there is no jammer"
        raise ConfigError(f"sampling={policy.name}: {reason}; choose sampling=uniform, or attack=jammer without noise.")
    if not isinstance(attacker, Jammer):
        return None
    images = federated.images
    domains, labels = (
        np.stack([np.bincount(column[federated.clients[c].train], minlength=size) for c in sampled.known])
        for column, size in ((images.domains, len(images.domain_names)), (images.labels, federated.num_classes))
    )
    return attacker.game(sampled.known, domains, labels, policy)


def destinations(cfg: DictConfig, run_dir: Path) -> Sequence[Any]:
    """Return where the log goes beside the run directory."""
    chosen = OmegaConf.select(cfg, "tracking.destinations")
    if not isinstance(chosen, ListConfig):
        raise ConfigError(f"tracking.destinations={chosen} is no list; choose tracking=local or tracking=wandb.")
    place = "tracking.destinations"
    return [call(place, deferred(place, node), run_dir, plain(cfg)) for node in chosen]

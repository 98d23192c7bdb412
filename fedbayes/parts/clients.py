"""The clients' side of a run from its configuration: engine, images, model, attack, and the client object."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from fedbayes.config.instantiate import call, deferred, instance_of, plain
from fedbayes.data.corruption import corrupt_test
from fedbayes.data.federated import FederatedData
from fedbayes.data.label_shift import shift_labels
from fedbayes.data.partitions.held_out import hold_out, share_held_out
from fedbayes.data.partitions.owner import set_aside
from fedbayes.data.partitions.splits import require_partition
from fedbayes.data.pixels import require_side
from fedbayes.errors import ConfigError, DataError, require_whole
from fedbayes.inference.class_prior import ClassPriors
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompted import MakePrompts, PromptedViT
from fedbayes.models.prompts import make_prompts
from fedbayes.models.prompts.coded import GeneratorSettings
from fedbayes.models.weights import MakeWeights
from fedbayes.parts.secure import sharing_client
from fedbayes.parts.sparse import block_choice
from fedbayes.server.sampling import Sampling
from fedbayes.simulation.attacks import AbstractAttack, MaliciousClients
from fedbayes.simulation.client import ClientSetup, CohortClient
from fedbayes.simulation.offsite import OffsiteClient
from fedbayes.simulation.sparse import SparseClient

DEBUG_IMAGES = 8  # of a client's split with `debug=true`
LIKE_LETTERS = ("styled_digits", "three_digits", "mnist", "usps", "svhn", None)
"""Choices of `data` that the letters backbone suits."""

log = logging.getLogger("fedbayes")


def engine(cfg: DictConfig) -> Any:
    """Return what runs the clients: this process, Ray, or a SuperLink."""
    if cfg.get("debug") and cfg.names.simulation != "in_process":
        raise ConfigError(f"debug=true runs clients in this process; leave out simulation={cfg.names.simulation}.")
    return instance_of("simulation.engine", cfg.simulation.engine, having=("prepare", "run", "device"))


def data(cfg: DictConfig, new_clients: Sequence[int] = ()) -> FederatedData:
    """Return all images, and which client has which; `new_clients` are partitions that never train."""
    clients = require_whole("clients", cfg.clients, 1)
    images = instance_of("data", cfg.data, having=("images", "labels", "domains"))
    if len(images) == 0 and not _elsewhere(cfg):
        raise DataError(
            "data has no images; set data.root, or where SuperNodes have images of their own "
            "partition=local_folder and simulation=flower."
        )
    settings = plain(cfg.evaluate)
    inside, images = hold_out(images, settings["held_out"])
    count = 0 if _elsewhere(cfg) and len(inside) == 0 else cfg.owner.images
    owner, others = set_aside(inside, count, cfg.partition.get("seed", 0))
    shared = inside.subset(torch.from_numpy(others)) if len(owner) else inside
    partition = instance_of("partition", cfg.partition, having=("__call__",))
    splits = require_partition(partition(shared, clients), len(shared), clients, may_be_empty=_elsewhere(cfg))
    splits = tuple(split.renumbered(others) for split in splits) if len(owner) else splits
    if cfg.get("debug"):
        splits = tuple(split.first(DEBUG_IMAGES) for split in splits)
    splits = share_held_out(splits, len(inside), len(images), cfg.partition.get("seed", 0))
    splits = shift_labels(images, splits, settings["label_shift"], cfg.partition.get("seed", 0))
    images = corrupt_test(images, splits, settings["corruption"], settings["severity"])
    return FederatedData(images, splits, new_clients, owner.tolist())


def _elsewhere(cfg: DictConfig) -> bool:
    """Whether SuperNodes hold the images, so that a server has none."""
    names = cfg.get("names", {})
    return (names.get("simulation"), names.get("partition")) == ("flower", "local_folder")


def backbone(cfg: DictConfig, image_size: int) -> FrozenViT:
    """Return the frozen ViT for square images of that many pixels a side."""
    vit: FrozenViT = instance_of("backbone", cfg.backbone, having=("cast",), image_size=require_side(image_size))
    names = cfg.get("names", {})
    if names.get("backbone") == "letters" and names.get("data") not in LIKE_LETTERS:
        log.warning(
            "backbone=letters was pre-trained on letters; for photographs choose backbone=timm with "
            "backbone.checkpoint=FILE or backbone.pretrained=true"
        )
    return vit


def model(cfg: DictConfig, federated: FederatedData, device: str, vit: FrozenViT | None = None) -> PromptedViT:
    """Return the frozen ViT with its generator and head, on the device; `vit` where it is there already."""
    require_whole("seed", cfg.seed, 0)
    side = federated.images.images.shape[-1]
    vit = backbone(cfg, side) if vit is None or vit.image_size != side else vit
    vit.cast(cfg.simulation.precision)
    build = partial(
        PromptedViT,
        vit,
        federated.num_classes,
        generator=_prompts(cfg),
        seed=cfg.seed,
        head_std=cfg.head.init_std,
        clients=len(federated),
        weights=_weights(cfg),
        by_block=block_choice(cfg) is not None,
    )
    prompted: PromptedViT = call("prompts", build, **plain(cfg.prompts))
    return prompted.to(device)


def _prompts(cfg: DictConfig) -> MakePrompts:
    """Return the maker of the method's own prompts, or of the kind of `generator` that is chosen."""
    if cfg.method.get("generator") is not None:
        return cast(MakePrompts, _maker("method.generator", cfg.method.generator))
    settings: GeneratorSettings = call("generator", GeneratorSettings, **plain(cfg.generator))
    modelled = GaussianReverse.outputs(settings.noise_dim) if cfg.inference.reverse == "gaussian" else 0
    return partial(make_prompts, settings, reverse_outputs=modelled)


def _weights(cfg: DictConfig) -> MakeWeights | None:
    """Return the maker of the ViT's weights that the method lets clients change, if any."""
    return None if cfg.method.get("weights") is None else _maker("method.weights", cfg.method.weights)


def _maker(place: str, node: DictConfig) -> Any:
    """Return a function that makes what a node names from the rest of its arguments."""
    return partial(call, place, deferred(place, node))


def attack(cfg: DictConfig) -> AbstractAttack | None:
    """Return what malicious clients do; None where there are none."""
    if "_target_" not in cfg.get("attack", {}):
        if OmegaConf.select(cfg, "attack.fraction"):
            raise ConfigError(
                f"attack.fraction={cfg.attack.fraction} has no attack; choose one, as in attack=sign_flip."
            )
        return None
    return cast(AbstractAttack, call("attack", deferred("attack", cfg.attack), seed=cfg.seed))


def malicious(sampled: Sampling, attacker: AbstractAttack | None) -> tuple[int, ...]:
    """Return the partitions of the malicious clients, among those that may train."""
    return () if attacker is None else attacker.malicious(sampled.known)


def client(
    cfg: DictConfig,
    federated: FederatedData,
    prompted: PromptedViT,
    attacker: AbstractAttack | None = None,
    partitions: Sequence[int] = (),
    emulated: PromptedViT | None = None,
) -> CohortClient:
    """Return the object that trains and evaluates every client; it shares steps where nobody is to see them.

    Args:
        cfg: the configuration.
        federated: who has which images.
        prompted: the model that predicts.
        attacker: what malicious clients do; None where there are none.
        partitions: the malicious clients.
        emulated: the model that clients train, where that is another.
    """
    images = federated if attacker is None else attacker.poison(federated, partitions)
    if emulated is None:
        built = _client(cfg, images, prompted)
    else:
        built = OffsiteClient(_client(cfg, images, emulated), _client(cfg, images, prompted))
    if attacker is not None:
        built = MaliciousClients(built, attacker, partitions)
    return sharing_client(cfg, built)


def _client(cfg: DictConfig, federated: FederatedData, prompted: PromptedViT) -> CohortClient:
    """Return the method's client on one model."""
    augment, priors = instance_of("augment", cfg.augment), ClassPriors(cfg.head.prior, cfg.head.prior_count)
    setup = ClientSetup(federated, prompted, augment, cfg.simulation.cache_mb, cfg.seed, priors)
    built = cast(CohortClient, call("method.client", deferred("method.client", cfg.method.client), setup=setup))
    choice = block_choice(cfg)
    return built if choice is None else SparseClient(built, choice)

"""From configuration to objects: the only module that instantiates, used by the command, by workers and by apps.

A method is reached only through the `_target_` in its YAML; nothing here knows one by name.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from logging import LogRecord
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from flwr.serverapp.strategy import Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedbayes.config.instantiate import call, later, made_of, plain, takes
from fedbayes.data.corruption import corrupt_test
from fedbayes.data.federated import SPLITS, FederatedData
from fedbayes.data.label_shift import shift_labels
from fedbayes.data.partitions.held_out import hold_out, share_held_out
from fedbayes.data.partitions.splits import require_partition
from fedbayes.data.pixels import require_side
from fedbayes.errors import ConfigError, DataError, require_whole
from fedbayes.inference.class_prior import ClassPriors
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.models.adapters import MakeWeights
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.prompted import MakePrompts, PromptedViT
from fedbayes.models.prompts import make_prompts
from fedbayes.models.prompts.coded import GeneratorSettings
from fedbayes.server.evaluate_round import Assessment
from fedbayes.server.flower_strategy import FlowerStrategy
from fedbayes.server.rounds import RoundLoop
from fedbayes.server.sampling import Sampling, privacy_key
from fedbayes.server.strategy import ServerStrategy
from fedbayes.server.train_round import Training
from fedbayes.server.trained import TrainedClients
from fedbayes.server.validation import PartitionSizes, ReplyValidator
from fedbayes.simulation.attacks import AbstractAttack, MaliciousClients
from fedbayes.simulation.client import ClientSetup, CohortClient
from fedbayes.simulation.hardware import choose_device
from fedbayes.simulation.jammer import Jammer, Policy, UplinkGame
from fedbayes.storage.checkpoint import Checkpoint
from fedbayes.storage.early_log import collected

DEBUG_IMAGES = 8
"""Images of a client's split with `debug=true`."""

log = logging.getLogger("fedbayes")

LIKE_LETTERS = ("styled_digits", "three_digits", "mnist", "usps", "svhn", None)
"""Choices of `data` that the letters backbone suits."""


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that a run is made of, each part made once.

    Attributes:
        sampling: who trains, who is evaluated, and who is new.
        attack: what malicious clients do; None where there are none.
        loop: the rounds of training and evaluation.
        strategy: the server's side: turns replies into the next message.
        engine: runs the clients.
        data: images, and which client has which.
        model: the frozen ViT with its prompt generator and head.
        client: trains and evaluates every client, malicious ones among them.
        records: what was logged while the parts were made, for `run.log`.
        uplinks: the game over them; None without a jammer.
    """

    sampling: Sampling
    attack: AbstractAttack | None
    loop: RoundLoop
    strategy: ServerStrategy
    engine: Any
    data: FederatedData
    model: PromptedViT
    client: CohortClient
    uplinks: UplinkGame | None = None
    records: Sequence[LogRecord] = ()

    @property
    def malicious(self) -> tuple[int, ...]:
        """Partitions of the malicious clients."""
        return malicious(self.sampling, self.attack)


def assemble(cfg: DictConfig, running: Any = None) -> Parts:
    """Make every part of a run from its configuration; nothing is written.

    Args:
        cfg: the composed configuration, with the names of its groups under `names`.
        running: an engine that is there already, as in a Flower App; None for the one that the configuration names.

    Raises:
        FedbayesError: for what a user can mend.
    """
    sampled, attacker = sampling(cfg), attack(cfg)
    rounds = loop(cfg, sampled, attacker)
    server = strategy(cfg, rounds)
    runner = engine(cfg) if running is None else running
    runner.prepare()
    with collected() as records:
        # Before the images, which take longer: a backbone that cannot be had is a common mistake.
        vit = backbone(cfg, cfg.data.image_size) if "image_size" in cfg.data else None
        federated = data(cfg, sampled.new_clients)
        prompted = model(cfg, federated, runner.device, vit)
        clients = client(cfg, federated, prompted, attacker, malicious(sampled, attacker))
        game = uplinks(cfg, federated, sampled, attacker)
    return Parts(sampled, attacker, rounds, server, runner, federated, prompted, clients, game, records)


def engine(cfg: DictConfig) -> Any:
    """What runs the clients: this process, Ray, or a SuperLink."""
    if cfg.get("debug") and cfg.names.simulation != "in_process":
        raise ConfigError(f"debug=true runs clients in this process; leave out simulation={cfg.names.simulation}.")
    return made_of("simulation.engine", cfg.simulation.engine, having=("prepare", "run", "device"))


def data(cfg: DictConfig, new_clients: Sequence[int] = ()) -> FederatedData:
    """All images, and which client has which.

    Args:
        cfg: the composed configuration.
        new_clients: partitions that never train.
    """
    clients = require_whole("clients", cfg.clients, 1)
    images = made_of("data", cfg.data, having=("images", "labels", "domains"))
    if len(images) == 0 and not _elsewhere(cfg):
        raise DataError(
            "data has no images; set data.root, or where SuperNodes have images of their own "
            "partition=local_folder and simulation=flower."
        )
    settings = plain(cfg.evaluate)
    inside, images = hold_out(images, settings["held_out"])
    partition = made_of("partition", cfg.partition, having=("__call__",))
    splits = require_partition(partition(inside, clients), len(inside), clients, may_be_empty=_elsewhere(cfg))
    if cfg.get("debug"):
        splits = tuple(split.first(DEBUG_IMAGES) for split in splits)
    splits = share_held_out(splits, len(inside), len(images), cfg.partition.get("seed", 0))
    splits = shift_labels(images, splits, settings["label_shift"], cfg.partition.get("seed", 0))
    images = corrupt_test(images, splits, settings["corruption"], settings["severity"])
    return FederatedData(images, splits, new_clients)


def backbone(cfg: DictConfig, image_size: int) -> FrozenViT:
    """The frozen ViT for square images of that many pixels a side."""
    side = require_side(image_size)
    vit: FrozenViT = made_of("backbone", cfg.backbone, having=("cast",), image_size=side)
    names = cfg.get("names", {})
    if names.get("backbone") == "letters" and names.get("data") not in LIKE_LETTERS:
        log.warning(
            "backbone=letters was pre-trained on letters; for photographs choose backbone=timm with "
            "backbone.checkpoint=FILE or backbone.pretrained=true"
        )
    return vit


def model(cfg: DictConfig, federated: FederatedData, device: str, vit: FrozenViT | None = None) -> PromptedViT:
    """The frozen ViT with its generator and head, on the device; `vit` where it is there already."""
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
    )
    prompted: PromptedViT = call("prompts", build, **plain(cfg.prompts))
    return prompted.to(device)


def _prompts(cfg: DictConfig) -> MakePrompts:
    """The method's own prompts, or the kind of `generator` that is chosen."""
    if cfg.method.get("generator") is not None:
        return partial(call, "method.generator", later("method.generator", cfg.method.generator))
    settings: GeneratorSettings = call("generator", GeneratorSettings, **plain(cfg.generator))
    modelled = GaussianReverse.outputs(settings.noise_dim) if cfg.inference.reverse == "gaussian" else 0
    return partial(make_prompts, settings, reverse_outputs=modelled)


def _weights(cfg: DictConfig) -> MakeWeights | None:
    """The weights of the ViT that the method lets clients change, if any."""
    if cfg.method.get("weights") is None:
        return None
    return partial(call, "method.weights", later("method.weights", cfg.method.weights))


def attack(cfg: DictConfig) -> AbstractAttack | None:
    """What malicious clients do; None where there are none."""
    if "_target_" not in cfg.get("attack", {}):
        if OmegaConf.select(cfg, "attack.fraction"):
            raise ConfigError(
                f"attack.fraction={cfg.attack.fraction} has no attack; choose one, as in attack=sign_flip."
            )
        return None
    return cast(AbstractAttack, call("attack", later("attack", cfg.attack), seed=cfg.seed))


def uplinks(
    cfg: DictConfig, federated: FederatedData, sampled: Sampling, attacker: AbstractAttack | None
) -> UplinkGame | None:
    """The game of a jammer and the server over the clients' uplinks; None without a jammer.

    Raises:
        ConfigError: if the server has a policy against a jammer, and there is none; or privacy counts on uniform
            sampling.
    """
    policy: Policy = made_of("sampling", cfg.sampling)
    if policy.name != "uniform" and (not isinstance(attacker, Jammer) or cfg.privacy.noise is not None):
        reason = "privacy.noise counts on uniform sampling" if cfg.privacy.noise is not None else "there is no jammer"
        raise ConfigError(f"sampling={policy.name}: {reason}; choose sampling=uniform, or attack=jammer without noise.")
    if not isinstance(attacker, Jammer):
        return None
    images, known = federated.images, sampled.known
    counts = [
        [np.bincount(column[federated.clients[c].train], minlength=size) for c in known]
        for column, size in (
            (images.domains.numpy(), len(images.domain_names)),
            (images.labels.numpy(), federated.num_classes),
        )
    ]
    return attacker.game(known, np.stack(counts[0]), np.stack(counts[1]), policy)


def malicious(sampled: Sampling, attacker: AbstractAttack | None) -> tuple[int, ...]:
    """Partitions of the malicious clients, among those that may train."""
    return () if attacker is None else attacker.malicious(sampled.known)


def client(
    cfg: DictConfig,
    federated: FederatedData,
    prompted: PromptedViT,
    attacker: AbstractAttack | None = None,
    partitions: Sequence[int] = (),
) -> CohortClient:
    """The object that trains and evaluates every client.

    Args:
        cfg: the composed configuration.
        federated: images, and which client has which.
        prompted: the model.
        attacker: what malicious clients do; None where there are none.
        partitions: of the malicious clients.
    """
    if attacker is not None:
        honest = client(cfg, attacker.poison(federated, partitions), prompted)
        return MaliciousClients(honest, attacker, partitions)
    augment, priors = made_of("augment", cfg.augment), ClassPriors(cfg.head.prior, cfg.head.prior_count)
    setup = ClientSetup(federated, prompted, augment, cfg.simulation.cache_mb, cfg.seed, priors)
    return cast(CohortClient, call("method.client", later("method.client", cfg.method.client), setup=setup))


@final
class ClientFactory:
    """Gives a process its client object: the one already built here, or, sent elsewhere as text, a new one there.

    Args:
        cfg: the composed configuration.
        made: the client of this process.
    """

    def __init__(self, cfg: DictConfig, made: CohortClient) -> None:
        self._text = OmegaConf.to_yaml(cfg, resolve=True)
        self._made: CohortClient | None = made

    def __call__(self) -> CohortClient:
        """The client; a process builds at most one for a configuration."""
        return client_of(self._text) if self._made is None else self._made

    def __getstate__(self) -> dict[str, Any]:
        """The configuration alone: images and backbone stay here."""
        return {"_text": self._text, "_made": None}


@lru_cache(maxsize=1)
def client_of(text: str) -> CohortClient:
    """A worker's client, ready to train.

    Args:
        text: the resolved configuration as YAML.
    """
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig), "a configuration is a mapping"
    sampled, attacker, runner = sampling(cfg), attack(cfg), engine(cfg)
    runner.prepare()
    # Before the images, which take longer: a backbone that cannot be had is a common mistake.
    vit = backbone(cfg, cfg.data.image_size) if "image_size" in cfg.data else None
    federated = data(cfg, sampled.new_clients)
    prompted = model(cfg, federated, runner.device, vit)
    clients = client(cfg, federated, prompted, attacker, malicious(sampled, attacker))
    clients.prepare()
    return clients


def strategy(cfg: DictConfig, rounds: RoundLoop) -> ServerStrategy:
    """The server's side: one of ours or of Flower's that fits the loop's samples, with privacy and an optimiser."""
    build = later("method.strategy", cfg.method.strategy)
    settings = dict(build.keywords)
    if settings.get("aggregate") == "mean" and not takes(build.func, "aggregate"):
        del settings["aggregate"]  # Flower's own strategies have each their one way to aggregate
        build = partial(build.func, **settings)
    strategy = call("method.strategy", build)
    strategy = FlowerStrategy(strategy) if isinstance(strategy, Strategy) else strategy
    if not isinstance(strategy, ServerStrategy):
        raise ConfigError(f"method.strategy._target_={cfg.method.strategy._target_} makes no strategy.")
    rounds.require(strategy)
    if cfg.update_clipping.max_norm is not None and strategy.closed_form:
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
        drawn = rounds.sampling
        sampled = {"clients": len(drawn.known), "per_round": drawn.per_round, "key": drawn.key}
        strategy = cast(ServerStrategy, call("privacy", later("privacy", cfg.privacy), strategy, **sampled))
    if cfg.server.name in (None, "none"):
        return strategy
    return cast(ServerStrategy, call("server", later("server", cfg.server), strategy))


def sampling(cfg: DictConfig) -> Sampling:
    """Who trains, who is evaluated, and who is new; keyed by the privacy key where clients know the seed."""
    return Sampling(
        clients=cfg.clients,
        participation=cfg.participation,
        seed=cfg.seed,
        evaluate_fraction=cfg.evaluate.participation,
        new_clients=cfg.evaluate.new_clients,
        single=bool(OmegaConf.select(cfg, "method.client.pool")),
        key=privacy_key() if cfg.privacy.noise is not None and _knows_seed(cfg) else None,
    )


def loop(cfg: DictConfig, sampled: Sampling, attacker: AbstractAttack | None = None) -> RoundLoop:
    """The rounds of training and evaluation."""
    training = Training(
        sampling=sampled,
        min_replies=cfg.simulation.min_replies,
        retries=0 if cfg.get("debug") else cfg.simulation.retries,
        faults=call("faults", later("faults", cfg.faults), seed=cfg.seed),
        timeout=cfg.simulation.timeout,
        passes=made_of("optim", cfg.optim, having=("passes",)).passes,
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


def partition_sizes(
    cfg: DictConfig, federated: FederatedData, attacker: AbstractAttack | None = None
) -> PartitionSizes:
    """What the server knows of the images that clients answer for; deployed clients alone know theirs."""
    images: dict[str, list[int]] = {}
    if len(federated.images):
        trained = federated.pooled() if OmegaConf.select(cfg, "method.client.pool") else federated
        images = {split: [len(getattr(client, split)) for client in federated.clients] for split in SPLITS}
        images["train"] = [len(client.train) for client in trained.clients]
        if attacker is not None:
            images["triggered"] = [len(marked) for marked in attacker.marked(federated)]
    return PartitionSizes(federated.num_classes, len(federated.images.domain_names), images)


def destinations(cfg: DictConfig, run_dir: Path) -> Sequence[Any]:
    """Where the log goes beside the run directory."""
    chosen = OmegaConf.select(cfg, "tracking.destinations")
    if not isinstance(chosen, ListConfig):
        raise ConfigError(f"tracking.destinations={chosen} is no list; choose tracking=local or tracking=wandb.")
    place = "tracking.destinations"
    return [call(place, later(place, node), run_dir, plain(cfg)) for node in chosen]


def trained(cfg: DictConfig, parts: Parts, checkpoint: Checkpoint) -> TrainedClients:
    """The honest clients of a finished run, ready to predict.

    Raises:
        ConfigError: if the checkpoint is another configuration's.
    """
    return TrainedClients(
        parts.client if parts.attack is None else client(cfg, parts.data, parts.model),
        parts.strategy,
        checkpoint,
        finetune_steps=OmegaConf.select(cfg, "optim.finetune_steps") or 0,
        shares_personal=cfg.privacy.noise is None,
    )


@final
class NoEngine:
    """In the place of an engine where clients only predict: no thread is set, and nobody trains."""

    def __init__(self) -> None:
        self.device = choose_device("auto")

    def prepare(self) -> None:
        """Leave this process as it is."""


def _knows_seed(cfg: DictConfig) -> bool:
    """Whether clients are processes of somebody else, who has the configuration."""
    return bool(OmegaConf.select(cfg, "names.simulation") == "flower")


def _elsewhere(cfg: DictConfig) -> bool:
    """Whether SuperNodes hold the images, so that a server has none."""
    names = cfg.get("names", {})
    return (names.get("simulation"), names.get("partition")) == ("flower", "local_folder")

"""From configuration to objects: the only module that instantiates, used by the command, by workers and by apps.

A method is reached only through the `_target_` in its YAML; nothing here knows one by name.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast, final

from flwr.serverapp.strategy import Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedbayes.arrays import Arrays
from fedbayes.comm.messages import ClientRequest
from fedbayes.config.instantiate import call, later, made_of, plain, takes
from fedbayes.data.corruption import corrupt_test
from fedbayes.data.federated import SPLITS, FederatedData
from fedbayes.data.partitions.held_out import hold_out, share_held_out
from fedbayes.data.partitions.splits import require_partition
from fedbayes.errors import ConfigError, DataError, require_whole
from fedbayes.inference.reverse import GaussianReverse
from fedbayes.models.adapters import MakeWeights
from fedbayes.models.prompted import MakePrompts, PromptedViT
from fedbayes.models.prompts import make_prompts
from fedbayes.models.prompts.coded import GeneratorSettings
from fedbayes.server.evaluate_round import Assessment
from fedbayes.server.flower_strategy import FlowerStrategy
from fedbayes.server.privacy_key import secret
from fedbayes.server.rounds import RoundLoop
from fedbayes.server.sampling import Sampling
from fedbayes.server.strategy import ServerStrategy
from fedbayes.server.train_round import Training
from fedbayes.server.validation import PartitionSizes, ReplyValidator
from fedbayes.simulation.attacks import AbstractAttack, HostileClients
from fedbayes.simulation.client import ClientSetup, CohortClient
from fedbayes.simulation.hardware import choose_device
from fedbayes.storage.checkpoint import Checkpoint


def simulation(cfg: DictConfig) -> Any:
    """The engine that runs the clients."""
    return made_of("simulation.engine", cfg.simulation.engine, having=("prepare", "run", "device"))


def data(cfg: DictConfig) -> FederatedData:
    """All images, and who holds which."""
    clients = require_whole("clients", cfg.clients, 1)
    images = made_of("data", cfg.data, having=("images", "labels", "domains"))
    if len(images) == 0 and not _elsewhere(cfg):
        raise DataError(
            "data has no images; set data.root, or where SuperNodes have images of their own "
            "partition=local_folder and simulation=flower."
        )
    asked = plain(cfg.evaluate)
    inside, images = hold_out(images, asked["held_out"])
    partition = made_of("partition", cfg.partition, having=("__call__",))
    splits = require_partition(partition(inside, clients), len(inside), clients, may_be_empty=_elsewhere(cfg))
    splits = share_held_out(splits, len(inside), len(images), cfg.partition.get("seed", 0))
    images = corrupt_test(images, splits, asked["corruption"], asked["severity"])
    return FederatedData(images, splits, sampling(cfg).new_clients)


def model(cfg: DictConfig, federated: FederatedData, device: str) -> PromptedViT:
    """The frozen ViT with its generator and head, on the device."""
    require_whole("seed", cfg.seed, 0)
    backbone = made_of("backbone", cfg.backbone, having=("cast",), image_size=federated.images.images.shape[-1])
    backbone.cast(cfg.simulation.precision)
    build = partial(
        PromptedViT,
        backbone,
        federated.num_classes,
        generator=_prompts(cfg),
        seed=cfg.seed,
        head_std=cfg.head.init_std,
        clients=len(federated),
        weights=_weights(cfg),
    )
    made: PromptedViT = call("prompts", build, **plain(cfg.prompts))
    return made.to(device)


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
    """What hostile clients do; None where nobody is."""
    if "_target_" not in cfg.get("attack", {}):
        if OmegaConf.select(cfg, "attack.fraction"):
            raise ConfigError(
                f"attack.fraction={cfg.attack.fraction} has no attack; choose one, as in attack=sign_flip."
            )
        return None
    return cast(AbstractAttack, call("attack", later("attack", cfg.attack), seed=cfg.seed))


def client(cfg: DictConfig, federated: FederatedData, prompted: PromptedViT) -> CohortClient:
    """The object that trains and evaluates every client, hostile ones among them."""
    attacker = attack(cfg)
    if attacker is None:
        return honest_client(cfg, federated, prompted)
    hostile = attacker.hostile(sampling(cfg).known)
    return HostileClients(honest_client(cfg, attacker.poison(federated, hostile), prompted), attacker, hostile)


def honest_client(cfg: DictConfig, federated: FederatedData, prompted: PromptedViT) -> CohortClient:
    """The object that trains and evaluates clients as they should be."""
    made = call(
        "method.client",
        later("method.client", cfg.method.client),
        setup=ClientSetup(federated, prompted, made_of("augment", cfg.augment), cfg.simulation.cache_mb, cfg.seed),
    )
    return cast(CohortClient, made)


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
    engine = simulation(cfg)
    engine.prepare()
    federated = data(cfg)
    made = client(cfg, federated, model(cfg, federated, engine.device))
    made.prepare()
    return made


def strategy(cfg: DictConfig, rounds: RoundLoop) -> ServerStrategy:
    """The server's side: one of ours or of Flower's that fits the loop's samples, with privacy and an optimiser."""
    build = later("method.strategy", cfg.method.strategy)
    given = dict(build.keywords)
    if given.get("aggregate") == "mean" and not takes(build.func, "aggregate"):
        del given["aggregate"]  # Flower's own strategies have each their one way to aggregate
        build = partial(build.func, **given)
    made = call("method.strategy", build)
    made = FlowerStrategy(made) if isinstance(made, Strategy) else made
    if not isinstance(made, ServerStrategy):
        raise ConfigError(f"method.strategy._target_={cfg.method.strategy._target_} makes no strategy.")
    rounds.require(made)
    if cfg.update_clipping.max_norm is not None and made.closed_form:
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
        made = cast(ServerStrategy, call("privacy", later("privacy", cfg.privacy), made, **sampled))
    if cfg.server.name in (None, "none"):
        return made
    return cast(ServerStrategy, call("server", later("server", cfg.server), made))


def sampling(cfg: DictConfig, key: str | None = None) -> Sampling:
    """Who trains, who is evaluated, and who is new; `key` in place of the seed for the first of these."""
    return Sampling(
        clients=cfg.clients,
        participation=cfg.participation,
        seed=cfg.seed,
        evaluate_share=cfg.evaluate.participation,
        new_clients=cfg.evaluate.new_clients,
        key=key,
    )


def loop(cfg: DictConfig) -> RoundLoop:
    """The rounds."""
    drawn = sampling(cfg, secret() if cfg.privacy.noise is not None and _tells_seed(cfg) else None)
    training = Training(
        sampling=drawn,
        min_replies=cfg.simulation.min_replies,
        retries=cfg.simulation.retries,
        faults=call("faults", later("faults", cfg.faults), seed=cfg.seed),
        timeout=cfg.simulation.timeout,
        passes=made_of("optim", cfg.optim, having=("passes",)).passes,
        max_update_norm=cfg.update_clipping.max_norm,
    )
    assessment = Assessment(
        sampling=drawn,
        every=cfg.evaluate.every,
        best_by=cfg.evaluate.best_by,
        temperature=cfg.evaluate.temperature,
        held_out=bool(cfg.evaluate.held_out),
        backdoor=(attacker := attack(cfg)) is not None and attacker.measures_success,
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


def partition_sizes(cfg: DictConfig, federated: FederatedData) -> PartitionSizes:
    """What the server knows of the images that clients answer for; deployed ones know their own alone."""
    images: dict[str, list[int]] = {}
    if len(federated.images):
        trained = federated.pooled() if OmegaConf.select(cfg, "method.client.pool") else federated
        images = {split: [len(getattr(one, split)) for one in federated.clients] for split in SPLITS}
        images["train"] = [len(one.train) for one in trained.clients]
        if (attacker := attack(cfg)) is not None:
            images["triggered"] = [len(one) for one in attacker.marked(federated)]
    return PartitionSizes(federated.num_classes, len(federated.images.domain_names), images)


def destinations(cfg: DictConfig, run_dir: Path) -> Sequence[Any]:
    """Where the log goes beside the run directory."""
    chosen = OmegaConf.select(cfg, "tracking.destinations")
    if not isinstance(chosen, ListConfig):
        raise ConfigError(f"tracking.destinations={chosen} is no list; choose tracking=local or tracking=wandb.")
    place = "tracking.destinations"
    return [call(place, later(place, one), run_dir, plain(cfg)) for one in chosen]


def stored(cfg: DictConfig, checkpoint: Checkpoint) -> tuple[CohortClient, FederatedData]:
    """The client of a finished run, ready to predict with its checkpoint's parameters."""
    federated = data(cfg)
    made = honest_client(cfg, federated, model(cfg, federated, choose_device("auto")))
    for name, like in made.initial().items():
        found = checkpoint.server.get(name)
        if found is None or found.shape != like.shape:
            what = "lacks it" if found is None else f"has {found.shape}"
            raise ConfigError(f"{name} is {like.shape} but the checkpoint {what}; it is another configuration's.")
    return made, federated


def outgoing(cfg: DictConfig, checkpoint: Checkpoint, partition: int) -> Arrays:
    """What the server of a finished run would send to a client next; methods may send each its own."""
    made = strategy(cfg, loop(cfg))
    made.shared = dict(checkpoint.server)
    made.restore(checkpoint.strategy)
    return made.requests(checkpoint.server_round + 1, [partition], "evaluate")[partition]


def predicts_with(cfg: DictConfig, made: Any, checkpoint: Checkpoint, partition: int | None) -> Arrays:
    """What a client of a finished run predicts with, as in its last evaluation.

    Args:
        cfg: of the run.
        made: its clients, see `honest_client`.
        checkpoint: its last.
        partition: the client; None for a stranger, who has no images to adapt to.

    Raises:
        ConfigError: for a stranger where clients train on their own images before they predict.
    """
    others = checkpoint.personal_of(None) if cfg.privacy.noise is None else {}  # without noise it leaves no client
    if partition is None:
        if steps := OmegaConf.select(cfg, "optim.finetune_steps"):
            raise ConfigError(
                f"optim.finetune_steps={steps}: in method={cfg.names.method} clients train on their own images before "
                "they predict; give the partition of one."
            )
        return cast(Arrays, made.for_new_clients({**checkpoint.server, **others}))
    sent, kept = outgoing(cfg, checkpoint, partition), checkpoint.personal.get(partition, {})
    sent = sent if kept else {**sent, **others}
    request = ClientRequest(partition, checkpoint.server_round, "evaluate", "test", sent, kept)
    return cast(Arrays, made.adapt([{**sent, **kept}], [request])[0])


def _tells_seed(cfg: DictConfig) -> bool:
    """Whether clients are processes of somebody else, who has the configuration."""
    return bool(OmegaConf.select(cfg, "names.simulation") == "flower")


def _elsewhere(cfg: DictConfig) -> bool:
    """Whether SuperNodes hold the images, so that a server has none."""
    names = cfg.get("names", {})
    return (names.get("simulation"), names.get("partition")) == ("flower", "local_folder")

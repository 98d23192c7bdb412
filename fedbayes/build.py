"""From configuration to objects: all parts of a run, for the command, for workers and for apps.

A method is reached only through the `_target_` in its YAML; nothing here knows one by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from logging import LogRecord
from typing import Any, final

from omegaconf import DictConfig, OmegaConf

from fedbayes.data.federated import FederatedData
from fedbayes.models.prompted import PromptedViT
from fedbayes.parts.clients import attack, backbone, client, data, engine, malicious, model
from fedbayes.parts.offsite import EmulatedViT, emulated
from fedbayes.parts.server import loop, partition_sizes, sampling, strategy, uplinks
from fedbayes.server.rounds import RoundLoop
from fedbayes.server.sampling import Sampling
from fedbayes.server.strategy import ServerStrategy
from fedbayes.server.trained import TrainedClients
from fedbayes.server.validation import PartitionSizes
from fedbayes.simulation.attacks import AbstractAttack
from fedbayes.simulation.client import CohortClient
from fedbayes.simulation.hardware import choose_device
from fedbayes.simulation.jammer import UplinkGame
from fedbayes.storage.checkpoint import Checkpoint
from fedbayes.storage.early_log import collected


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that a run is made of, each part made once.

    Attributes:
        attack: what malicious clients do; None where there are none.
        model: predicts.
        client: trains and evaluates every client, malicious ones among them.
        emulator: what clients train where the ViT's owner does not give it away.
        uplinks: the game over them; None without a jammer.
        records: what was logged while the parts were made, for `run.log`.
    """

    sampling: Sampling
    attack: AbstractAttack | None
    loop: RoundLoop
    strategy: ServerStrategy
    engine: Any
    data: FederatedData
    model: PromptedViT
    client: CohortClient
    sizes: PartitionSizes
    uplinks: UplinkGame | None = None
    records: Sequence[LogRecord] = ()
    emulator: EmulatedViT | None = None

    @property
    def tuned(self) -> PromptedViT | None:
        """The model that clients train, where it is not the one that predicts."""
        return None if self.emulator is None else self.emulator.prompted

    @property
    def malicious(self) -> tuple[int, ...]:
        """Partitions of the malicious clients."""
        return malicious(self.sampling, self.attack)


def assemble(cfg: DictConfig, running: Any = None) -> Parts:
    """Make every part of a run from its configuration; nothing is written.

    `running` is an engine that is there already, as in a Flower App; None stands for the one that `cfg` names.

    Raises:
        FedbayesError: for what a user can mend.
    """
    sampled, attacker = sampling(cfg), attack(cfg)
    rounds = loop(cfg, sampled, attacker)
    server = strategy(cfg, rounds)
    runner = engine(cfg) if running is None else running
    runner.prepare()
    with collected() as records:
        federated, prompted, emulator, clients = _learners(cfg, sampled, attacker, runner.device)
        game = uplinks(cfg, federated, sampled, attacker)
        sizes = partition_sizes(cfg, federated, attacker)
    return Parts(
        sampled, attacker, rounds, server, runner, federated, prompted, clients, sizes, game, records, emulator
    )


def _learners(
    cfg: DictConfig, sampled: Sampling, attacker: AbstractAttack | None, device: str
) -> tuple[FederatedData, PromptedViT, EmulatedViT | None, CohortClient]:
    """Return images, model, what clients train where that is another, and client."""
    # Before the images, which take longer: a backbone that cannot be had is a common mistake.
    vit = backbone(cfg, cfg.data.image_size) if "image_size" in cfg.data else None
    federated = data(cfg, sampled.new_clients)
    side = federated.images.images.shape[-1]
    vit = vit if vit is not None and vit.image_size == side else backbone(cfg, side)
    emulator = emulated(cfg, federated, device, vit)
    prompted = model(cfg, federated, device, vit)
    tuned = None if emulator is None else emulator.prompted
    clients = client(cfg, federated, prompted, attacker, malicious(sampled, attacker), tuned)
    return federated, prompted, emulator, clients


@final
class ClientFactory:
    """Gives a process its client object: the one already built here, or, sent elsewhere as text, a new one there."""

    def __init__(self, cfg: DictConfig, client: CohortClient) -> None:
        self._text = OmegaConf.to_yaml(cfg, resolve=True)
        self._client: CohortClient | None = client

    def __call__(self) -> CohortClient:
        """Return the client; a process builds at most one for a configuration."""
        return client_of(self._text) if self._client is None else self._client

    def __getstate__(self) -> dict[str, Any]:
        """Return the configuration alone: images and backbone stay here."""
        return {"_text": self._text, "_client": None}


@lru_cache(maxsize=1)
def client_of(text: str) -> CohortClient:
    """Return a worker's client, ready to train, from the resolved configuration as YAML."""
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig), "a configuration is a mapping"
    sampled, attacker, runner = sampling(cfg), attack(cfg), engine(cfg)
    runner.prepare()
    _, _, _, clients = _learners(cfg, sampled, attacker, runner.device)
    clients.prepare()
    return clients


def trained(cfg: DictConfig, parts: Parts, checkpoint: Checkpoint) -> TrainedClients:
    """Return the honest clients of a finished run; a checkpoint of another configuration is a ConfigError."""
    return TrainedClients(
        parts.client if parts.attack is None else client(cfg, parts.data, parts.model, emulated=parts.tuned),
        parts.strategy,
        checkpoint,
        finetune_steps=OmegaConf.select(cfg, "optim.finetune_steps") or 0,
        shares_personal=cfg.privacy.noise is None,
    )


@final
class NoEngine:
    """Takes the place of an engine where clients only predict: no thread is set, and nobody trains."""

    def __init__(self) -> None:
        self.device = choose_device("auto")

    def prepare(self) -> None:
        """Leave this process as it is."""

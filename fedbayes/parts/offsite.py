"""The emulator of a run from its configuration: what clients train where the ViT's owner keeps it."""

import time
from dataclasses import dataclass
from typing import Any, final

import torch
from omegaconf import DictConfig, OmegaConf

from fedbayes.config.instantiate import instance_of
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Emulator, Owner, emulate
from fedbayes.models.prompted import PromptedViT
from fedbayes.parts.clients import model


@final
@dataclass(frozen=True, eq=False)
class EmulatedViT:
    """An emulator with the prompts and the head that clients train on it, and the seconds that it took to make."""

    emulator: Emulator
    prompted: PromptedViT
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says of it: numbers in the lower blocks, bytes that each client is sent once."""
        emulator = self.emulator
        return {
            "numbers": emulator.size,
            "numbers_full": emulator.full_size,
            "size": emulator.size / emulator.full_size,
            "bytes": emulator.bytes,
            "seconds": self.seconds,
        }


def emulated(cfg: DictConfig, federated: FederatedData, device: str, vit: FrozenViT) -> EmulatedViT | None:
    """Return the emulator of `vit` that the configuration names, with prompts and head; None for `emulator=none`.

    Raises:
        ConfigError: if the method changes blocks that the emulator replaces, or a value cannot work.
    """
    name = OmegaConf.select(cfg, "names.emulator") or "the emulator"
    if "_target_" not in cfg.emulator:
        if cfg.emulator.get("keep") != 1:
            raise ConfigError(f"emulator.keep={cfg.emulator.get('keep')} has no emulator; choose emulator=gradot.")
        return None
    started = time.perf_counter()
    start = require_whole("prompts.start_layer", cfg.prompts.start_layer, 0, vit.depth - 1)
    if start == 0:
        raise ConfigError(f"prompts.start_layer=0 leaves no block below it for emulator={name}; raise it.")
    if cfg.method.get("weights") is not None:
        first = cfg.method.weights.get("start_layer")
        if first is None or first < start:
            raise ConfigError(
                f"method.weights.start_layer={first} changes blocks below prompts.start_layer={start}, which clients "
                f"do not have with emulator={name}; choose a method of low-rank changes and raise it to {start}."
            )
    make = instance_of("emulator", cfg.emulator, having=("__call__",))
    owner = Owner(*_images(federated), federated.num_classes, cfg.seed)
    emulator = emulate(make, vit.to(device), start, owner)
    seconds = time.perf_counter() - started
    return EmulatedViT(emulator, model(cfg, federated, device, emulator.backbone), seconds)


def _images(federated: FederatedData) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and labels of the owner's images."""
    ids = torch.tensor(federated.owner, dtype=torch.long)
    return federated.images.images[ids], federated.images.labels[ids]

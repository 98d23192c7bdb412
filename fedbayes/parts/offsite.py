"""The emulator of a run from its configuration: what clients train where the ViT's owner keeps it."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from fedbayes.config.compose import CONF
from fedbayes.config.instantiate import instance_of, plain
from fedbayes.data.federated import FederatedData
from fedbayes.errors import ConfigError, require_whole
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import Emulator, Owner, emulate
from fedbayes.models.emulators.files import read_emulator, write
from fedbayes.models.prompted import PromptedViT
from fedbayes.parts.clients import model

log = logging.getLogger("fedbayes")


@final
@dataclass(frozen=True, eq=False)
class EmulatedViT:
    """An emulator with the prompts and the head that clients train on it."""

    emulator: Emulator
    prompted: PromptedViT

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says of it: numbers in the lower blocks, bytes that each client is sent once."""
        emulator = self.emulator
        return {
            "numbers": emulator.size,
            "numbers_full": emulator.full_size,
            "size": emulator.size / emulator.full_size,
            "bytes": emulator.bytes,
        }


def emulated(cfg: DictConfig, federated: FederatedData, device: str, vit: FrozenViT) -> EmulatedViT | None:
    """Return the emulator of `vit` that the configuration names, with prompts and head; None for `emulator=none`.

    Raises:
        ConfigError: if the method changes blocks that the emulator replaces, or a value cannot work.
    """
    name = OmegaConf.select(cfg, "names.emulator") or "the emulator"
    file = _file(cfg)
    if "_target_" not in cfg.emulator:
        if cfg.emulator.get("keep") != 1:
            raise ConfigError(f"emulator.keep={cfg.emulator.get('keep')} has no emulator; choose emulator=gradot.")
        if file is not None:
            raise ConfigError(f"owner.emulator={file} has no emulator; choose emulator=gradot, or backbone=emulator.")
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
    if file is not None and file.exists():
        emulator, settings = read_emulator(file, vit.image_size)
        require_same(file, settings, _settings(cfg, vit))
        emulator.backbone.to(device)
    else:
        owner = Owner(*_images(federated), federated.num_classes, cfg.seed)
        emulator = emulate(make, vit.to(device), start, owner)
    log.info("emulator=%s is there after %.1f seconds", name, time.perf_counter() - started)
    return EmulatedViT(emulator, model(cfg, federated, device, emulator.backbone))


def store(cfg: DictConfig, emulator: Emulator, vit: FrozenViT) -> None:
    """Write the emulator to `owner.emulator`, unless it is null or there is the file."""
    file = _file(cfg)
    if file is not None and not file.exists():
        write(emulator, file, _settings(cfg, vit))


def on_emulator(cfg: DictConfig, file: object) -> DictConfig:
    """Return the configuration of a client that has the emulator's file in the place of the ViT.

    Args:
        cfg: the configuration of the run.
        file: the client's own copy; None for `owner.emulator`.

    Raises:
        ConfigError: if there is none.
    """
    file = cfg.owner.emulator if file is None else file
    if file is None:
        raise ConfigError(
            f"emulator={cfg.names.emulator} in a Flower App: SuperNodes read the emulator from a file; set "
            'owner.emulator=FILE, or emulator="FILE" in each --node-config.'
        )
    changed = cfg.copy()
    with open_dict(changed):
        changed.backbone = OmegaConf.load(CONF / "backbone" / "emulator.yaml")
        changed.backbone.checkpoint = str(file)
        changed.emulator = OmegaConf.load(CONF / "emulator" / "none.yaml")
        changed.owner.emulator = None
        changed.names.backbone, changed.names.emulator = "emulator", "none"
        if cfg.names.partition == "local_folder":  # its images are the node's, none of them the owner's
            changed.owner.images = 0
    return changed


def require_same(file: Path, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` if an emulator's file was made with other settings."""
    for name, value in wanted.items():
        if settings.get(name) != value:
            raise ConfigError(
                f"owner.emulator={file} was made with {name}={settings.get(name)}, not {value}; remove the "
                "file, or name another."
            )


def _file(cfg: DictConfig) -> Path | None:
    """Return the file that `owner.emulator` names, in a folder that is there."""
    value = cfg.owner.emulator
    if value is None:
        return None
    if not isinstance(value, str) or not value or not Path(value).parent.is_dir():
        raise ConfigError(f"owner.emulator={value} names no file in a folder that is there; give one, or null.")
    return Path(value)


def _settings(cfg: DictConfig, vit: FrozenViT) -> dict[str, Any]:
    """Return what an emulator follows from, but for the owner's images themselves."""
    emulator = {f"emulator.{name}": value for name, value in plain(cfg.emulator).items()}
    whose = {"backbone": vit.name, "data.image_size": vit.image_size, "prompts.start_layer": cfg.prompts.start_layer}
    whose["simulation.precision"] = cfg.simulation.precision  # weights are stored as they are used
    return {**emulator, **whose}


def _images(federated: FederatedData) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and labels of the owner's images."""
    ids = torch.tensor(federated.owner, dtype=torch.long)
    return federated.images.images[ids], federated.images.labels[ids]

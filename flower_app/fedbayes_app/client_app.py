"""The clients of the Flower App; a process builds its client once.

A simulated client holds its part of the common images. A deployed one, whose SuperNode was started with a `data-root`,
holds all images below that folder (`partition=local_folder`).

What leaves a node: the shared parameters and the training metrics of its client; for each evaluation the predicted
probabilities of its images with their labels and domains, in the order of its files, because accuracy and calibration
are measured on the server over all clients; and the text of its errors. Images do not. Neither do personal parameters,
unless the node's owner sets `share-personal=true`.
"""

from functools import lru_cache

from flwr.app import Context
from omegaconf import OmegaConf

from fedbayes import build
from fedbayes.errors import ConfigError
from fedbayes.parts.offsite import on_emulator
from fedbayes.simulation.app import client_app, partition_of, root_of
from fedbayes.simulation.client import CohortClient
from fedbayes_app.settings import configuration, go_to


def client_of(context: Context) -> CohortClient:
    """The client of this process, for a node's images."""
    overrides, directory = (str(context.run_config[name]) for name in ("overrides", "directory"))
    if "data-root" not in context.node_config:  # a node of its own has folders of its own
        go_to(directory)
    cfg = configuration(overrides)
    emulator = context.node_config.get("emulator")
    root = root_of(context.node_config, cfg.clients, needed=cfg.names.partition == "local_folder")
    if root is None:
        return _built(overrides, emulator=emulator)
    return _built(overrides, root, partition_of(context.node_config), emulator)


@lru_cache(maxsize=1)
def _built(overrides: str, root: str | None = None, holder: int | None = None, emulator: object = None) -> CohortClient:
    """The client, ready to train; where the ViT's owner keeps it, on the emulator's file alone."""
    cfg = configuration(overrides)
    if cfg.names.emulator != "none":
        cfg = on_emulator(cfg, emulator)
    if root is not None:
        if "root" not in cfg.data:
            raise ConfigError(f"data={cfg.names.data} reads no folder; set data=imagefolder data.root=null.")
        cfg = cfg.copy()
        cfg.data.root, cfg.partition.holder = root, holder
    return build.client_of(OmegaConf.to_yaml(cfg, resolve=True))


app = client_app(client_of)

"""The client of a small run, as a run would have it, and its rounds in this process."""

from journal import Journal
from omegaconf import DictConfig

from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.server.session import RoundLog
from fedbayes.server.state import Progress
from fedbayes.simulation.client import CohortClient
from fedbayes.simulation.in_process import InProcessGrid


def smoke(*overrides: str) -> tuple[DictConfig, CohortClient]:
    """`experiment=smoke` with some values changed, and the client that it names, on the CPU."""
    cfg = compose(["experiment=smoke", *overrides])
    return cfg, build.assemble(cfg, build.NoEngine()).client


def play_rounds(cfg: DictConfig, client: CohortClient, log: RoundLog | None = None) -> Progress:
    """All rounds of a configuration, from nothing, with a new server; a journal that nobody reads where no log is."""
    loop = build.loop(cfg, build.sampling(cfg))
    grid = InProcessGrid(client, cfg.clients)
    sizes = build.partition_sizes(cfg, client.data)
    return loop.run(grid, build.strategy(cfg, loop), client.initial(), log or Journal(), sizes)

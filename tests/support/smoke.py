"""The client of a small run, as a run would have it."""

from omegaconf import DictConfig

from fedbayes import build
from fedbayes.configuration import compose
from fedbayes.simulation.client import CohortClient


def smoke(*overrides: str) -> tuple[DictConfig, CohortClient]:
    """`experiment=smoke` with some values changed, and the client that it names, on the CPU."""
    cfg = compose(["experiment=smoke", *overrides])
    data = build.data(cfg)
    return cfg, build.client(cfg, data, build.model(cfg, data, "cpu"))

"""Shapes are checked in every test, draws are repeatable, and one core is enough."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from xdist.scheduler import LoadScopeScheduling

import fedbayes  # noqa: F401  (before any test imports flwr: it turns telemetry off)

# Before anything imports the two packages: it rewrites them as they are loaded. Numbers and words are left to mypy and
# to the constructors' own checks, whose errors would otherwise never be seen.
SCALARS = "beartype.FrozenDict({int: object, float: object, str: object})"
CHECKER = f"beartype.beartype(conf=beartype.BeartypeConf(hint_overrides={SCALARS}))"
install_import_hook(["fedbayes.models", "fedbayes.inference"], CHECKER)
torch.set_num_threads(1)

# Busy machines must fail no test, and a search that goes on for ever meets any number of standard errors.
settings.register_profile("fedbayes", deadline=None, derandomize=True)
settings.load_profile("fedbayes")


STARTS_RAY = ("test_ray", "test_flower_private", "test_flower_app", "test_deployment")


class OneProcessForEachFile(LoadScopeScheduling):
    """For `pytest -n`: a file's tests stay together, and so do all files that start Ray."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return "ray" if Path(path).stem in STARTS_RAY else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """xdist's own groups need a private attribute of pytest that newer versions no longer read."""
    return OneProcessForEachFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that start Ray, which take longest."""
    items.sort(key=lambda item: item.path.stem not in STARTS_RAY)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tests may draw from torch's global generator; the library may not."""
    torch.manual_seed(0)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without charts and gallery: they take most of a small run's time, and not everything is about them."""
    from fedbayes.report import gallery
    from fedbayes.report.chart import Chart

    monkeypatch.setattr(Chart, "svg", lambda chart: "")
    monkeypatch.setattr(Chart, "save", lambda chart, folder: [])
    monkeypatch.setattr(gallery, "write_gallery", lambda *_: None)


@pytest.fixture(scope="session")
def random_vit() -> Callable[..., Any]:
    """Makes a small float64 timm ViT with every parameter random, so that nothing passes for being zero or one."""
    from timm.models.vision_transformer import VisionTransformer

    def make(**options: Any) -> VisionTransformer:
        defaults = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            vit = VisionTransformer(**{**defaults, **options}).double()
            with torch.no_grad():
                for parameter in vit.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return vit

    return make


@pytest.fixture(scope="session")
def images() -> Callable[[int, int], torch.Tensor]:
    """Makes `count` random uint8 images of a side."""

    def make(count: int, side: int) -> torch.Tensor:
        return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(2)).to(torch.uint8)

    return make

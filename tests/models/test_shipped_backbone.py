"""The shipped weights fit the architecture they name, know no digit, and are worth far more than random ones."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedbayes.data.datasets import ImageSet
from fedbayes.data.sources.styled_digits import styled_digits

ASSET = Path(str(files("fedbayes"))) / "assets" / "vit_letters32.safetensors"


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    with safe_open(ASSET, framework="pt") as file:
        return dict(file.metadata())


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return styled_digits(32)


def features(metadata: dict[str, str], images: Tensor, trained: bool) -> Tensor:
    """The class token, `(N, D)`, with the shipped weights or with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(**json.loads(metadata["architecture"])).eval()
    if trained:
        model.load_state_dict(load_file(ASSET), strict=True)
    mean, std = float(metadata["mean"]), float(metadata["std"])
    with torch.no_grad():
        return torch.cat([model((batch.float() / 255 - mean) / std) for batch in images.split(256)])


def ridge_accuracy(inputs: Tensor, labels: Tensor) -> float:
    """Test accuracy of ridge regression on one-hot labels; every third image is for testing."""
    test = torch.arange(len(labels)) % 3 == 0
    train = inputs[~test].double()
    mean, std = train.mean(0), train.std(0) + 1e-12
    x = (train - mean) / std
    y = torch.nn.functional.one_hot(labels[~test], 10).double() - 0.1
    weights = torch.linalg.solve(x.T @ x + 30.0 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)
    guessed = ((inputs[test].double() - mean) / std @ weights).argmax(1)
    return float((guessed == labels[test]).double().mean())


def test_the_file_is_small_and_float32() -> None:
    assert ASSET.stat().st_size <= 4_000_000
    weights = load_file(ASSET)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())
    assert not any("head" in name for name in weights)


def test_it_loads_strictly_into_the_timm_model_it_names(metadata: dict[str, str]) -> None:
    architecture = json.loads(metadata["architecture"])
    assert architecture["num_classes"] == 0
    assert architecture["global_pool"] == "token"
    model = VisionTransformer(**architecture)
    model.load_state_dict(load_file(ASSET), strict=True)
    assert 400_000 < sum(tensor.numel() for tensor in model.parameters()) < 550_000


def test_its_classes_are_letters_and_none_is_a_digit(metadata: dict[str, str]) -> None:
    letters = metadata["letters"]
    assert len(set(letters)) == len(letters) > 50
    assert all(letter.isalpha() and not letter.isnumeric() for letter in letters)


def test_a_linear_probe_beats_random_weights_on_every_style(metadata: dict[str, str], digits: ImageSet) -> None:
    trained, untrained = (features(metadata, digits.images, trained=flag) for flag in (True, False))
    for style, name in enumerate(digits.domain_names):
        chosen = digits.domains == style
        gains = [ridge_accuracy(inputs[chosen], digits.labels[chosen]) for inputs in (trained, untrained)]
        assert gains[0] >= gains[1] + 0.10, f"{name}: {gains[0]:.3f} against {gains[1]:.3f} with random weights"

"""Where backbones come from, and what is refused: no network, no foreign code."""

import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fedbayes.config.compose import compose
from fedbayes.errors import BackboneError
from fedbayes.models.zoo import SHIPPED, from_timm, load_weights, shipped
from fedbayes.parts.clients import backbone

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny() -> torch.nn.Module:
    """A vit_tiny of 32 pixels with weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return timm.create_model(TINY, pretrained=False, img_size=32, num_classes=5).eval()


class Harmful:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_the_shipped_backbone_is_the_file():
    backbone, saved = shipped(32), load_file(SHIPPED)
    state = backbone.vit.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert (backbone.dim, backbone.depth, backbone.image_size, backbone.num_tokens) == (96, 4, 32, 65)
    assert backbone.name == "vit_letters32"


def test_the_shipped_backbone_at_another_size(images):
    backbone = shipped(48)
    assert backbone.num_tokens == 145
    assert backbone.features(images(2, 48)).shape == (2, 96)
    small, large = shipped(32).vit.state_dict(), backbone.vit.state_dict()
    assert [name for name in small if not torch.equal(small[name], large[name])] == ["pos_embed"]


@pytest.mark.parametrize("side", [2, 33, 0])
def test_a_size_that_patches_do_not_cover_is_refused(side):
    with pytest.raises(BackboneError, match=f"data.image_size={side} is not a multiple of 4"):
        shipped(side)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file(tiny, tmp_path, images, suffix):
    path = str(tmp_path / f"weights{suffix}")
    (torch.save if suffix == ".pth" else lambda state, to: save_file(state, to))(tiny.state_dict(), path)
    backbone = from_timm(TINY, 32, path)
    pixels = (images(2, 32).float() / 255 - 0.5) / 0.5  # timm's own normalisation of this model
    with torch.no_grad():
        expected = tiny.forward_head(tiny.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(backbone.features(images(2, 32)), expected, rtol=0, atol=1e-4)
    assert from_timm(TINY, 64, path).num_tokens == 17


def test_weights_of_another_architecture_are_refused(tmp_path, random_vit):
    path = tmp_path / "other.pth"
    torch.save(random_vit().state_dict(), path)
    with pytest.raises(BackboneError, match=r"other\.pth does not fit VisionTransformer: .*backbone\.name"):
        from_timm(TINY, 32, str(path))


@pytest.mark.parametrize("raw", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, raw):
    path, place = tmp_path / "weights.pth", tmp_path / "made by the pickle"
    if raw:
        path.write_bytes(pickle.dumps({"norm.weight": Harmful(place)}))
    else:
        torch.save({"norm.weight": Harmful(place)}, path)
    with pytest.raises(BackboneError, match=r"backbone\.checkpoint=.*weights\.pth cannot be read"):
        from_timm(TINY, 32, str(path))
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.pth", b"no zip"), ("a.safetensors", b"no tensors"), ("a.pth", b""), ("a.safetensors", b"")],
)
def test_a_broken_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=r"backbone\.checkpoint=.* cannot be read"):
        from_timm(TINY, 32, str(path))


@pytest.mark.parametrize("content", [[1, 2], 3.0, {1: torch.ones(2)}, "text", torch.ones(2)], ids=type)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "else.pth"
    torch.save(content, path)
    with pytest.raises(BackboneError, match=r"backbone\.checkpoint=.*else\.pth"):
        from_timm(TINY, 32, str(path))


def test_missing_file_missing_weights_and_unknown_name(tmp_path):
    with pytest.raises(BackboneError, match=r"none\.pth does not exist; give a \.safetensors or \.pth file"):
        from_timm(TINY, 32, str(tmp_path / "none.pth"))
    with pytest.raises(BackboneError, match=r"has no weights; give backbone\.checkpoint=FILE"):
        from_timm(TINY, 32)
    with pytest.raises(BackboneError, match=r"vit_tinny_patch16 is not a timm model"):
        from_timm("vit_tinny_patch16", 32)
    with pytest.raises(
        BackboneError, match=r"vit_tiny_pach16_224 is not a timm model; close to it: vit_tiny_patch16_224"
    ):
        from_timm("vit_tiny_pach16_224", 32)


def test_other_architectures_and_sizes_are_refused(tmp_path, tiny):
    path = str(tmp_path / "weights.pth")
    torch.save(tiny.state_dict(), path)
    with pytest.raises(BackboneError, match=r"resnet18 is of timm's family resnet"):
        from_timm("resnet18", 32, path)
    with pytest.raises(BackboneError, match=r"vit_relpos_small_patch16_224 is of timm's family"):
        from_timm("vit_relpos_small_patch16_224", 32, path)
    with pytest.raises(BackboneError, match=r"data\.image_size=40 is not a multiple of 16"):
        from_timm(TINY, 40, path)


def test_without_network_the_remedy_is_a_file(monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BackboneError, match=r"couldn't connect to the hub.*give backbone\.checkpoint=FILE"):
        from_timm(TINY, 32, pretrained=True)


def test_a_checkpoint_of_other_patches_is_refused_although_it_could_be_resampled(tmp_path, tiny):
    """timm's `vit_tiny_patch16` under the name of a ViT with patches of 8 px: timm itself would resample them."""
    path = str(tmp_path / "patch16.pth")
    for state in (tiny.state_dict(), {"model": tiny.state_dict()}):
        torch.save(state, path)
        with pytest.raises(BackboneError, match=r"patch16\.pth .*\(192, 3, 16, 16\).*backbone\.name"):
            from_timm("vit_small_patch8_224", 32, path)
    other = timm.create_model("vit_small_patch32_224", img_size=64, num_classes=0)
    torch.save(timm.create_model("vit_small_patch16_224", img_size=32, num_classes=0).state_dict(), path)
    with pytest.raises(BackboneError, match=r"\(384, 3, 16, 16\)"):
        load_weights(other, torch.load(path, weights_only=True), "patch16.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_the_tensors_name(tmp_path, tiny, value):
    path = str(tmp_path / "weights.pth")
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    state["blocks.3.mlp.fc1.bias"][5] = value
    torch.save(state, path)
    with pytest.raises(BackboneError, match=r"weights\.pth: blocks\.3\.mlp\.fc1\.bias"):
        from_timm(TINY, 32, path)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_tiny_patch16_224.nonsense", 32, r"no weights 'nonsense'.*augreg"),
        ("vit_tiny_r_s16_p8_224", 112, r"data\.image_size=112 \(its patches"),
        ("deit3_small", 32, r"close to it: deit3_small_patch16_224"),
        ("resnet18", 32, r"resnet18 is of timm's family"),
        ("samvit_base_patch16", 32, r"is of timm's family"),
    ],
)
def test_the_architecture_is_checked_before_weights_are_asked_for(tmp_path, name, size, message):
    for checkpoint in (None, str(tmp_path / "missing.pth")):
        with pytest.raises(BackboneError, match=message):
            from_timm(name, size, checkpoint)


@pytest.mark.parametrize(("data", "is_warned"), [("cifar10", True), ("imagefolder", True), ("mnist", False)])
def test_the_letters_backbone_warns_of_photographs(caplog, data, is_warned):
    backbone(compose([f"data={data}"]), 32)
    assert ("backbone=timm" in caplog.text) == is_warned

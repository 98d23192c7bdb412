"""An emulator's file gives back the same emulator to the bit, and holds nothing of the full lower blocks."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedbayes.errors import BackboneError
from fedbayes.models.emulators.base import Owner, emulate
from fedbayes.models.emulators.files import read, read_emulator, write
from fedbayes.models.emulators.gradot import GradOT
from fedbayes.models.emulators.scaleot import ScaleOT
from fedbayes.models.emulators.uniform import UniformEmulator
from fedbayes.models.zoo import from_timm, shipped

IMAGES = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
OWNER = Owner(IMAGES, torch.arange(40) % 10, 10, 0)
GRADOT = GradOT(keep=0.75, basis="kfac", attention=None, damping=1e-5, privacy=0.0, loss="features")
SCALEOT = {"keep": 0.75, "importance": "leave_one_out", "harmonizers": "closed_form", "rank": 8, "ridge": 1e-3}
MAKERS = {
    "uniform": UniformEmulator(keep=0.75, distil_steps=0, distil_lr=1e-4),
    "gradot": GRADOT,
    "scaleot": ScaleOT(**SCALEOT, attention=0.5, steps=1, lr=1e-3, rate=1.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_read_is_what_was_written_to_the_bit(name, tmp_path):
    emulator = emulate(MAKERS[name], shipped(32), 2, OWNER)
    write(emulator, tmp_path / "e.safetensors", {"emulator.keep": 0.75})
    again, settings = read_emulator(tmp_path / "e.safetensors", 32)
    assert settings == {"emulator.keep": 0.75}
    assert (again.size, again.full_size, again.total) == (emulator.size, emulator.full_size, emulator.total)
    assert torch.equal(again.backbone.features(IMAGES), emulator.backbone.features(IMAGES))
    tensors = load_file(tmp_path / "e.safetensors")
    assert 4 * sum(tensor.numel() for tensor in tensors.values()) == emulator.bytes


def test_no_matrix_of_the_full_lower_blocks_is_in_the_file(tmp_path):
    backbone = shipped(32)
    write(emulate(GRADOT, backbone, 2, OWNER), tmp_path / "e.safetensors", {})
    tensors = load_file(tmp_path / "e.safetensors")
    lower = [weight for name, weight in backbone.vit.blocks[:2].state_dict().items() if weight.ndim == 2]
    assert len(lower) == 8
    for weight in lower:
        assert not any(t.shape == weight.shape and torch.equal(t, weight) for t in tensors.values())
    assert "blocks.0.attn.qkv.weight" not in tensors


def test_an_emulator_of_timms_vit_needs_no_checkpoint(tmp_path):
    import timm

    vit = timm.create_model("test_vit", img_size=32, num_classes=0)
    save_file(vit.state_dict(), tmp_path / "full.safetensors")
    backbone = from_timm("test_vit", 32, str(tmp_path / "full.safetensors"))
    emulator = emulate(UniformEmulator(keep=0.5, distil_steps=0, distil_lr=1e-4), backbone, 4, OWNER)
    write(emulator, tmp_path / "e.safetensors", {})
    (tmp_path / "full.safetensors").unlink()
    again = read(str(tmp_path / "e.safetensors"), 32)
    assert torch.equal(again.features(IMAGES), emulator.backbone.features(IMAGES))


def damaged(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: tensors.pop("cls_token"),
        lambda tensors, metadata: tensors.update(extra=torch.zeros(1)),
        lambda tensors, metadata: tensors["cls_token"].fill_(torch.nan),
        lambda tensors, metadata: metadata.pop("emulator"),
        lambda tensors, metadata: metadata.update(emulator=json.dumps({"image_size": 32})),
    ],
    ids=["a tensor less", "a tensor more", "NaN", "no metadata", "half of the metadata"],
)
def test_a_damaged_file_is_rejected_by_name(change, tmp_path):
    path = tmp_path / "e.safetensors"
    write(emulate(MAKERS["uniform"], shipped(32), 2, OWNER), path, {})
    damaged(path, change)
    with pytest.raises(BackboneError, match=r"e\.safetensors"):
        read(str(path), 32)


def test_other_files_and_sizes_are_rejected_by_name(tmp_path):
    with pytest.raises(BackboneError, match=r"nothing\.safetensors"):
        read(str(tmp_path / "nothing.safetensors"), 32)
    write(emulate(MAKERS["uniform"], shipped(32), 2, OWNER), tmp_path / "e.safetensors", {})
    with pytest.raises(BackboneError, match=r"data\.image_size=32"):
        read(str(tmp_path / "e.safetensors"), 16)

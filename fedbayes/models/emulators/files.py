"""An emulator as a `.safetensors` file: what clients are given in the place of the ViT's checkpoint.

Tensors have timm's names, and a matrix of low rank is stored as its two factors. The metadata say how to build the
blocks, and with which settings the emulator was made. Nothing of the full lower blocks is in the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fedbayes.errors import BackboneError
from fedbayes.models.backbone import FrozenViT
from fedbayes.models.emulators.base import LEFT, RIGHT, Emulator, set_low_rank, size
from fedbayes.models.emulators.harmonizers import Harmonizer
from fedbayes.models.zoo import SHIPPED


def write(emulator: Emulator, path: Path, settings: Mapping[str, Any]) -> None:
    """Write an emulator, and the settings that it was made with; a file that is there is replaced at once."""
    backbone = emulator.backbone
    tensors: dict[str, Tensor] = {}
    for name, tensor in backbone.weights().items():
        layer = backbone.layer(name.rpartition(".")[0])
        if name.endswith("weight") and hasattr(layer, LEFT):
            tensors |= {f"{name}.{factor}": getattr(layer, factor) for factor in (LEFT, RIGHT)}
        else:
            tensors[name] = tensor
    about = {
        "name": backbone.name,
        "arguments": _shipped_arguments() if backbone.name == SHIPPED.stem else None,
        "image_size": backbone.image_size,
        "mean": backbone.mean.flatten().tolist(),
        "std": backbone.std.flatten().tolist(),
        "blocks": [_form(block) for block in backbone.blocks[: emulator.start]],
        "full_size": emulator.full_size,
        "settings": dict(settings),
    }
    partial = path.with_name(f"{path.name}.partial")
    cpu = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(cpu, partial, {"emulator": json.dumps(about)})
    partial.replace(path)


def read(checkpoint: str, image_size: int) -> FrozenViT:
    """Return the emulator in a file, as a backbone.

    Args:
        checkpoint: the file.
        image_size: side of the images, which must be the one that it was made for.

    Raises:
        BackboneError: if the file is missing or damaged, or is for images of another size.
    """
    return read_emulator(Path(checkpoint), image_size)[0].backbone


def read_emulator(path: Path, image_size: int) -> tuple[Emulator, dict[str, Any]]:
    """Return the emulator in a file, and the settings that it was made with; see `read`."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["emulator"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if about["image_size"] != image_size:
            raise BackboneError(
                f"{path} is an emulator for data.image_size={about['image_size']}, not {image_size}; give that size."
            )
        total = sum(tensor.numel() for tensor in tensors.values())
        vit = _skeleton(about)
        start = len(about["blocks"])
        lower = [_built(form, vit.blocks[index]) for index, form in enumerate(about["blocks"])]
        vit.blocks = nn.Sequential(*lower, *vit.blocks[start:])
        _fill(vit, tensors)
        emulator = FrozenViT(vit, about["name"], tuple(about["mean"]), tuple(about["std"]))
        return Emulator(emulator, start, size(nn.ModuleList(lower)), about["full_size"], total), about["settings"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{path} is no emulator ({reason}); have its owner write it again.") from error


def _shipped_arguments() -> dict[str, Any]:
    """Return the architecture of the shipped ViT."""
    with safe_open(SHIPPED, framework="pt") as file:
        arguments: dict[str, Any] = json.loads(file.metadata()["architecture"])
    return arguments


def _form(block: Any) -> dict[str, Any]:
    """Return what a block is built from."""
    if isinstance(block, nn.Identity):
        return {"kind": "dropped"}
    if isinstance(block, Harmonizer):
        rank, dim = block.down.weight.shape
        return {"kind": "harmonizer", "dim": dim, "rank": rank, "is_linear": isinstance(block.act, nn.Identity)}
    return {"kind": "block", "hidden": block.mlp.fc1.out_features}


def _skeleton(about: Mapping[str, Any]) -> Any:
    """Return timm's ViT without its weights."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if about["arguments"] is not None:
        return VisionTransformer(**{**about["arguments"], "img_size": about["image_size"]})
    return timm.create_model(about["name"], pretrained=False, img_size=about["image_size"], num_classes=0)


def _built(form: Mapping[str, Any], block: Any) -> nn.Module:
    """Return the module for a form, made of a full block where it is one."""
    if form["kind"] == "dropped":
        return nn.Identity()
    if form["kind"] == "harmonizer":
        return Harmonizer(form["dim"], form["rank"], is_linear=form["is_linear"])
    mlp, hidden = block.mlp, form["hidden"]
    if hidden != mlp.fc1.out_features:
        mlp.fc1 = nn.Linear(mlp.fc1.in_features, hidden, bias=mlp.fc1.bias is not None)
        mlp.fc2 = nn.Linear(hidden, mlp.fc2.out_features, bias=mlp.fc2.bias is not None)
    full: nn.Module = block
    return full


def _fill(vit: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a ViT its weights; every one must be there, and finite."""
    for name in [name for name in tensors if name.endswith(f".weight.{LEFT}")]:
        weight = name.removesuffix(f".{LEFT}")
        left, right = tensors.pop(name), tensors.pop(f"{weight}.{RIGHT}")
        layer = vit.get_submodule(weight.removesuffix(".weight"))
        assert isinstance(layer, nn.Linear), "only linear layers are factored"
        set_low_rank(layer, left, right)
        tensors[weight] = layer.weight.detach().clone()
    vit.load_state_dict(tensors, strict=True)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")

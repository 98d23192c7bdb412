"""Where backbones come from: the ViT shipped with fedbayes, or any supported timm ViT with weights of the user's."""

import difflib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedbayes.errors import BackboneError
from fedbayes.models.architectures import FAMILIES, REMEDY, architecture_of
from fedbayes.models.backbone import FrozenViT

ARCHITECTURE = "name the architecture it was saved from in backbone.name."
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "vit_letters32.safetensors"


def shipped(image_size: int) -> FrozenViT:
    """The small ViT that `experiments/pretrain_backbone.py` trained on letters; needs no network.

    Args:
        image_size: side of the images, in pixels; another size than 32 resamples the position embeddings.
    """
    from safetensors import safe_open
    from timm.models.vision_transformer import VisionTransformer

    with safe_open(SHIPPED, framework="pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    vit = VisionTransformer(**{**json.loads(about["architecture"]), "img_size": image_size})
    backbone = FrozenViT(vit, SHIPPED.stem, (float(about["mean"]),) * 3, (float(about["std"]),) * 3)
    load_weights(vit, state, SHIPPED.name)
    return backbone


def from_timm(
    name: str, image_size: int, checkpoint: str | None = None, pretrained: bool = False, random: bool = False
) -> FrozenViT:
    """A ViT of timm's, normalised as its own data configuration says.

    Args:
        name: timm's model name, e.g. `vit_tiny_patch16_224`.
        image_size: side of the images, in pixels; position embeddings are resampled to it.
        checkpoint: a `.safetensors` or `.pth` file with weights; a pickle with code in it is refused.
        pretrained: fetch timm's own weights; the only thing in fedbayes's models that uses the network.
        random: take timm's initial values, drawn with seed 0: for trying a pipeline, since they have learnt nothing.

    Raises:
        BackboneError: if the model is unknown or unsupported, or the weights are missing or do not fit.
    """
    from timm.data.config import resolve_model_data_config

    require_model(name, image_size)
    if random and (checkpoint is not None or pretrained):
        raise BackboneError(f"backbone.random=true: {name} has other weights too; give one source of weights.")
    if checkpoint is None and not pretrained and not random:
        raise BackboneError(
            f"backbone.name={name} has no weights; give backbone.checkpoint=FILE, backbone.pretrained=true (which "
            "downloads them), or backbone.random=true (to try a pipeline)."
        )
    state = None if checkpoint is None else _read(checkpoint)  # before the slow construction
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = _created(name, image_size, pretrained=pretrained and state is None)
    normalisation = resolve_model_data_config(vit)
    backbone = FrozenViT(vit, name, normalisation["mean"], normalisation["std"])
    if state is not None:
        load_weights(vit, state, str(checkpoint))
    return backbone


def require_model(name: str, image_size: int) -> None:
    """Check that timm has a model and that it is a ViT that prompts fit, without its weights.

    Raises:
        BackboneError: if not, with names that begin alike.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        names = timm.list_models()
        close = [model for model in names if model.startswith(architecture)]
        close = close[:4] or difflib.get_close_matches(architecture, names, n=4)
        raise BackboneError(f"backbone.name={name} is not a timm model; close to it: {', '.join(close) or 'nothing'}.")
    package, _, family = timm.models.model_entrypoint(architecture).__module__.rpartition(".")
    if package == "timm.models" and family not in FAMILIES:
        raise BackboneError(f"backbone.name={name} is of timm's family {family}, which takes no prompts; {REMEDY}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BackboneError(
            f"backbone.name={name}: {architecture} has no weights '{tag}'; choose one of {', '.join(tags)}, or leave "
            "the tag out beside backbone.checkpoint."
        )
    with torch.device("meta"):
        architecture_of(_created(name, image_size, pretrained=False), name)


def _created(name: str, image_size: int, *, pretrained: bool) -> nn.Module:
    """Timm's model, without a head.

    Raises:
        BackboneError: if it cannot be built at that size, or its weights cannot be had.
    """
    import timm

    try:
        vit: nn.Module = timm.create_model(name, pretrained=pretrained, img_size=image_size, num_classes=0)
    except (TypeError, AssertionError) as error:
        reason = str(error) or "its patches do not fit"
        raise BackboneError(
            f"backbone.name={name} cannot be built at data.image_size={image_size} ({reason}); "
            "choose a plain ViT whose patch size divides the image size, e.g. vit_tiny_patch16_224."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"backbone.name={name}: pretrained weights could not be loaded ({reason}); download them on a machine with "
            "network and give backbone.checkpoint=FILE."
        ) from error
    return vit


def _read(checkpoint: str) -> dict[str, Any]:
    """The tensors in a file, never running code that the file carries."""
    from timm.models import load_state_dict

    if not Path(checkpoint).is_file():
        raise BackboneError(f"backbone.checkpoint={checkpoint} does not exist; give a .safetensors or .pth file.")
    try:
        state: dict[str, Any] = load_state_dict(checkpoint, use_ema=False, weights_only=True)
    except Exception as error:  # safetensors' own class derives from Exception alone
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"backbone.checkpoint={checkpoint} cannot be read ({reason}); save it again.") from error
    return state


def load_weights(vit: nn.Module, state: dict[str, Any], source: str) -> None:
    """Fill `vit` from a checkpoint's tensors; position embeddings of another image size are resampled by timm.

    Args:
        vit: the transformer, at the wanted image size.
        state: the checkpoint; its classification head is ignored.
        source: the checkpoint's name, for errors.

    Raises:
        BackboneError: if a tensor is missing, left over, of another shape or not finite. What no tensor shows, such as
            the number of heads, is not checked.
    """
    checkpoint_filter_fn = sys.modules[type(vit).__module__].checkpoint_filter_fn  # of its family
    _require_equal_patches(vit, state, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filtered = checkpoint_filter_fn(dict(state), vit)
        names = vit.state_dict()
        filtered = {name: tensor for name, tensor in filtered.items() if not name.startswith("head.") or name in names}
        vit.load_state_dict(filtered, strict=True)
    except (RuntimeError, KeyError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"backbone.checkpoint={source} does not fit {type(vit).__name__}: {reason}; {ARCHITECTURE}"
        ) from error
    for name, tensor in vit.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise BackboneError(f"backbone.checkpoint={source}: {name} holds NaN or infinity; save the file again.")


def _require_equal_patches(vit: Any, state: dict[str, Any], source: str) -> None:
    """Check the patch embedding, which timm would resample to another patch size without a word."""
    weights = state
    for nested in ("state_dict", "model"):  # as timm looks for it
        if isinstance(weights.get(nested), dict):
            weights = weights[nested]
    size = vit.patch_embed.proj.weight.shape
    for name, tensor in weights.items():
        if (
            str(name).endswith("patch_embed.proj.weight")
            and isinstance(tensor, Tensor)
            and tensor.numel() != size.numel()
        ):
            raise BackboneError(
                f"backbone.checkpoint={source} does not fit {type(vit).__name__}: its {name} is {tuple(tensor.shape)}, "
                f"this architecture's {tuple(size)}; {ARCHITECTURE}"
            )

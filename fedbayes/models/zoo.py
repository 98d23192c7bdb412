"""Where backbones come from: the ViT shipped with fedbayes, or any supported timm ViT with weights of the user's."""

import difflib
import json
from pathlib import Path
from typing import Any

from fedbayes.errors import BackboneError
from fedbayes.models.backbone import FrozenViT, load_weights

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


def from_timm(name: str, image_size: int, checkpoint: str | None = None, pretrained: bool = False) -> FrozenViT:
    """A ViT of timm's, normalised as its own data configuration says.

    Args:
        name: timm's model name, e.g. `vit_tiny_patch16_224`.
        image_size: side of the images, in pixels; position embeddings are resampled to it.
        checkpoint: a `.safetensors` or `.pth` file with weights; a pickle with code in it is refused.
        pretrained: fetch timm's own weights; the only thing in fedbayes's models that uses the network.

    Raises:
        BackboneError: if the model is unknown or unsupported, or the weights are missing or do not fit.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=4)
        raise BackboneError(f"backbone.name={name} is not a timm model; close to it: {', '.join(close) or 'nothing'}.")
    if checkpoint is None and not pretrained:
        raise BackboneError(
            f"backbone.name={name} has no weights; give backbone.checkpoint=FILE or backbone.pretrained=true "
            "(which downloads them)."
        )
    state = None if checkpoint is None else _read(checkpoint)  # before the slow construction
    try:
        vit = timm.create_model(name, pretrained=pretrained and state is None, img_size=image_size, num_classes=0)
    except (TypeError, AssertionError) as error:
        raise BackboneError(
            f"backbone.name={name} cannot be built at data.image_size={image_size}: {error}; "
            "it must be a ViT whose patch size divides the image size."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"backbone.name={name}: pretrained weights could not be loaded ({reason}); download them on a machine with "
            "network and give backbone.checkpoint=FILE."
        ) from error
    normalisation = resolve_model_data_config(vit)
    backbone = FrozenViT(vit, name, normalisation["mean"], normalisation["std"])
    if state is not None:
        load_weights(vit, state, str(checkpoint))
    return backbone


def _read(checkpoint: str) -> dict[str, Any]:
    """The tensors in a file, never running code that the file carries."""
    from pickle import UnpicklingError

    from timm.models import load_state_dict

    if not Path(checkpoint).is_file():
        raise BackboneError(f"backbone.checkpoint={checkpoint} does not exist; give a .safetensors or .pth file.")
    try:
        state: dict[str, Any] = load_state_dict(checkpoint, use_ema=False, weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"backbone.checkpoint={checkpoint} cannot be read ({reason}); save it again.") from error
    except Exception as error:  # safetensors raises a class of its own that derives from Exception alone
        raise BackboneError(f"backbone.checkpoint={checkpoint} cannot be read ({error}); save it again.") from error
    return state

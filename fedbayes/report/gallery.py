"""A run's gallery: single test images with what was said of them, and one client's prompt codes, as `gallery.json`.

A run makes it at its end, where images and model are at hand; its page then needs nothing but that file. For an older
run `python -m fedbayes.report.gallery RUN_DIR...` builds its data again.
"""

import base64
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from fedbayes import build
from fedbayes.config import stored as stored_configuration
from fedbayes.data.federated import FederatedData
from fedbayes.errors import DataError, FedbayesError
from fedbayes.models.prompted import PromptedViT
from fedbayes.report.attention import prompt_attention
from fedbayes.report.prompt_codes import codes_of_client
from fedbayes.server.trained import TrainedClients
from fedbayes.storage import checkpoint
from fedbayes.storage.predictions import Predictions, read_predictions
from fedbayes.storage.run_dir import GALLERY, write_json
from fedbayes.tracking.inputs import require_same_inputs

log = logging.getLogger("fedbayes")

EACH = 8
"""Images in a row of the gallery."""
SIDE = 96
"""Pixels; larger images are made smaller."""


def write_gallery(run_dir: Path, cfg: DictConfig, parts: build.Parts) -> Path:
    """Write a run's `gallery.json`; where there can be none, it says why, for hours of training matter more.

    With `evaluate.gallery=false` it has no image, only the codes of one client's images.

    Args:
        run_dir: of the run, with checkpoint and predictions.
        cfg: its configuration.
        parts: of the run; the model's parameters are filled anew.

    Returns:
        The file.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        content = _gallery(run_dir, cfg, parts)
    except OSError:
        raise
    except Exception as error:
        if not isinstance(error, FedbayesError):
            log.warning("no gallery (%s: %s)", type(error).__name__, error)
        content = {"missing": f"There is no gallery. {type(error).__name__}: {error}"}
    write_json(run_dir / GALLERY, content)
    return run_dir / GALLERY


def _gallery(run_dir: Path, cfg: DictConfig, parts: build.Parts) -> dict[str, Any]:
    predictions, data, model = read_predictions(run_dir), parts.data, parts.model
    if predictions is None or not len(data.images):
        raise DataError("the images are elsewhere, or none was predicted; a gallery needs both in one place.")
    ids = _image_ids(predictions, data)
    rows = _rows(predictions) if cfg.evaluate.gallery else {}
    clients = build.trained(cfg, parts, checkpoint.latest(run_dir))
    attention = _attention(
        clients, data, model, ids, predictions.partitions, sorted({i for r in rows.values() for i in r})
    )
    uncertainty = predictions.prompt_uncertainty

    def entry(row: int) -> dict[str, Any]:
        pixels = data.images.images[ids[row]].numpy()
        weights = attention.get(row)
        return {
            "png": _png(pixels),
            "attention": None if weights is None else _png(_lit(pixels, weights)),
            "label": data.images.classes[int(predictions.labels[row])],
            "predicted": data.images.classes[int(predictions.predicted[row])],
            "domain": data.images.domain_names[int(predictions.domains[row])],
            "partition": int(predictions.partitions[row]),
            "confidence": float(predictions.confidence[row]),
            "uncertainty": None if uncertainty is None else float(uncertainty[row]),
        }

    partition = _most_mixed(predictions)
    model.stack([clients.parameters(partition)])
    return {
        "missing": None if cfg.evaluate.gallery else "Images are left out: evaluate.gallery=false.",
        "images": {name: [entry(row) for row in chosen] for name, chosen in rows.items()},
        "attention_note": "The second picture of each: bright where the prompts attend, a mean over heads, prompts and "
        "the blocks that see them; each picture from its least to its most.",
        "codes": codes_of_client(model, data, partition, cfg.seed),
    }


def _image_ids(predictions: Predictions, data: FederatedData) -> np.ndarray:
    """The image of each prediction.

    Raises:
        DataError: if the predictions are of other images.
    """
    partitions = list(dict.fromkeys(predictions.partitions.tolist()))
    if max(partitions) >= len(data):
        raise DataError(f"there are predictions of client {max(partitions)} of {len(data)}; the data have changed.")
    ids = torch.cat([data.indices(partition, "test") for partition in partitions]).numpy()
    if len(ids) != len(predictions.labels) or not np.array_equal(data.images.labels[ids].numpy(), predictions.labels):
        raise DataError("the test images are not those that were predicted; the data have changed since the run.")
    return ids


def _rows(predictions: Predictions) -> dict[str, list[int]]:
    """Which predictions to show. Of equal confidence the earlier one, so a page can be made again."""
    order = np.argsort(-predictions.confidence, kind="stable")
    wrong = order[~predictions.right[order]]
    least = order[::-1][: min(EACH, len(order) // 2)]
    chosen = {
        "most_certain": order[: min(EACH, len(order) - len(least))],
        "least_certain": least,
        "mistakes": wrong[:EACH],
    }
    return {name: rows.tolist() for name, rows in chosen.items()}


def _attention(
    clients: TrainedClients,
    data: FederatedData,
    model: PromptedViT,
    ids: np.ndarray,
    partitions: np.ndarray,
    rows: Sequence[int],
) -> dict[int, np.ndarray]:
    """Where the prompts of some images attend, `(rows, columns)` each; without prompts, of none.

    Args:
        clients: say what each predicts with.
        data: the images.
        model: is filled anew.
        ids: the image of each prediction.
        partitions: the client of each prediction.
        rows: the predictions to look at.
    """
    attention: dict[int, np.ndarray] = {}
    for partition in sorted({int(partitions[row]) for row in rows}):
        of_client = [row for row in rows if partitions[row] == partition]
        model.stack([clients.parameters(partition)])
        with torch.no_grad():
            tokens, z = model.precompute(data.images.images[ids[of_client]].to(model.backbone.mean.device))
            prompts: Tensor = model.generator.plain(z.unsqueeze(0))[0]
            weights = None if model.weights is not None else prompt_attention(model, tokens, prompts)
        if weights is not None:
            attention.update(zip(of_client, weights.cpu().numpy(), strict=True))
    return attention


def _most_mixed(predictions: Predictions) -> int:
    """The client with test images of the most domains; of several, the one with the most images."""
    partitions, counts = np.unique(predictions.partitions, return_counts=True)
    domains = [len(np.unique(predictions.domains[predictions.partitions == partition])) for partition in partitions]
    return int(partitions[max(range(len(partitions)), key=lambda index: (domains[index], counts[index]))])


def _png(pixels: np.ndarray) -> str:
    """An image `(3, H, W)` as PNG in base 64."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    text = io.BytesIO()
    image.save(text, "PNG", optimize=True)
    return base64.b64encode(text.getvalue()).decode()


def _lit(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """An image that is dark but where the weights are large."""
    share = (weights - weights.min()) / max(float(weights.max() - weights.min()), 1e-12)
    size = (pixels.shape[2], pixels.shape[1])
    mask = np.asarray(Image.fromarray((255 * share).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)) / 255
    # Grey, or black strokes on it would hide where the light falls.
    return np.asarray((0.35 * pixels + 0.65 * 255) * (0.15 + 0.85 * mask)).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the galleries of finished runs, and their pages with them.

    Args:
        argv: run directories; those of the process's arguments by default.

    Returns:
        0, or 2 where a directory holds no run or its data are not there.
    """
    from fedbayes.report.run_page import write_html

    for folder in map(Path, sys.argv[1:] if argv is None else argv):
        try:
            cfg = stored_configuration.read(folder)
            parts = build.assemble(cfg, build.NoEngine())
            require_same_inputs(folder, parts)
            write_gallery(folder, cfg, parts)
            print(write_html(folder))
        except FedbayesError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

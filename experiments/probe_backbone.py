"""Compares linear classifiers on frozen features, on raw pixels and on random weights' features, style by style.

Every figure is the mean accuracy over five stratified folds of one style's digits. The classifier is the same for
all rows: logistic regression whose scaling and C are chosen by three-fold cross-validation inside each training part.

    python experiments/probe_backbone.py
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedbayes.data.sources.styled_digits import styled_digits
from fedbayes.models.zoo import SHIPPED
from fedbayes.seeding import key

GRID = {"scale__with_std": [True, False], "classify__C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]}


def load_backbone(path: Path, random_weights: int | None = None) -> VisionTransformer:
    """The backbone in the file, or the same architecture with weights drawn from a seed."""
    with safe_open(path, framework="pt") as file:
        architecture = json.loads(file.metadata()["architecture"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(random_weights or 0, "probe", "weights"))
        model = VisionTransformer(**architecture)
    if random_weights is None:
        model.load_state_dict(load_file(path))
    return model.eval()


@torch.no_grad()
def class_features(model: VisionTransformer, images: Tensor) -> NDArray[np.float32]:
    """The class token after the last norm, `(N, D)`; images are uint8."""
    batches = [model(batch.float() / 127.5 - 1) for batch in images.split(256)]
    return torch.cat(batches).numpy()


def aligned_pixels(images: Tensor) -> NDArray[np.float32]:
    """Grey pixels relative to the image's border, with the sign that makes their mean positive, `(N, H W)`.

    In two styles a digit may be lighter or darker than its ground, which no linear function of pixels can undo; this
    undoes it by hand and gives pixels a fairer chance.
    """
    grey = images.float().mean(1) / 255
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], dim=1).mean(1)
    relative = (grey - border.view(-1, 1, 1)).flatten(1)
    return np.asarray(relative * relative.mean(1, keepdim=True).sign())


def accuracy(features: NDArray[np.float32], labels: NDArray[np.int64], folds: int = 5) -> float:
    """Mean accuracy of the linear classifier over stratified folds.

    The full-rank PCA only turns the axes: it changes no solution of an L2-penalised linear model, and lets 3,072
    pixels be fitted in as many dimensions as there are images.
    """
    steps = [
        ("scale", StandardScaler()),
        ("turn", PCA(svd_solver="full")),
        ("classify", LogisticRegression(max_iter=300)),
    ]
    search = GridSearchCV(Pipeline(steps), GRID, cv=StratifiedKFold(3, shuffle=True, random_state=0))
    return float(
        cross_val_score(search, features, labels, cv=StratifiedKFold(folds, shuffle=True, random_state=0)).mean()
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", choices=("frozen", "pixels", "pixels, aligned", "random"), help="one row of the table"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    digits = styled_digits(32)
    rows: dict[str, Callable[[], NDArray[np.float32]]] = {
        "frozen": lambda: class_features(load_backbone(args.weights), digits.images),
        "pixels": lambda: np.asarray(digits.images.flatten(1).float() / 255),
        "pixels, aligned": lambda: aligned_pixels(digits.images),
        "random": lambda: class_features(load_backbone(args.weights, random_weights=1), digits.images),
    }
    print("| features | " + " | ".join(digits.domain_names) + " |", flush=True)
    for name, features in rows.items():
        if args.only in (None, name):
            values, cells = features(), []
            for style in range(len(digits.domain_names)):
                chosen = (digits.domains == style).numpy()
                cells.append(accuracy(values[chosen], digits.labels.numpy()[chosen]))
            print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""Image sets of the Hugging Face Hub through Flower's `flwr-datasets`, an extra: `pip install fedbayes[hub]`.

Only the reading is Flower's: who holds which image is decided by `partition=`, as for every other source.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet
from fedbayes.data.pixels import require_side, room_for, square
from fedbayes.errors import ConfigError, DataError

REMEDY = "pip install fedbayes[hub]"


def hub(
    name: str,
    image_size: int,
    subset: str | None = None,
    train: str = "train",
    validation: str | None = None,
    test: str | None = None,
    image: str | None = None,
    label: str | None = None,
    domain: str | None = None,
) -> ImageSet:
    """Downloads a set, or takes it from the Hub's own cache, and decodes all of it.

    Args:
        name: on the Hub, as in "uoft-cs/cifar10"; or a local folder that `datasets.load_dataset` reads.
        image_size: side of the square images, in pixels, at least 8.
        subset: the set's configuration, where it has several.
        train: its split to train on; clients' validation and test images are taken from it where none are given.
        validation: its split for validation; None: none given.
        test: its split for tests; None: none given.
        image: column of the images; None: the first that holds images.
        label: column of the labels; None: the first that holds class labels.
        domain: column of the domains; None: one domain, called `name`.

    Returns:
        The images split by split, in the set's order. Classes and domains are in the order of the set's own names, or
        sorted where a column has none.

    Raises:
        ConfigError: if `image_size` cannot work, the extra is not installed, or there is no such column.
        DataError: if the set or a split is not to be had, a split has no labels, or an image cannot be read.
    """
    require_side(image_size)
    asked = {GIVEN_TRAIN: train, GIVEN_VALIDATION: validation, GIVEN_TEST: test}
    parts = {given: _load(name, subset, split) for given, split in asked.items() if split is not None}
    features = parts[GIVEN_TRAIN].features
    image = image or _first(features, "Image", "image", name)
    _require_column(features, image, "image", name)
    label = label or _first(features, "ClassLabel", "label", name)
    class_names, labels = _coded(parts, label, "label", name)
    domain_names, domains = ((name,), [0] * len(labels)) if domain is None else _coded(parts, domain, "domain", name)
    images = room_for(len(labels), image_size)
    rows, names = images.numpy(), []
    for given, part in parts.items():
        for i in range(len(part)):
            names.append(f"{name}/{asked[given]}/{i}")
            try:
                rows[len(names) - 1] = square(part[i][image], image_size)
            except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
                raise DataError(
                    f"data.name={name}: {names[-1]} cannot be read ({error}); choose another set."
                ) from error
    sizes = torch.tensor([len(part) for part in parts.values()])
    return ImageSet(
        images=images,
        labels=torch.tensor(labels, dtype=torch.int64),
        domains=torch.tensor(domains, dtype=torch.int64),
        classes=class_names,
        domain_names=domain_names,
        given_split=torch.tensor(list(parts), dtype=torch.int8).repeat_interleave(sizes),
        names=tuple(names),
    )


def _load(name: str, subset: str | None, split: str) -> Any:
    """One split, in its own order."""
    try:
        federated_dataset = import_module("flwr_datasets").FederatedDataset
    except ImportError as error:
        raise ConfigError(f"data=hub needs flwr-datasets, which is not installed; {REMEDY}.") from error
    try:
        return federated_dataset(dataset=name, subset=subset, partitioners={}, shuffle=False).load_split(split)
    except Exception as error:  # the Hub's and the network's errors have no common kind
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.name={name} with split {split} is not to be had ({said}); correct data.name, data.subset or the "
            "split, or connect to the Hub."
        ) from error


def _first(features: Any, kind: str, place: str, name: str) -> str:
    """The first column of a kind."""
    for column, feature in features.items():
        if type(feature).__name__ == kind:
            return str(column)
    raise ConfigError(
        f"data.name={name} has no column of kind {kind}; choose data.{place} among {', '.join(features)}."
    )


def _require_column(features: Any, column: str, place: str, name: str) -> None:
    """Raises a `ConfigError` if there is no such column."""
    if column not in features:
        raise ConfigError(f"data.{place}={column} is no column of {name}; choose among {', '.join(features)}.")


def _coded(parts: dict[int, Any], column: str, place: str, name: str) -> tuple[tuple[str, ...], list[int]]:
    """Names of what a column holds, and the position among them of each image's value, over all splits."""
    features = parts[GIVEN_TRAIN].features
    _require_column(features, column, place, name)
    values = [value for part in parts.values() for value in part[column]]
    known = getattr(features[column], "names", None)
    if known is not None:
        codes = [int(value) for value in values]
        if min(codes, default=0) < 0:  # so the Hub marks test images whose labels are kept back
            raise DataError(
                f"data.name={name}: {codes.count(-1)} images have no {column}; set data.test or data.validation to a "
                "split that has, or to null."
            )
        return tuple(map(str, known)), codes
    found, places = np.unique(np.array(values), return_inverse=True)
    return tuple(map(str, found)), places.tolist()

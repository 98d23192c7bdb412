"""Image sets of the Hugging Face Hub through Flower's `flwr-datasets`, an extra: `pip install fedbayes[hub]`.

Only the reading is Flower's: `partition=` divides the images among clients, as for every other source.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, GIVEN_VALIDATION, ImageSet
from fedbayes.data.pixels import empty_images, require_side, square
from fedbayes.errors import ConfigError, DataError


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
    """Download a set, or take it from the Hub's own cache, and decode all of it.

    Classes and domains are in the order of the set's own names, or sorted where a column has none.

    Args:
        name: on the Hub, as in "uoft-cs/cifar10"; or a local folder that `datasets.load_dataset` reads.
        image_size: side of the square images, in pixels, at least 8.
        subset: the set's configuration, where it has several.
        train: split to train on; clients' validation and test images are taken from it where those are None.
        validation: split for validation.
        test: split for tests.
        image: column of the images; None: the first that holds images.
        label: column of the labels; None: the first that holds class labels.
        domain: column of the domains; None: one domain, called `name`.

    Raises:
        ConfigError: if `image_size` cannot work, the extra is not installed, or there is no such column.
        DataError: if the set or a split cannot be loaded, a split has no labels, or an image cannot be read.
    """
    require_side(image_size)
    splits = {GIVEN_TRAIN: train, GIVEN_VALIDATION: validation, GIVEN_TEST: test}
    parts = {split_id: _load(name, subset, split) for split_id, split in splits.items() if split is not None}
    features = parts[GIVEN_TRAIN].features
    image = _column(features, image, "image", "Image", name)
    label = _column(features, label, "label", "ClassLabel", name)
    class_names, labels = _encode(parts, label, name)
    if domain is not None:
        domain_names, domains = _encode(parts, _column(features, domain, "domain", "", name), name)
    else:
        domain_names, domains = (name,), [0] * len(labels)
    images = empty_images(len(labels), image_size)
    rows, names = images.numpy(), list[str]()
    for split_id, part in parts.items():
        for i in range(len(part)):
            names.append(f"{name}/{splits[split_id]}/{i}")
            try:
                rows[len(names) - 1] = square(part[i][image], image_size)
            except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
                raise DataError(f"data.name={name}: {names[-1]} cannot be read ({error}); use another set.") from error
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
    """Load one split, in its own order."""
    try:
        federated_dataset = import_module("flwr_datasets").FederatedDataset
    except ImportError as error:
        raise ConfigError("data=hub needs flwr-datasets, which is not installed; pip install fedbayes[hub].") from error
    try:
        return federated_dataset(dataset=name, subset=subset, partitioners={}, shuffle=False).load_split(split)
    except Exception as error:  # the Hub's and the network's errors have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.name={name} with split {split} cannot be loaded ({reason}); correct data.name, data.subset or the "
            "split, or connect to the Hub."
        ) from error


def _column(features: Any, column: str | None, key: str, kind: str, name: str) -> str:
    """Return the column if the set has it; the first of a kind if `column` is None."""
    kinds = {str(option): type(feature).__name__ for option, feature in features.items()}
    columns = [option for option in kinds if option == column or (column is None and kinds[option] == kind)]
    if not columns:
        problem = f"data.{key}={column} is no column of {name}" if column else f"{name} has no column of kind {kind}"
        raise ConfigError(f"{problem}; choose data.{key} among {', '.join(features)}.")
    return columns[0]


def _encode(parts: dict[int, Any], column: str, name: str) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of a column's values, and each image's position among them, over all splits."""
    values = [value for part in parts.values() for value in part[column]]
    known = getattr(parts[GIVEN_TRAIN].features[column], "names", None)
    if known is None:
        unique, positions = np.unique(np.array(values), return_inverse=True)
        return tuple(map(str, unique)), positions.tolist()
    codes = [int(value) for value in values]
    if min(codes, default=0) < 0:  # so the Hub marks test images whose labels are not published
        raise DataError(
            f"data.name={name}: {codes.count(-1)} images have no {column}; set data.test or data.validation to a "
            "split with labels, or to null."
        )
    return tuple(map(str, known)), codes

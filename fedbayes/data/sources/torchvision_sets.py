"""Well-known sets as torchvision reads them: one domain, and the training and test images that they come with.

A further set is a row of `SETS` and a YAML. Nothing is downloaded unless `data.download=true`. CIFAR's files are
pickles; torchvision opens one only if its MD5 checksum is the published one, so no other content is ever loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, ImageSet
from fedbayes.data.pixels import require_side, room_for, square
from fedbayes.errors import DataError, require_choice

DIGITS = tuple("0123456789")
BROKEN = (RuntimeError, OSError, ValueError, LookupError, TypeError, AssertionError, EOFError)
"""What torchvision's readers raise on files that are missing, or damaged in ways that they do not look for."""


@final
@dataclass(frozen=True)
class _Source:
    """How torchvision is asked for a set.

    Args:
        kind: class in `torchvision.datasets`.
        files: what has to lie in the root, and where it can be had.
        classes: names in the order of the labels; None: as torchvision has them.
        train: what asks for the training images.
        test: what asks for the test images.
    """

    kind: str
    files: str
    classes: tuple[str, ...] | None = None
    train: Mapping[str, Any] = field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = field(default_factory=lambda: {"train": False})


SETS = {
    "cifar10": _Source("CIFAR10", "cifar-10-batches-py/ of https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": _Source("CIFAR100", "cifar-100-python/ of https://www.cs.toronto.edu/~kriz/cifar.html"),
    "mnist": _Source("MNIST", "MNIST/raw/ with the four files of http://yann.lecun.com/exdb/mnist", DIGITS),
    "svhn": _Source(
        "SVHN",
        "{train,test}_32x32.mat of http://ufldl.stanford.edu/housenumbers",
        DIGITS,
        {"split": "train"},
        {"split": "test"},
    ),
    "usps": _Source("USPS", "usps.bz2 and usps.t.bz2 of LIBSVM's multi-class data sets", DIGITS),
}


def torchvision_set(name: str, root: str, image_size: int, download: bool = False) -> ImageSet:
    """Reads a set with its given split.

    Args:
        name: one of `SETS`.
        root: the folder in which torchvision looks for it.
        image_size: side of the square images, in pixels, at least 8.
        download: whether torchvision may fetch what is missing.

    Returns:
        The training images, then the test images, in the set's own order; one domain, called `name`.

    Raises:
        ConfigError: if `name` or `image_size` cannot work.
        DataError: if the set is not there or cannot be read.
    """
    source = SETS[require_choice("data.name", name, tuple(SETS))]
    require_side(image_size)
    parts = {
        "train": _open(name, root, download, source.train),
        "test": _open(name, root, download, source.test),
    }
    count = sum(len(part) for part in parts.values())
    images = room_for(count, image_size)
    rows, labels = images.numpy(), list[int]()
    for part in parts.values():
        for i in range(len(part)):
            try:
                picture, label = part[i]
            except BROKEN as error:
                raise _unreadable(name, root, error) from error
            rows[len(labels)] = square(picture, image_size)
            labels.append(int(label))
    classes = source.classes or tuple(parts["train"].classes)
    if not set(labels) <= set(range(len(classes))):
        raise _unreadable(name, root, ValueError(f"labels go from {min(labels)} to {max(labels)}"))
    sizes = torch.tensor([len(part) for part in parts.values()])
    return ImageSet(
        images=images,
        labels=torch.tensor(labels, dtype=torch.int64),
        domains=torch.zeros(count, dtype=torch.int64),
        classes=classes,
        domain_names=(name,),
        given_split=torch.tensor([GIVEN_TRAIN, GIVEN_TEST], dtype=torch.int8).repeat_interleave(sizes),
        names=tuple(f"{split}/{i}" for split, part in parts.items() for i in range(len(part))),
    )


def _open(name: str, root: str, download: bool, which: Mapping[str, Any]) -> Any:
    """One part of a set as torchvision's object, which gives a picture and a label for an index."""
    from torchvision import datasets

    source = SETS[name]
    try:
        return getattr(datasets, source.kind)(root=root, download=download, **which)
    except BROKEN as error:  # of a file, or of the network
        raise _unreadable(name, root, error) from error


def _unreadable(name: str, root: str, error: Exception) -> DataError:
    what = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"data.root={root} has no {name} that can be read ({what}); put {SETS[name].files} there, or set "
        "data.download=true."
    )

"""Well-known sets as torchvision reads them: one domain, and the training and test images that they come with.

A further set is a row of `SETS` and a YAML. Nothing is downloaded unless `data.download=true`. CIFAR's files are
pickles; torchvision opens one only if its MD5 checksum is the published one, so no other content is ever loaded.
"""

from typing import Any, NamedTuple, final

import torch

from fedbayes.data.datasets import GIVEN_TEST, GIVEN_TRAIN, ImageSet
from fedbayes.data.pixels import empty_images, require_side, square
from fedbayes.errors import DataError, require_choice

DIGITS = tuple("0123456789")
BROKEN = (RuntimeError, OSError, ValueError, LookupError, TypeError, AssertionError, EOFError)
"""What torchvision's readers raise on files that are missing, or damaged in ways that they do not look for."""


@final
class _Source(NamedTuple):
    """A class of `torchvision.datasets`, its files and where to get them, and the names of its classes if it has none.

    `names_split` asks whether the class takes `split="train"` in place of `train=True`.
    """

    kind: str
    files: str
    classes: tuple[str, ...] | None = None
    names_split: bool = False


SETS = {
    "cifar10": _Source("CIFAR10", "cifar-10-batches-py/ of https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": _Source("CIFAR100", "cifar-100-python/ of https://www.cs.toronto.edu/~kriz/cifar.html"),
    "mnist": _Source("MNIST", "MNIST/raw/ with the four files of http://yann.lecun.com/exdb/mnist", DIGITS),
    "svhn": _Source("SVHN", "{train,test}_32x32.mat of http://ufldl.stanford.edu/housenumbers", DIGITS, True),
    "usps": _Source("USPS", "usps.bz2 and usps.t.bz2 of LIBSVM's multi-class data sets", DIGITS),
}


def torchvision_set(name: str, root: str, image_size: int, download: bool = False) -> ImageSet:
    """Read the training images of one of `SETS`, then its test images, as one domain called `name`.

    Args:
        name: one of `SETS`.
        root: the folder in which torchvision looks for it.
        image_size: side of the square images, in pixels, at least 8.
        download: whether torchvision may fetch missing files.

    Raises:
        ConfigError: if `name` or `image_size` cannot work.
        DataError: if the set is missing or cannot be read.
    """
    source = SETS[require_choice("data.name", name, tuple(SETS))]
    require_side(image_size)
    try:
        return _read(name, source, root, image_size, download)
    except BROKEN as error:  # of a file, or of the network
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.root={root} has no {name} that can be read ({reason}); put {source.files} there, or set "
            "data.download=true."
        ) from error


def _read(name: str, source: _Source, root: str, image_size: int, download: bool) -> ImageSet:
    from torchvision import datasets

    kind: Any = getattr(datasets, source.kind)
    parts = {
        split: kind(root=root, download=download, **({"split": split} if source.names_split else {"train": is_train}))
        for split, is_train in (("train", True), ("test", False))
    }
    sizes = [len(part) for part in parts.values()]
    images = empty_images(sum(sizes), image_size)
    rows, labels = images.numpy(), list[int]()
    for part in parts.values():
        for i in range(len(part)):
            picture, label = part[i]
            rows[len(labels)] = square(picture, image_size)
            labels.append(int(label))
    classes = source.classes or tuple(parts["train"].classes)
    if not set(labels) <= set(range(len(classes))):
        raise ValueError(f"labels go from {min(labels)} to {max(labels)}")
    return ImageSet(
        images=images,
        labels=torch.tensor(labels, dtype=torch.int64),
        domains=torch.zeros(len(labels), dtype=torch.int64),
        classes=classes,
        domain_names=(name,),
        given_split=torch.tensor([GIVEN_TRAIN, GIVEN_TEST], dtype=torch.int8).repeat_interleave(torch.tensor(sizes)),
        names=tuple(f"{split}/{i}" for split, part in parts.items() for i in range(len(part))),
    )

"""The form of every source of images: all of them decoded, in memory, before a partition divides them."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

GIVEN_NONE, GIVEN_TRAIN, GIVEN_VALIDATION, GIVEN_TEST = -1, 0, 1, 2


@final
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes, domains and the split that their source gives.

    Args:
        images: pixels 0 to 255, (N, 3, H, W) uint8.
        labels: index into `classes`, (N,) int64.
        domains: index into `domain_names`, (N,) int64.
        classes: class names.
        domain_names: domain names.
        given_split: -1 none given, 0 train, 1 validation, 2 test, (N,) int8.
        names: where each image came from, for error messages.

    Raises:
        ValueError: if lengths, types or ranges contradict each other.
    """

    images: Tensor
    labels: Tensor
    domains: Tensor
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]
    given_split: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the fields fit each other."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}; expected uint8 (N, 3, H, W).")
        count = len(self.images)
        for name, dtype, low, high in (
            ("labels", torch.int64, 0, len(self.classes) - 1),
            ("domains", torch.int64, 0, len(self.domain_names) - 1),
            ("given_split", torch.int8, GIVEN_NONE, GIVEN_TEST),
        ):
            values: Tensor = getattr(self, name)
            if values.dtype != dtype or values.shape != (count,):
                raise ValueError(f"{name} are {values.dtype} {tuple(values.shape)}; expected {dtype} ({count},).")
            if count and not low <= int(values.min()) <= int(values.max()) <= high:
                raise ValueError(f"{name} go from {values.min()} to {values.max()}; expected {low} to {high}.")
        if len(self.names) != count:
            raise ValueError(f"names has {len(self.names)} entries for {count} images.")
        for field, entries in (("classes", self.classes), ("domain_names", self.domain_names)):
            if len(set(entries)) != len(entries):
                raise ValueError(f"{field} has a name twice: {entries}.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def subset(self, index: Tensor | slice) -> "ImageSet":
        """Return some of the images, in the order of `index`; a slice shares the pixels with this set."""
        numbers = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            domains=self.domains[index],
            given_split=self.given_split[index],
            names=tuple(self.names[i] for i in numbers),
        )

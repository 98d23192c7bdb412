"""Folders of painted images."""

from pathlib import Path

import torch
from PIL import Image

from fedbayes.data.datasets import ImageSet

SIZE = 8


def paint(path: Path, value: int = 100, mode: str = "RGB", size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """An image of one value in every channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (
        value if len(Image.new(mode, (1, 1)).getbands()) == 1 else (value,) * len(Image.new(mode, (1, 1)).getbands())
    )
    Image.new(mode, size, colour).save(path)
    return path


def two_classes(root: Path) -> Path:
    """The smallest folder that loads: cat 100, dog 200."""
    paint(root / "cat/a.png", 100)
    paint(root / "dog/a.png", 200)
    return root


def pixels_of(images: ImageSet, name: str) -> torch.Tensor:
    """Pixels (3, H, W) of the image with this name."""
    return images.images[images.names.index(name)]

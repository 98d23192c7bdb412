"""From an image file to square uint8 pixels.

Turned upright by its EXIF orientation, laid on white where transparent, first frame only, the short side resized
(bicubic, antialiased) and cropped to the centre square. That is the evaluation transform of vision transformers without
a margin (crop ratio 1).
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, features
from torch import Tensor

from fedbayes.errors import ConfigError, DataError, require_whole

# Named, because Pillow would otherwise also try formats that start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", *(["AVIF"] if features.check("avif") else []))
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", *([".avif"] if "AVIF" in FORMATS else [])),
    )
)
"""Extensions of files that are looked into; their contents decide how they are read."""

SIDES = 8, 4096
"""Smallest and largest side of square images, in pixels."""

ImageLike = Tensor | np.ndarray | Image.Image | str | Path
Images = ImageLike | Sequence[ImageLike]


def require_side(size: object) -> int:
    """Return `size` if images can have that many pixels on a side; else raise a `ConfigError`."""
    return require_whole("data.image_size", size, *SIDES)


def empty_images(count: int, size: int) -> Tensor:
    """Return uninitialised pixels `(count, 3, size, size)` uint8; too many for this machine are a `ConfigError`."""
    require_side(size)
    needed, memory = count * 3 * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory / 2:
        raise ConfigError(
            f"data.image_size={size} makes {needed / 1e9:,.0f} GB of {count} images, more than half of this machine's "
            f"memory of {memory / 1e9:,.0f} GB; lower it, or take fewer images."
        )
    return torch.empty((count, 3, size, size), dtype=torch.uint8)


def decode(path: str, size: int) -> np.ndarray:
    """Return the pixels `(3, size, size)` uint8 of one file; raises what Pillow raises on damaged bytes."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise OSError("not a regular file")
    with Image.open(path, formats=FORMATS) as image:
        return square(image, size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """Return the pixels `(3, size, size)` uint8 of an opened image."""
    image.load()
    with suppress(Exception):  # on damaged EXIF data; such an image counts as upright
        image = ImageOps.exif_transpose(image)
    fitted = ImageOps.fit(_to_rgb(image), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1)  # (3, size, size)


def to_square(images: Images, size: int) -> Tensor:
    """Return images of any of the usual kinds as `(N, 3, size, size)` uint8.

    Images are uint8 pixels `(N, 3, H, W)` or `(N, H, W, 3)`, PIL images or paths, alone or in a list.

    Raises:
        DataError: if the array has another shape or type, or a file cannot be read.
    """
    if isinstance(images, str | Path | Image.Image) or (isinstance(images, Tensor | np.ndarray) and images.ndim == 3):
        images = [images]
    rows = []
    for index, entry in enumerate(images):
        image = _from_array(entry) if isinstance(entry, Tensor | np.ndarray) else entry
        try:
            rows.append(
                square(image, size) if isinstance(image, Image.Image) else decode(os.path.expanduser(image), size)
            )
        except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
            name = image if isinstance(image, str | Path) else f"{index} ({type(image).__name__})"
            raise DataError(f"image {name} cannot be read ({error}); give another.") from error
    if not rows:
        raise DataError("there are no images to predict; give at least one.")
    return torch.from_numpy(np.stack(rows))


def _from_array(array: Tensor | np.ndarray) -> Image.Image:
    """Return an image from uint8 pixels `(3, H, W)` or `(H, W, 3)`."""
    pixels = np.asarray(array.cpu() if isinstance(array, Tensor) else array)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 3 not in (pixels.shape[0], pixels.shape[2]):
        raise DataError(
            f"images are {pixels.dtype} {pixels.shape}; expected uint8 (3, H, W) or (H, W, 3) each, pixels 0..255."
        )
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels.transpose(1, 2, 0)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its grey values exceed 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255
    elif image.mode == "F":
        raise ValueError("its grey values are floating-point numbers of unknown range")
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", overlay.size, "white"), overlay)
    return image.convert("RGB")

"""From an image file to square uint8 pixels.

Turned upright by its EXIF orientation, laid on white where transparent, first frame only, the short side resized
(bicubic, antialiased) and the centre square kept. That is the evaluation transform of vision transformers with the
whole centre kept (crop ratio 1).
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedbayes.errors import DataError

# Named, because Pillow would otherwise also try formats that start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

Images = Tensor | np.ndarray | Sequence[Image.Image | str | Path]


def decode(path: str, size: int) -> np.ndarray:
    """Pixels `(3, size, size)` uint8 of one file; raises what Pillow raises on damaged bytes."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise OSError("not a regular file")
    with Image.open(path, formats=FORMATS) as image:
        return square(image, size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """Pixels `(3, size, size)` uint8 of an opened image."""
    fitted = ImageOps.fit(_to_rgb(ImageOps.exif_transpose(image)), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1)  # (3, size, size)


def to_square(images: Images, size: int) -> Tensor:
    """Images of any of the usual kinds as `(N, 3, size, size)` uint8.

    Args:
        images: uint8 pixels `(N, 3, H, W)` or `(N, H, W, 3)`, or PIL images, or paths of image files.
        size: side of the result, pixels.

    Raises:
        DataError: if the array has another shape or type, or a file cannot be read.
    """
    if isinstance(images, Tensor):
        images = images.cpu().numpy()
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
            raise DataError(
                f"images are {images.dtype} {images.shape}; expected uint8 (N, 3, H, W) or (N, H, W, 3), pixels 0..255."
            )
        channels_last = images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1)
        images = [Image.fromarray(np.ascontiguousarray(one)) for one in channels_last]
    rows = []
    for image in images:
        try:
            rows.append(square(image, size) if isinstance(image, Image.Image) else decode(str(image), size))
        except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
            raise DataError(f"image {image} cannot be read ({error}); give another.") from error
    if not rows:
        raise DataError("no images were given; give at least one.")
    return torch.from_numpy(np.stack(rows))


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, on white where it is transparent.

    Raises:
        ValueError: if its pixel values have no known range.
    """
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

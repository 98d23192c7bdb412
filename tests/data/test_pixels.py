"""What the pixels of an image file become, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from painted import SIZE, paint, pixels_of, two_classes
from PIL import Image

from fedbayes.data.sources.image_folder import image_folder


@pytest.mark.parametrize(
    ("mode", "suffix", "value", "expected"),
    [
        ("1", "png", 1, 255),
        ("L", "png", 77, 77),
        ("LA", "png", 255, 255),
        ("RGBA", "png", 255, 255),
        ("I;16", "png", 257 * 50, 50),
        ("I;16", "tif", 65535, 255),
        ("CMYK", "tif", 0, 255),
        ("CMYK", "jpg", 0, 255),
    ],
)
def test_every_mode_becomes_eight_bit_rgb(tmp_path: Path, mode: str, suffix: str, value: int, expected: int) -> None:
    two_classes(tmp_path)
    paint(tmp_path / f"cat/odd.{suffix}", value, mode)
    odd = pixels_of(image_folder(str(tmp_path), SIZE), f"cat/odd.{suffix}")
    assert (odd.int() - expected).abs().max() <= 1


def test_palette_and_transparency_are_laid_on_white(tmp_path: Path) -> None:
    two_classes(tmp_path)
    palette = Image.new("P", (SIZE, SIZE), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30, 0, 0, 0])
    palette.save(tmp_path / "cat/palette.png")
    palette.save(tmp_path / "cat/clear.gif", transparency=1)
    palette.save(tmp_path / "cat/bytes.png", transparency=bytes([255, 0, 255]))
    Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)).save(tmp_path / "cat/drawing.png")
    images = image_folder(str(tmp_path), SIZE)
    assert pixels_of(images, "cat/palette.png")[:, 0, 0].tolist() == [10, 20, 30]
    for name in ("cat/clear.gif", "cat/bytes.png", "cat/drawing.png"):
        assert pixels_of(images, name)[:, 0, 0].tolist() == [255, 255, 255]


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    two_classes(tmp_path)
    rows = np.repeat(np.array([0, 255], np.uint8), SIZE * SIZE // 2).reshape(SIZE, SIZE)  # dark top, bright base
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the top goes to the right
    Image.fromarray(rows).save(tmp_path / "cat/turned.png", exif=exif)
    turned = pixels_of(image_folder(str(tmp_path), SIZE), "cat/turned.png")
    assert turned[0, :, 0].tolist() == [255] * SIZE
    assert turned[0, :, -1].tolist() == [0] * SIZE


@pytest.mark.parametrize("shape", [(40, 40), (40, 80), (90, 40), (5, 5)])  # lengths that need no rounding
def test_pixels_equal_resizing_the_short_side_and_then_cutting(tmp_path: Path, shape: tuple[int, int]) -> None:
    two_classes(tmp_path)
    waves = 127 + 120 * np.sin(np.arange(3 * shape[0] * shape[1]).reshape(*shape[::-1], 3) / 7.0)
    source = Image.fromarray(waves.astype(np.uint8))
    source.save(tmp_path / "cat/waves.png")
    width, height = (16 * side // min(shape) for side in shape)
    left, top = (width - 16) // 2, (height - 16) // 2
    resized = source.resize((width, height), Image.Resampling.BICUBIC)
    expected = torch.tensor(np.asarray(resized.crop((left, top, left + 16, top + 16)))).permute(2, 0, 1)
    pixels = pixels_of(image_folder(str(tmp_path), 16), "cat/waves.png")
    assert (pixels.int() - expected.int()).abs().max() <= 1


def test_long_thin_images_need_no_memory_for_what_is_cut_off(tmp_path: Path) -> None:
    two_classes(tmp_path)
    paint(tmp_path / "cat/thin.png", 60, "L", (200_000, 1))  # 45 million pixels wide if it were resized before cutting
    assert (pixels_of(image_folder(str(tmp_path), 224), "cat/thin.png") == 60).all()

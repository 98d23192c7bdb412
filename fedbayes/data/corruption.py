"""Common corruptions of test images, at five severities, after Hendrycks and Dietterich [1].

Eleven of their fifteen; glass blur, snow, frost and the elastic transform are left out. Constants are those of their
CIFAR-10-C (32 px) and ImageNet-C (224 px): an image gets those of the set whose side is nearer in ratio to its own,
and lengths in pixels (radii and widths of blurs) are multiplied by the ratio, which is 1 at 32 and 224 px, and
below 32 px, too, where it would fall under a pixel.

Ours are: that scaling; the fog, a sum of octaves of noise in place of a diamond-square fractal; whole-pixel steps of
the motion blur in place of ImageMagick's; zooms about the exact centre. JPEG's blocks are 8 pixels at every size.

Random numbers depend on the image and on the kind of corruption alone, as corrupted images belong to a benchmark: every
client, seed and method sees the same ones, and a higher severity enlarges the same noise.

[1] D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019, arXiv 1903.12261.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedbayes.data.datasets import ImageSet
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.errors import require_choice, require_whole
from fedbayes.seeding import numpy_generator

SMALL, LARGE = 32, 224
"""Sides of the images of CIFAR-10-C and ImageNet-C, pixels."""

SEVERITIES = 5

Pixels = NDArray[np.float64]  # (3, H, W) in [0, 1]


@final
class _Corruption(NamedTuple):
    """A function of pixels, a constant, the image's side over the constant's, and a generator; and its constants.

    `small` has those of CIFAR-10-C, `large` those of ImageNet-C, one per severity.
    """

    apply: Callable[[Pixels, Any, float, np.random.Generator], Pixels]
    small: tuple[Any, ...]
    large: tuple[Any, ...]


def corrupt_test(images: ImageSet, clients: Sequence[ClientSplit], corruption: object, severity: object) -> ImageSet:
    """Corrupt every image that is in a client's test split, in a copy, by one of `CORRUPTIONS` or None.

    Raises:
        ConfigError: if there is no such corruption or severity.
    """
    level = require_whole("evaluate.severity", severity, 1, SEVERITIES)
    if corruption is None:
        return images
    kind = require_choice("evaluate.corruption", corruption, tuple(CORRUPTIONS))
    pixels = images.images.clone()
    for i in np.unique(np.concatenate([client.test for client in clients])).tolist():
        rng = numpy_generator("corruption", kind, images.names[i])
        pixels[i] = torch.from_numpy(corrupt(pixels[i].numpy(), kind, level, rng))
    return replace(images, images=pixels)


def corrupt(image: NDArray[np.uint8], kind: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Corrupt a square image, (3, H, H) with pixels 0 to 255, by one of `CORRUPTIONS` at a severity of 1 to 5."""
    side, corruption = image.shape[-1], CORRUPTIONS[kind]
    near, constants = (SMALL, corruption.small) if side * side < SMALL * LARGE else (LARGE, corruption.large)
    changed = corruption.apply(image / 255, constants[severity - 1], max(side, SMALL) / near, rng)
    return np.round(changed.clip(0, 1) * 255).astype(np.uint8)


def _gaussian_noise(x: Pixels, deviation: float, _scale: float, rng: np.random.Generator) -> Pixels:
    return x + deviation * rng.standard_normal(x.shape)


def _shot_noise(x: Pixels, photons: float, _scale: float, rng: np.random.Generator) -> Pixels:
    """Add Poisson noise at so many photons per white pixel."""
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Pixels, fraction: float, _scale: float, rng: np.random.Generator) -> Pixels:
    """Turn a fraction of all values into 0 or 1 with equal chances."""
    hit, white = rng.random(x.shape) < fraction, rng.random(x.shape) < 0.5
    return np.where(hit, white, x)


def _defocus_blur(x: Pixels, lengths: tuple[float, float], scale: float, _rng: np.random.Generator) -> Pixels:
    """Average over a disk, by Fourier transform; lengths are its radius and the deviation of its edge's Gaussian."""
    radius, soft = (length * scale for length in lengths)
    margin = 1 if lengths[0] <= 8 else 2  # of the soft edge, in their code
    reach = math.floor(radius) + margin
    axis = np.arange(-reach, reach + 1)
    disk = np.float64(axis[:, None] ** 2 + axis**2 <= radius**2)
    line = np.where(abs(axis) <= margin, np.exp(-(axis**2) / (2 * soft**2)), 0)
    edge = line[:, None] * line
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    size = padded.shape[1:]
    spectrum = np.fft.rfft2(padded)
    for kernel in (disk, edge):
        spectrum *= np.fft.rfft2(kernel / kernel.sum(), size)
    blurred = np.roll(np.fft.irfft2(spectrum, size), -2 * reach, axis=(1, 2))  # each kernel's middle lies at `reach`
    return blurred[:, reach:-reach, reach:-reach]


def _motion_blur(x: Pixels, lengths: tuple[float, float], scale: float, rng: np.random.Generator) -> Pixels:
    """Average one-sidedly along a line of up to 45 degrees; lengths are half its extent and its deviation."""
    radius, deviation = (length * scale for length in lengths)
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    place = np.arange(x.shape[-1])
    blurred = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        down, right = (np.clip(place + round(step * way), 0, place[-1]) for way in (math.sin(angle), math.cos(angle)))
        blurred += weight * x[:, down[:, None], right]
    return blurred


def _zoom_blur(x: Pixels, zooms: tuple[float, float], _scale: float, _rng: np.random.Generator) -> Pixels:
    """Take the mean of the image and of zooms into it, from 1 to below the first number in steps of the second."""
    factors = torch.from_numpy(np.arange(1, *zooms))
    theta = torch.zeros(len(factors), 2, 3, dtype=torch.float64)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / factors
    grid = F.affine_grid(theta, [len(factors), *x.shape], align_corners=False)
    source = torch.from_numpy(x).expand(len(factors), *x.shape)
    zoomed: Tensor = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return np.asarray((x + zoomed.sum(0).numpy()) / (len(factors) + 1))


def _fog(x: Pixels, strength: tuple[float, float], _scale: float, rng: np.random.Generator) -> Pixels:
    """Add a cloud; strength is how much of it, and by what the heights of its octaves shrink, twice per octave."""
    amount, decay = strength
    side = x.shape[-1]
    cloud = torch.zeros(1, 1, side, side, dtype=torch.float64)
    for octave in range(1, math.ceil(math.log2(side)) + 1):
        bumps = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 2**octave + 1, 2**octave + 1)))
        smooth = F.interpolate(bumps, size=(side, side), mode="bilinear", align_corners=True)
        cloud += smooth / decay ** (2 * octave)
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    white = x.max()
    return np.asarray((x + amount * cloud[0].numpy()) * white / (white + amount))


def _brightness(x: Pixels, more: float, _scale: float, _rng: np.random.Generator) -> Pixels:
    """Raise the value of hue, saturation and value; the value is the largest of the three channels."""
    value = x.max(0)
    raised = np.minimum(value + more, 1)
    return np.asarray(np.where(value > 0, x * (raised / np.where(value > 0, value, 1)), raised))


def _contrast(x: Pixels, fraction: float, _scale: float, _rng: np.random.Generator) -> Pixels:
    """Leave a fraction of each value's distance to its channel's mean."""
    mean: Pixels = x.mean((1, 2), keepdims=True)
    return mean + fraction * (x - mean)


def _pixelate(x: Pixels, fraction: float, _scale: float, _rng: np.random.Generator) -> Pixels:
    """Shrink the image to a fraction of its side and enlarge it again, both by boxes."""
    side = x.shape[-1]
    small = _picture(x).resize((int(side * fraction),) * 2, Image.Resampling.BOX)
    return _pixels(small.resize((side, side), Image.Resampling.BOX))


def _jpeg_compression(x: Pixels, quality: int, _scale: float, _rng: np.random.Generator) -> Pixels:
    file = BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return _pixels(Image.open(file))


def _picture(x: Pixels) -> Image.Image:
    return Image.fromarray(np.round(x * 255).astype(np.uint8).transpose(1, 2, 0))


def _pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture).transpose(2, 0, 1) / 255


CORRUPTIONS = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": _Corruption(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": _Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": _Corruption(
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "motion_blur": _Corruption(
        _motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    ),
    "zoom_blur": _Corruption(
        _zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "fog": _Corruption(
        _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": _Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": _Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": _Corruption(_jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}

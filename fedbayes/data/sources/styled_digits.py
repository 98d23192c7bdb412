"""The offline default: scikit-learn's bundled handwritten digits [1], each drawn in one of five visual styles.

A style is a domain: ink on paper, a coloured digit on a coloured texture, chalk turned by about 126 degrees, a faint
digit under heavy noise, and outlined strokes. Every source digit appears once, in one style; where it lies, how large
it is and its colours vary a little within a style. Random numbers do not depend on the image size, and grain and line
width are fractions of the image, so a digit is the same picture at every size.

[1] E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedbayes.data.datasets import GIVEN_NONE, ImageSet
from fedbayes.data.pixels import empty_images, require_side
from fedbayes.data.sources.bundled_digits import CLASSES, bundled_digits
from fedbayes.seeding import numpy_generator

CACHED_SIDE = 64  # largest side of pictures that a process draws once, 22 MB; larger ones would fill its memory
GRAIN = 32  # cells per side of the noise; an image of 32 pixels gets noise pixel by pixel


@final
class _Sampler:
    """Uniform and normal samples for the digits of one style, keyed by the style's name."""

    def __init__(self, style: str, count: int) -> None:
        self._rng = numpy_generator("styled_digits", style)
        self._count = count

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return uniform samples, `(N, *shape)`; `(N, 1, 1, 1)` if no shape is given."""
        return torch.from_numpy(self._rng.uniform(low, high, (self._count, *(shape or (1, 1, 1))))).float()

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal samples, `(N, *shape)`."""
        return torch.from_numpy(self._rng.standard_normal((self._count, *shape))).float()

    def sign(self) -> Tensor:
        """Return plus or minus one with equal chances, `(N, 1, 1, 1)`."""
        return torch.where(self.uniform(-1, 1) < 0, -1.0, 1.0)


def _place(digits: Tensor, rng: _Sampler, size: int, degrees: float = 0.0) -> Tensor:
    """Upsample `(N, 1, 8, 8)` to `(N, 1, size, size)` in [0, 1], turned, moved and scaled a little at random."""
    angle = torch.deg2rad(degrees + rng.uniform(-12, 12))
    zoom = 1 / rng.uniform(0.75, 1.0)
    stretch = rng.uniform(0.9, 1.1)
    shift = rng.uniform(-0.15, 0.15, 2, 1)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    turn = torch.cat([cos * stretch, sin * stretch, -sin / stretch, cos / stretch], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([turn, shift], dim=2), [len(digits), 1, size, size], align_corners=False)
    drawn: Tensor = F.grid_sample(digits, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return drawn.clamp(0, 1)


def _stroke(level: Tensor, sharpness: float = 6.0) -> Tensor:
    """Return the coverage of the stroke in [0, 1]: the smooth grey level, with its slope steepened around one half."""
    return ((level - 0.45) * sharpness / 2 + 0.5).clamp(0, 1)


def _outline(level: Tensor, width: float) -> Tensor:
    """Return the coverage of a line along the stroke's edge; `width` is its half width as a fraction of the image."""
    size = level.shape[-1]
    dy, dx = torch.gradient(level, dim=(2, 3))
    slope = (dx.square() + dy.square()).sqrt().clamp_min(1.0 / size)
    return (1.5 - ((level - 0.4) / slope).abs() / (width * size)).clamp(0, 1)


def _mix(paper: Tensor, ink: Tensor, coverage: Tensor) -> Tensor:
    """Return paper where coverage is 0, ink where it is 1."""
    return paper + coverage * (ink - paper)


def _ink(digits: Tensor, rng: _Sampler, size: int) -> Tensor:
    """Dark ink on light paper."""
    paper = rng.uniform(0.85, 0.98) - torch.tensor([0.0, 0.03, 0.1]).view(1, 3, 1, 1)
    ink = torch.tensor([0.08, 0.1, 0.25]).view(1, 3, 1, 1) + rng.uniform(0, 0.2)
    return _mix(paper, ink, _stroke(_place(digits, rng, size)))


def _texture(digits: Tensor, rng: _Sampler, size: int) -> Tensor:
    """A coloured digit on a ground of two other colours: waves of any direction, bent by a slow field."""
    axis = torch.linspace(0, 1, size)
    angle, period, phase = rng.uniform(0, math.pi), rng.uniform(0.15, 0.5), rng.uniform(0, 2 * math.pi)
    bend = F.interpolate(rng.normal(1, 4, 4), size=(size, size), mode="bicubic", align_corners=False)
    along = axis.view(1, 1, 1, -1) * torch.cos(angle) + axis.view(1, 1, -1, 1) * torch.sin(angle)
    wave = 0.5 + 0.5 * torch.sin(2 * math.pi * along / period + phase + 1.2 * bend)
    middle, polarity = rng.uniform(0.35, 0.65), rng.sign()
    first, second, colour = (rng.uniform(-0.35, 0.35, 3, 1, 1) for _ in range(3))
    first, second, colour = (tint - tint.mean(1, keepdim=True) for tint in (first, second, colour))
    ground = middle - 0.2 * polarity + _mix(first - 0.1, second + 0.1, wave)
    return _mix(ground, middle + polarity * rng.uniform(0.2, 0.35) + colour, _stroke(_place(digits, rng, size)))


def _rotated(digits: Tensor, rng: _Sampler, size: int) -> Tensor:
    """Chalk on a dark board, turned by about 126 degrees."""
    board = torch.tensor([0.1, 0.22, 0.17]).view(1, 3, 1, 1) + rng.uniform(-0.06, 0.08)
    chalk = rng.uniform(0.7, 0.95) * torch.tensor([1.0, 1.0, 0.93]).view(1, 3, 1, 1)
    dust = F.interpolate(rng.uniform(0.55, 1, 1, GRAIN, GRAIN), size=(size, size), mode="bilinear")
    return _mix(board, chalk, dust * _stroke(_place(digits, rng, size, degrees=126.0)))


def _noise(digits: Tensor, rng: _Sampler, size: int) -> Tensor:
    """Little contrast under heavy noise; the digit is lighter or darker than its ground."""
    contrast = rng.sign() * rng.uniform(0.28, 0.4)
    grain = F.interpolate(rng.normal(3, GRAIN, GRAIN), size=(size, size), mode="bilinear")
    level = _stroke(_place(digits, rng, size)) - 0.5
    return rng.uniform(0.42, 0.58) + contrast * level + rng.uniform(0.12, 0.2) * grain


def _outlined(digits: Tensor, rng: _Sampler, size: int) -> Tensor:
    """Only the edge of the stroke, as a coloured line on a pale ground."""
    paper = rng.uniform(0.75, 0.95, 3, 1, 1)
    line = rng.uniform(0.0, 0.6, 3, 1, 1) * torch.tensor([1.0, 0.6, 1.0]).view(1, 3, 1, 1)
    return _mix(paper, line, _outline(_place(digits, rng, size), width=0.022))


STYLES: dict[str, Callable[[Tensor, _Sampler, int], Tensor]] = {
    "ink": _ink,
    "texture": _texture,
    "rotated": _rotated,
    "noise": _noise,
    "outline": _outlined,
}


def assign_styles(labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    """Return a style for every digit, `(N,)`; styles differ by at most one digit in all and in any class."""
    shuffled = numpy_generator("styled_digits", "deal").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    styles = np.empty(len(labels), dtype=np.int64)
    styles[by_class] = np.arange(len(labels)) % len(STYLES)
    return torch.from_numpy(styles)


def styled_digits(image_size: int = 32) -> ImageSet:
    """Draw all 1,797 digits in scikit-learn's order, without splits.

    Raises:
        ConfigError: if `image_size`, in pixels, cannot work.
    """
    small = require_side(image_size) <= CACHED_SIDE
    _, labels = bundled_digits()
    styles = assign_styles(labels)
    return ImageSet(
        images=_cached(image_size).clone() if small else _drawn(image_size),
        labels=torch.from_numpy(labels).clone(),
        domains=styles,
        classes=CLASSES,
        domain_names=tuple(STYLES),
        given_split=torch.full((len(styles),), GIVEN_NONE, dtype=torch.int8),
        names=tuple(f"digit {index}" for index in range(len(styles))),
    )


def _drawn(image_size: int) -> Tensor:
    """Return each digit in its style, `(N, 3, image_size, image_size)` in uint8."""
    ink, labels = bundled_digits()
    digits = torch.from_numpy(ink).float().unsqueeze(1) / 16
    styles = assign_styles(labels)
    images = empty_images(len(digits), image_size)
    for index, (style, draw) in enumerate(STYLES.items()):
        chosen = styles == index
        drawn = draw(digits[chosen], _Sampler(style, int(chosen.sum())), image_size)
        images[chosen] = drawn.clamp(0, 1).mul(255).round().to(torch.uint8)
    return images


_cached = lru_cache(maxsize=1)(_drawn)

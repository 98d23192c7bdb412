"""Random changes of training images, computed on the device with parameters of each image."""

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from fedbayes.errors import require_bool, require_number
from fedbayes.seeding import Streams


@final
class Augment:
    """Flip, shift, scale and rotate each image at random; off unless something is switched on.

    Half of the images are flipped; the largest shift is a fraction of the side, and so is the largest change of size.
    """

    def __init__(self, *, flip: bool, shift: float, scale: float, degrees: float) -> None:
        self.flip = require_bool("augment.flip", flip)
        self.shift = require_number("augment.shift", shift, 0, 0.5)
        self.scale = require_number("augment.scale", scale, 0, 0.9)
        self.degrees = require_number("augment.degrees", degrees, 0, 180)

    @property
    def active(self) -> bool:
        """Whether images change at all."""
        return self.flip or max(self.shift, self.scale, self.degrees) > 0

    def __call__(self, images: Tensor, counts: list[int], streams: Streams) -> Tensor:
        """Change images `(C, B, 3, H, W)`, pixels 0..255, of which client c has the first `counts[c]`.

        One bilinear resampling does all; what moves in from outside repeats the border.
        """
        unit = torch.special.ndtr(streams.normal((), counts, 5, images.device)).to(images.dtype)  # (C, B, 5), uniform
        spread = 2 * unit - 1
        angle = spread[..., 0] * math.radians(self.degrees)
        size = 1 + spread[..., 1] * self.scale
        mirror = torch.where((unit[..., 2] < 0.5) & self.flip, -1.0, 1.0).to(images.dtype)
        cos, sin = angle.cos() / size, angle.sin() / size
        shift = spread[..., 3:5] * 2 * self.shift
        rows = torch.stack([cos * mirror, -sin, shift[..., 0], sin * mirror, cos, shift[..., 1]], -1)
        matrix = rows.view(-1, 2, 3)  # (C*B, 2, 3)
        flat = images.flatten(0, 1)
        grid = F.affine_grid(matrix, list(flat.shape), align_corners=False)
        changed = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        return changed.view_as(images)

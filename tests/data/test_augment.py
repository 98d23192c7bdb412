"""Each image changes by random numbers of its own, keyed by its client."""

import pytest
import torch
from torch.nn import functional as F

from fedbayes.data.augment import Augment
from fedbayes.errors import ConfigError
from fedbayes.seeding import Streams

OFF = {"flip": False, "shift": 0.0, "scale": 0.0, "degrees": 0.0}
ON = {"flip": True, "shift": 0.2, "scale": 0.2, "degrees": 30.0}


def pixels(clients: int, count: int, side: int = 16) -> torch.Tensor:
    return 255 * torch.rand(clients, count, 3, side, side)


def change(images: torch.Tensor, counts: list[int], partitions: list[int], **options) -> torch.Tensor:
    return Augment(**{**OFF, **options})(images, counts, Streams(0, 1, partitions, "augment"))


def test_it_is_off_unless_something_is_switched_on():
    assert not Augment(**OFF).active
    assert all(Augment(**{**OFF, key: value}).active for key, value in ON.items())
    images = pixels(2, 3)
    torch.testing.assert_close(change(images, [3, 3], [0, 1]), images, rtol=0, atol=1e-2)


def test_two_equal_images_change_differently():
    images = pixels(1, 1).expand(1, 4, 3, 16, 16)
    for key, value in ON.items():
        if key != "flip":  # of four images some are flipped alike
            changed = change(images, [4], [0], **{key: value})[0]
            distances = torch.cdist(changed.flatten(1), changed.flatten(1)) + torch.eye(4) * 1e9
            assert distances.min() > 10, key


def test_a_flip_is_the_exact_mirror_of_about_half_of_the_images():
    images = pixels(1, 200)
    changed = change(images, [200], [0], flip=True)
    same, mirrored = ((changed - other).abs().amax((0, 2, 3, 4)) < 1e-2 for other in (images, images.flip(-1)))
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_changes_are_keyed_by_the_client_and_not_by_its_cohort():
    images = pixels(3, 5)
    counts, partitions = [5, 2, 4], [10, 11, 12]
    cohort = change(images, counts, partitions, **ON)
    for c, (count, partition) in enumerate(zip(counts, partitions, strict=True)):
        alone = change(images[c : c + 1, :count], [count], [partition], **ON)
        torch.testing.assert_close(cohort[c, :count], alone[0], rtol=0, atol=1e-3)
    other = change(images[:1], [5], [11], **ON)
    assert (other - cohort[:1]).abs().max() > 10


def test_a_shift_stays_within_its_bound_and_repeats_the_border():
    ramp = torch.arange(32.0).view(1, 1, 1, 1, 32).expand(1, 300, 3, 32, 32)
    changed = change(ramp, [300], [0], shift=0.25)
    moved = changed[0, :, 0, 16, 16] - 16  # in pixels
    assert 7.5 < moved.abs().max() <= 8 + 1e-3
    assert changed.min() >= 0
    assert changed.max() <= 31


def test_a_rotation_turns_about_the_centre_and_keeps_a_disc():
    axis = torch.linspace(-1, 1, 33)
    radius = (axis[:, None].square() + axis[None].square()).sqrt()
    disc = (100 * (1 - radius)).clamp(min=0).expand(1, 20, 3, 33, 33)
    changed = change(disc, [20], [0], degrees=180)
    torch.testing.assert_close(changed, disc, rtol=0, atol=4)
    ramp = torch.arange(33.0).mul(7).view(1, 1, 1, 1, 33).expand(1, 300, 3, 33, 33)
    turned = change(ramp, [300], [0], degrees=30)[0, :, 0]
    along, across = turned[:, 16, 17] - turned[:, 16, 15], turned[:, 15, 16] - turned[:, 17, 16]
    angles = torch.atan2(across, along).abs().rad2deg()
    assert 27 < angles.max() <= 30.01


def test_a_scale_changes_the_size_of_a_disc():
    axis = torch.linspace(-1, 1, 65)
    disc = (axis[:, None].square() + axis[None].square() < 0.25).float().mul(255).expand(1, 200, 3, 65, 65)
    area = change(disc, [200], [0], scale=0.2).sum((2, 3, 4)) / disc.sum((2, 3, 4))
    sides = area.sqrt()
    assert 0.78 < sides.min() < 0.85
    assert 1.15 < sides.max() < 1.22


def test_pixels_stay_pixels():
    changed = change(pixels(2, 20), [20, 20], [0, 1], **ON)
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert changed.dtype == torch.float32
    flat = F.interpolate(torch.full((1, 3, 1, 1), 77.0), (8, 8)).expand(1, 5, 3, 8, 8)
    torch.testing.assert_close(change(flat, [5], [0], **ON), flat)


@pytest.mark.parametrize(("key", "value"), [("shift", 0.6), ("scale", 1.0), ("degrees", -1), ("degrees", 200)])
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"augment\.{key}={value}"):
        Augment(**{**OFF, key: value})

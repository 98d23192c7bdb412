"""Corruptions of test images: each formula on an image where the answer is known, and who is corrupted."""

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from fedbayes import build
from fedbayes.config.compose import CONF, compose
from fedbayes.data.corruption import CORRUPTIONS, corrupt
from fedbayes.data.sources.styled_digits import styled_digits
from fedbayes.errors import ConfigError

DIGIT = Image.fromarray(styled_digits(32).images[1].numpy().transpose(1, 2, 0))
SMOKE = ["experiment=smoke", "partition.test=0.2"]


def rng():
    return np.random.default_rng(0)


def flat(value, side=224):
    return np.full((3, side, side), value, np.uint8)


def scene(side):
    """A drawn digit with a smooth background: neither flat nor noise."""
    digit = np.asarray(DIGIT.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    ramp = np.linspace(40, 200, side)
    return (0.5 * digit + 0.25 * ramp + 0.25 * ramp[:, None]).astype(np.uint8)


@pytest.mark.parametrize("side", [8, 16, 84, 85])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_works_at_every_size(kind, side):
    image = scene(side)
    for severity in (1, 5):
        changed = corrupt(image, kind, severity, rng())
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
    assert (changed != image).any()
    assert np.array_equal(changed, corrupt(image, kind, 5, rng())), "the generator decides"


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_higher_severity_changes_more(kind, side):
    image = scene(side).astype(float)
    errors = [((corrupt(image.astype(np.uint8), kind, level, rng()) - image) ** 2).mean() for level in range(1, 6)]
    if kind == "fog":
        errors = errors[:3]  # later on its grain becomes finer, too
    assert errors == sorted(errors)
    assert errors[-1] > errors[0]


def test_gaussian_noise_has_its_deviation_and_grows_with_the_severity():
    first, second = (corrupt(flat(128), "gaussian_noise", level, rng()) - 128.0 for level in (1, 2))
    assert first.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert first.mean() == pytest.approx(0, abs=0.2)
    assert abs(second - 1.5 * first)[abs(second) < 120].max() <= 1.5, "the same noise, 0.12 / 0.08 times as large"


def test_shot_noise_has_the_variance_of_counted_photons():
    changed = corrupt(flat(51), "shot_noise", 1, rng()) / 255  # x = 0.2, 60 photons at white
    assert changed.mean() == pytest.approx(0.2, rel=0.01)
    assert changed.var() == pytest.approx(0.2 / 60, rel=0.03)


def test_impulse_noise_makes_a_fraction_of_the_values_black_or_white():
    changed = corrupt(flat(100), "impulse_noise", 4, rng())
    assert set(np.unique(changed)) == {0, 100, 255}
    assert (changed != 100).mean() == pytest.approx(0.17, abs=0.005)
    assert (changed == 255).mean() == pytest.approx((changed == 0).mean(), rel=0.05)


def test_defocus_is_the_mean_over_a_disk_whose_radius_follows_the_side():
    areas = []
    for side, radius in ((225, 10), (451, 20)):  # ImageNet-C's constants, at once and at twice its size
        image = flat(0, side)
        image[:, side // 2] = 255  # a line: its profile is the disk's chord
        profile = corrupt(image, "defocus_blur", 5, rng())[0, :, side // 2] / 255
        areas.append(np.count_nonzero(profile > 1e-3))
        assert profile.sum() == pytest.approx(1, abs=0.05)
        assert np.array_equal(profile, profile[::-1])
        assert profile.max() == pytest.approx((2 * radius + 1) / (np.pi * radius**2), rel=0.1)
    assert areas[1] == pytest.approx(2 * areas[0], abs=4)


def test_motion_leaves_a_fading_line_to_one_side():
    image = flat(0, 225)
    image[:, 112 - 3 : 112 + 4, 112 - 3 : 112 + 4] = 255
    seen = corrupt(image, "motion_blur", 3, rng())[0].astype(float)
    assert seen.sum() == pytest.approx(49 * 255, rel=0.02), "moved, not lost"
    rows, columns = np.nonzero(seen)
    shift = (seen * np.arange(225)).sum() / seen.sum() - 112
    assert 4 < -shift < 8, "a one-sided Gaussian of deviation 8 has the mean 8 sqrt(2 / pi) = 6.4, along the line"
    assert columns.max() == 115
    assert abs(rows - 112).max() <= 31 + 3


def test_zooms_keep_the_middle_and_pull_the_rest_outwards():
    ramp = np.arange(224) - 111.5  # distance from the middle
    image = np.broadcast_to(ramp + 127.5, (3, 224, 224)).astype(np.uint8)
    factors = np.arange(1, 1.31, 0.03)
    slope = (1 + (1 / factors).sum()) / (1 + len(factors))  # a zoom by z divides the slope by z
    assert abs(corrupt(image, "zoom_blur", 5, rng()) - (127.5 + slope * ramp)).max() <= 0.51


def test_fog_whitens_unevenly_and_alike_in_all_channels():
    seen = corrupt(flat(102), "fog", 1, rng()) / 255  # x = 0.4, which is also the brightest
    cloud = (seen * (0.4 + 1.5) / 0.4 - 0.4) / 1.5
    assert cloud.min() == pytest.approx(0, abs=0.02)
    assert cloud.max() == pytest.approx(1, abs=0.02)
    assert np.array_equal(seen[0], seen[2])
    smooth = abs(np.diff(cloud[0], axis=1)).mean()
    assert smooth < 0.2 * cloud[0].std(), "neighbours are alike"


def test_brightness_raises_the_value_and_keeps_hue_and_saturation():
    pixels = np.array([[200, 100, 50], [10, 20, 30], [0, 0, 0], [90, 90, 90], [250, 10, 90]], np.uint8)
    image = np.broadcast_to(pixels.T[:, :, None], (3, 5, 5)).copy()
    image = np.kron(image, np.ones((1, 20, 20), np.uint8))  # 100 px
    seen = corrupt(image, "brightness", 2, rng())[:, 10::20, 0].T
    for before, after in zip(pixels / 255, seen, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert abs(np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))) * 255 - after).max() <= 0.51


def test_contrast_shrinks_the_distance_to_each_channels_mean():
    image = scene(224)
    mean = image.mean((1, 2), keepdims=True)
    assert abs(corrupt(image, "contrast", 2, rng()) - (mean + 0.3 * (image - mean))).max() <= 0.5001


def test_pixels_of_a_quarter_of_the_resolution_are_means_of_blocks():
    image = np.random.default_rng(1).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    blocks = image.reshape(3, 56, 4, 56, 4).mean((2, 4)).repeat(4, 1).repeat(4, 2)
    assert abs(corrupt(image, "pixelate", 5, rng()) - blocks).max() <= 1, "Pillow rounds each direction"


def test_compression_is_pillows_at_the_published_quality():
    image = scene(224)
    file = BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=7)
    assert np.array_equal(corrupt(image, "jpeg_compression", 5, rng()), np.asarray(Image.open(file)).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "zoom_blur", "pixelate"])
def test_what_only_spreads_leaves_an_even_image_as_it_is(kind):
    for side in (32, 112):
        assert (corrupt(flat(77, side), kind, 5, rng()) == 77).all()


def test_the_nearer_benchmarks_constants_are_used():
    for side, deviation in ((32, 0.04), (84, 0.04), (85, 0.08), (224, 0.08)):  # sqrt(32 * 224) = 84.7
        noise = corrupt(flat(128, side), "gaussian_noise", 1, rng()) - 128.0
        assert noise.std() == pytest.approx(deviation * 255, rel=0.04)


def test_test_images_alone_are_corrupted():
    clean = build.data(compose([*SMOKE, "evaluate.held_out=[ink]"]))
    dirty = build.data(compose([*SMOKE, "evaluate.held_out=[ink]", "evaluate.corruption=contrast"]))
    changed = (clean.images.images != dirty.images.images).flatten(1).any(1)
    tested = torch.zeros(len(changed), dtype=torch.bool)
    for client in clean.clients:
        tested[torch.from_numpy(client.test)] = True
        assert not changed[torch.from_numpy(np.concatenate([client.train, client.validation, client.held_out]))].any()
    assert torch.equal(changed, tested)
    assert tested.any()


def test_an_image_is_corrupted_in_the_same_way_in_every_client():
    def corrupted(*overrides):
        data = build.data(compose([*SMOKE, "evaluate.corruption=gaussian_noise", *overrides]))
        tested = sorted({int(i) for client in data.clients for i in client.test})
        return {data.images.names[i]: data.images.images[i] for i in tested}

    first = corrupted()
    for overrides in (["seed=1"], ["partition.seed=1", "clients=5"], ["evaluate.held_out=[ink]"]):
        other = corrupted(*overrides)
        common = first.keys() & other.keys()
        assert len(common) > 20
        assert all(torch.equal(first[name], other[name]) for name in common)
    assert len({image.numpy().tobytes() for image in first.values()}) == len(first)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.corruption=snow", r"evaluate\.corruption=snow .* gaussian_noise, shot_noise"),
        ("evaluate.severity=0", r"evaluate\.severity=0 .* 1 to 5"),
        ("evaluate.severity=6", r"evaluate\.severity=6 .* 1 to 5"),
        ("evaluate.severity=2.5", r"evaluate\.severity=2\.5"),
    ],
)
def test_unknown_corruptions_and_severities_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        build.data(compose([*SMOKE, override]))


def test_the_configuration_names_every_kind():
    text = (CONF / "config.yaml").read_text()
    listed = text[text.index("corruption: null") : text.index("severity:")]
    assert all(kind in listed for kind in CORRUPTIONS)

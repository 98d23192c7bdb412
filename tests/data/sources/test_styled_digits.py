"""The offline default holds every source digit once, balanced over styles, and draws the same pictures every time."""

import pytest
import torch
from sklearn.datasets import load_digits

from fedbayes.data.datasets import GIVEN_NONE, ImageSet
from fedbayes.data.sources.styled_digits import _cached, styled_digits
from fedbayes.errors import ConfigError


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return styled_digits(32)


def test_every_digit_is_drawn_once_with_its_label(digits: ImageSet) -> None:
    assert digits.images.shape == (1797, 3, 32, 32)
    assert digits.images.dtype == torch.uint8
    assert digits.names == tuple(f"digit {index}" for index in range(1797))
    assert digits.labels.tolist() == load_digits().target.tolist()
    assert (digits.given_split == GIVEN_NONE).all()
    assert digits.classes == tuple("0123456789")
    assert digits.domain_names == ("ink", "texture", "rotated", "noise", "outline")


def test_styles_are_balanced_in_all_and_in_every_class(digits: ImageSet) -> None:
    counts = torch.zeros(5, 10).index_put_((digits.domains, digits.labels), torch.ones(1797), accumulate=True)
    assert sorted(counts.sum(1).tolist()) == [359, 359, 359, 360, 360]
    # Dealing goes on from class to class, so no style is ahead of another by more than one digit anywhere.
    assert (counts.amax(0) - counts.amin(0)).max() <= 1


def test_it_is_the_same_every_time_and_leaves_global_generators_alone(digits: ImageSet) -> None:
    before = torch.get_rng_state()
    _cached.cache_clear()
    again = styled_digits(32)
    assert torch.equal(again.images, digits.images)
    assert torch.equal(again.domains, digits.domains)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [8, 65])
def test_writing_into_the_images_changes_no_other_set(size):
    first = styled_digits(size)
    before = first.images.clone()
    first.images.zero_()
    first.labels.zero_()
    another = styled_digits(size)
    assert torch.equal(another.images, before)
    assert another.labels.max() == 9


def test_a_larger_picture_is_the_same_picture(digits: ImageSet) -> None:
    large = styled_digits(64)
    assert large.images.shape == (1797, 3, 64, 64)
    assert torch.equal(large.domains, digits.domains)
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    difference = (shrunk - digits.images.float()).abs().mean((1, 2, 3)) / 255
    smooth = torch.tensor([name != "noise" for name in digits.domain_names])[digits.domains]
    assert difference[smooth].mean() < 0.05


def test_styles_look_different(digits: ImageSet) -> None:
    images = digits.images.float() / 255
    luminance = images.mean(1, keepdim=True)
    rough = (luminance[..., 1:] - luminance[..., :-1]).abs().mean((1, 2, 3))
    colour = images.std(1).mean((1, 2))
    light = luminance.mean((1, 2, 3))
    light_of, colour_of, rough_of = (
        {name: float(value[digits.domains == index].mean()) for index, name in enumerate(digits.domain_names)}
        for value in (light, colour, rough)
    )
    assert light_of["rotated"] + 0.2 < min(light_of["ink"], light_of["outline"])
    assert colour_of["texture"] > 2 * max(colour_of["ink"], colour_of["rotated"])
    assert rough_of["noise"] > 1.3 * max(rough_of[name] for name in rough_of if name != "noise")


def test_a_picture_smaller_than_its_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 8 to 4096"):
        styled_digits(4)

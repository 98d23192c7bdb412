"""Three sources of digits as one set."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fedbayes.data.sources.three_digits import three_digits
from fedbayes.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Two images per digit and folder: MNIST's and USPS's sizes, grey."""
    for domain, side in (("mnist", 28), ("usps", 16)):
        for digit in range(10):
            place = tmp_path / domain / str(digit)
            place.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((side, side), 20 * digit + i, np.uint8)).save(place / f"{i}.png")
    (tmp_path / "svhn" / "0").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "svhn" / "0" / "other.png")
    return tmp_path


def test_domains_follow_each_other_and_labels_are_the_folders(root):
    images = three_digits(str(root), 16)
    assert images.domain_names == ("mnist", "usps", "digits")
    assert images.classes == tuple("0123456789")
    assert images.domains.bincount().tolist() == [20, 20, 1797]
    assert (images.domains.diff() >= 0).all()
    assert images.labels[:40].tolist() == [digit for _ in range(2) for digit in range(10) for _ in range(2)]
    assert images.images[:40, 0, 5, 5].tolist() == [20 * d + i for _ in range(2) for d in range(10) for i in range(2)]
    assert (images.given_split == -1).all()
    assert len(set(images.names)) == 1837


def test_bundled_digits_keep_their_pixels_at_their_own_size(root):
    images = three_digits(str(root), 8)
    source = load_digits()
    bundled = images.images[40:]
    assert images.labels[40:].tolist() == source.target.tolist()
    for channel in range(3):
        assert abs(bundled[:, channel].numpy() - source.images * 255 / 16).max() <= 0.5
    assert bundled.max() == 255, "ink of 16 is white"


def test_a_lacking_digit_is_named(root):
    for path in (root / "usps" / "7").iterdir():
        path.rename(root / "mnist" / "7" / f"u{path.name}")
    assert len(three_digits(str(root), 8)) == 1837, "the other source has it"
    for path in (root / "mnist" / "7").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"has no images of 7, among data.classes"):
        three_digits(str(root), 8)

"""Fingerprints: every kind of changed images is named; equal images have no difference, wherever they lie."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from schemes import scheme

from fedbayes.data import fingerprint as module
from fedbayes.data.datasets import ImageSet
from fedbayes.data.federated import FederatedData
from fedbayes.data.fingerprint import fingerprint, first_difference
from fedbayes.data.partitions.held_out import hold_out, share_held_out
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.data.sources.styled_digits import styled_digits


def photos(root: Path) -> Path:
    """Two domains of two classes of six different images."""
    rng = np.random.default_rng(0)
    for folder in ("web/cat", "web/dog", "photo/cat", "photo/dog"):
        (root / folder).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")
    return root


def of_folder(root: Path) -> dict:
    """The fingerprint of a folder's images among three clients, read back from JSON."""
    images = image_folder(str(root), 16)
    content: dict = json.loads(json.dumps(fingerprint(FederatedData(images, scheme("iid")(images, 3)))))
    return content


def swap(root: Path, a: str, b: str) -> None:
    (root / a).rename(root / "aside")
    (root / b).rename(root / a)
    (root / "aside").rename(root / b)


def encode_again(root: Path, quality: int | None) -> None:
    image = Image.open(root / "web/cat/3.png")
    image.load()
    if quality is None:
        image.save(root / "web/cat/3.png", compress_level=0)
    else:
        image.save(root / "web/cat/3.png", "JPEG", quality=quality)


CHANGES = {
    "deleted": (lambda root: (root / "web/cat/3.png").unlink(), r"web/cat/3\.png \(.* image of client \d\) is missing"),
    "added": (lambda root: Image.new("RGB", (9, 9)).save(root / "web/cat/9.png"), r"web/cat/9\.png \(.* is new"),
    "replaced": (lambda root: Image.new("RGB", (9, 9)).save(root / "web/cat/3.png"), r"web/cat/3\.png .* contents"),
    "renamed": (
        lambda root: (root / "web/cat/3.png").rename(root / "web/cat/x.png"),
        r"web/cat/3\.png \(.* is called web/cat/x\.png now",
    ),
    "moved": (lambda root: (root / "web/cat/3.png").rename(root / "web/dog/x.png"), r"web/cat/3\.png .* missing"),
    "encoded with loss": (lambda root: encode_again(root, 50), r"web/cat/3\.png .* contents"),
    "two images swapped": (lambda root: swap(root, "web/cat/1.png", "web/cat/2.png"), r"web/cat/[12]\.png .* contents"),
    "a class renamed": (
        lambda root: [(root / d / "cat").rename(root / d / "zebra") for d in ("web", "photo")],
        "classes .*: cat is missing, zebra is new",
    ),
    "a domain renamed": (lambda root: (root / "web").rename(root / "www"), "domains .*: web is missing, www is new"),
    "two classes swapped": (lambda root: swap(root, "web/cat", "web/dog"), r"web/.*/\d\.png .* contents"),
    "two domains swapped": (lambda root: swap(root, "web", "photo"), r"contents"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_named(tmp_path, change):
    root = photos(tmp_path / "photos")
    before = of_folder(root)
    assert first_difference(before, of_folder(root)) is None
    alter, message = CHANGES[change]
    alter(root)
    assert re.search(message, str(first_difference(before, of_folder(root))))


def test_equal_pixels_are_no_difference(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    before = of_folder(root)
    encode_again(root, None)
    (root / "web/notes.txt").write_text("nothing to see")
    moved = root.rename(tmp_path / "elsewhere")
    assert first_difference(before, of_folder(moved)) is None
    listdir = module.os.listdir
    monkeypatch.setattr("os.listdir", lambda folder: sorted(listdir(folder), reverse=True))
    assert first_difference(before, of_folder(moved)) is None


def test_another_partition_size_or_order_is_named():
    images = styled_digits(8)
    splits = scheme("iid")(images, 4)
    before = fingerprint(FederatedData(images, splits))
    reordered = ImageSet(**{**vars(images), "domain_names": images.domain_names[::-1]})
    for word, changed, clients in (
        ("client 0", images, splits[::-1]),
        ("were 4 clients", images, [*splits, splits[0]]),
        ("shape", styled_digits(9), splits),
        ("order", reordered, splits),
    ):
        assert word in str(first_difference(before, fingerprint(FederatedData(changed, clients))))


def test_held_out_images_count():
    inside, whole = hold_out(styled_digits(8), ["ink"])
    splits = share_held_out(scheme("iid")(inside, 4), len(inside), len(whole), 0)
    before = fingerprint(FederatedData(whole, splits))
    whole.images[-1] = 0
    assert "held_out image of client" in str(first_difference(before, fingerprint(FederatedData(whole, splits))))


def test_without_a_list_the_client_and_the_split_are_named(monkeypatch):
    monkeypatch.setattr(module, "LISTED", 100)
    images = styled_digits(8)
    splits = scheme("iid")(images, 4)
    before = fingerprint(FederatedData(images, splits))
    assert len(json.dumps(before)) < 2000
    images.images[splits[2].test[0]] = 0
    changed = fingerprint(FederatedData(images, splits))
    assert first_difference(before, changed) == "the test images of client 2 differ"


@pytest.mark.parametrize("damaged", [{}, {"shape": [3, 8, 8]}, {"shape": [3, 8, 8], "classes": None, "domains": 1}])
def test_damaged_fingerprints_differ(damaged):
    images = styled_digits(8)
    current = fingerprint(FederatedData(images, scheme("iid")(images, 4)))
    assert "damaged" in str(first_difference(damaged, current))
    assert "damaged" in str(first_difference({**current, "clients": [1]}, current))


def test_a_server_without_images_has_a_fingerprint():
    ids = torch.empty(0, dtype=torch.int64)
    pixels = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    empty = fingerprint(FederatedData(ImageSet(pixels, ids, ids, ("a",), ("d",), ids.to(torch.int8), ()), []))
    assert empty == {"shape": [3, 8, 8], "classes": ["a"], "domains": ["d"], "clients": []}


def test_it_is_cheap():
    images = styled_digits(32)
    data = FederatedData(images, scheme("iid")(images, 20))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        fingerprint(data)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1, "about .02 on an idle core"

"""Reading image folders: layouts, names, and files that cannot be read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from painted import SIZE, paint, two_classes

from fedbayes.data.datasets import ImageSet
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.errors import ConfigError, DataError


def test_class_folders_are_one_domain_named_after_the_root(tmp_path: Path) -> None:
    images = image_folder(str(two_classes(tmp_path / "pets")), SIZE)
    assert images.classes == ("cat", "dog")
    assert images.domain_names == ("pets",)
    assert images.names == ("cat/a.png", "dog/a.png")
    assert images.labels.tolist() == [0, 1]
    assert images.given_split.tolist() == [-1, -1]
    assert images.images[:, 0, 0, 0].tolist() == [100, 200]
    assert images.images.shape == (2, 3, SIZE, SIZE)


def test_domains_share_the_union_of_their_classes_in_plain_order(tmp_path: Path) -> None:
    for path in ("web/9/a.png", "web/10/b.png", "photo/9/c.JPG", "photo/2/d.jpeg", "photo/2/B.png"):
        paint(tmp_path / path)
    images = image_folder(str(tmp_path), SIZE)
    assert images.classes == ("10", "2", "9")
    assert images.domain_names == ("photo", "web")
    assert images.names == ("photo/2/B.png", "photo/2/d.jpeg", "photo/9/c.JPG", "web/10/b.png", "web/9/a.png")
    assert images.labels.tolist() == [1, 1, 2, 0, 2]
    assert images.domains.tolist() == [0, 0, 0, 1, 1]


def test_ids_do_not_depend_on_the_order_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/y/2.png", "a/x/1.png", "a/y/3.png"):
        paint(tmp_path / name)
    expected = image_folder(str(tmp_path), SIZE).names
    listdir: Callable[[str], list[str]] = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listdir(folder), reverse=True))
    assert image_folder(str(tmp_path), SIZE).names == expected == ("a/x/1.png", "a/y/3.png", "b/y/2.png")


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "dog/a.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("no image")
    with pytest.raises(DataError, match=r"no readable image: cat/a\.jpg"):
        image_folder(str(tmp_path), SIZE, on_error="skip")
    paint(tmp_path / "dog/b.png")
    with pytest.raises(DataError, match="has only one class, dog"):
        image_folder(str(tmp_path), SIZE, on_error="skip")


@pytest.mark.parametrize(("size", "on_error", "message"), [(7, "raise", "data.image_size=7"), (8, "x", "on_error=x")])
def test_settings_are_checked_before_anything_is_read(size: int, on_error: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_folder("nowhere", size, on_error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "images are"),
        ({"labels": torch.tensor([0, 2])}, "labels go from 0 to 2; expected 0 to 1"),
        ({"domains": torch.tensor([0, 0], dtype=torch.int32)}, "domains are torch.int32"),
        ({"given_split": torch.tensor([3, 0], dtype=torch.int8)}, "given_split go from 0 to 3"),
        ({"names": ("a",)}, "names has 1 entries for 2 images"),
        ({"classes": ("cat", "cat")}, "classes has a name twice"),
    ],
)
def test_image_sets_refuse_contradictions(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "domains": torch.tensor([0, 0]),
        "classes": ("cat", "dog"),
        "domain_names": ("photo",),
        "given_split": torch.tensor([-1, 2], dtype=torch.int8),
        "names": ("a", "b"),
    }
    assert len(ImageSet(**fields)) == 2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        ImageSet(**fields | change)  # type: ignore[arg-type]


def test_names_fix_the_ids_whatever_a_folder_lacks(tmp_path: Path) -> None:
    paint(tmp_path / "web/dog/a.png")
    paint(tmp_path / "web/bird/a.png")
    images = image_folder(str(tmp_path), SIZE, classes=["dog", "cat", "bird"], domains=["photo", "web"])
    assert images.classes == ("dog", "cat", "bird")
    assert images.domain_names == ("photo", "web")
    assert dict(zip(images.names, images.labels.tolist(), strict=True)) == {"web/bird/a.png": 2, "web/dog/a.png": 0}
    assert images.domains.tolist() == [1, 1]


def test_with_names_a_single_class_is_enough_and_numbers_are_names(tmp_path: Path) -> None:
    paint(tmp_path / "web/3/a.png")
    images = image_folder(str(tmp_path), SIZE, classes=[1, 3], domains=["web"])
    assert (images.classes, images.labels.tolist()) == (("1", "3"), [1])


def test_without_a_folder_there_are_names_and_no_images() -> None:
    images = image_folder(None, SIZE, classes=["cat", "dog"], domains=["web"])
    assert images.images.shape == (0, 3, SIZE, SIZE)
    assert (images.classes, images.domain_names) == (("cat", "dog"), ("web",))
    with pytest.raises(DataError, match=r"data\.classes=.* and data\.domains="):
        image_folder(None, SIZE, classes=["cat", "dog"])


@pytest.mark.parametrize("classes", ["cat", ["cat"], ["cat", "cat"], []])
def test_names_are_a_list_of_different_names(classes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes="):
        image_folder(None, SIZE, classes=classes, domains=["web"])


def test_folders_that_no_name_covers_are_refused_or_ignored(tmp_path: Path) -> None:
    for label in ("bike", "car", "mug"):
        paint(tmp_path / f"web/{label}/0.png")

    def read(classes: list[str], domains: list[str], others: str) -> ImageSet:
        return image_folder(str(tmp_path), SIZE, classes=classes, domains=domains, others=others)

    with pytest.raises(DataError, match=r"car, .*data\.classes=\[bike, mug\]"):
        read(["bike", "mug"], ["web"], "raise")
    with pytest.raises(DataError, match=r"web, .*data\.domains=\[photo\]"):
        read(["bike", "car", "mug"], ["photo"], "raise")
    assert read(["bike", "mug"], ["web"], "ignore").names == ("web/bike/0.png", "web/mug/0.png")
    with pytest.raises(DataError, match=r"cup, among data\.classes, but of bike, car, mug"):
        read(["bike", "cup"], ["web"], "ignore")
    with pytest.raises(DataError, match=r"photo, among data\.domains, but of web"):
        read(["bike", "mug"], ["photo", "web"], "ignore")
    with pytest.raises(ConfigError, match=r"data\.others=drop .*raise, ignore"):
        read(["bike", "mug"], ["web"], "drop")

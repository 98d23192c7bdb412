"""Layouts of image folders: which folders are splits, domains or classes, and what is left out or unclear."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from painted import SIZE, paint, two_classes
from PIL import Image, features

from fedbayes.data.datasets import ImageSet
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.errors import ConfigError, DataError


def read(root: Path, **settings: Any) -> ImageSet:
    return image_folder(str(root), SIZE, **settings)


def splits_of(images: ImageSet) -> dict[str, int]:
    return dict(zip(images.names, images.given_split.tolist(), strict=True))


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("Train", "Valid", "TEST"),
        ("trainset", "devset", "testset"),
        ("train_set", "dev", "eval"),
        ("train-images", "val images", "evaluation"),
        ("Training Data", "development", "test_data"),
        ("seg_train", "seg_val", "seg_test"),
        ("train2017", "val2017", "test2017"),
        ("trn", "val", "tst"),
    ],
)
@pytest.mark.parametrize("layout", ["{split}/{label}", "{split}/web/{label}", "web/{split}/{label}", "{label}/{split}"])
def test_usual_names_of_splits_are_known_at_every_level(
    tmp_path: Path, train: str, validation: str, test: str, layout: str
) -> None:
    expected = {}
    for split_id, split in enumerate((train, validation, test)):
        for label in ("cat", "dog"):
            path = layout.format(split=split, label=label) + "/a.png"
            paint(tmp_path / path)
            expected[path] = split_id
    images = read(tmp_path)
    assert splits_of(images) == expected
    assert images.classes == ("cat", "dog")
    assert images.domain_names == (("web",) if "web" in layout else (tmp_path.name,))


def test_a_split_folder_inside_itself_counts_once(tmp_path: Path) -> None:
    for split in ("seg_train", "seg_test"):
        two_classes(tmp_path / split / split)
    assert splits_of(read(tmp_path))["seg_test/seg_test/cat/a.png"] == 2
    paint(tmp_path / "seg_train/seg_test/cat/b.png")
    with pytest.raises(DataError, match=r"seg_train/seg_test/cat/b\.png .* two splits"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("folders", "domains", "classes"),
    [
        (("train", "bus"), None, ("bus", "train")),
        (("web/train", "web/bus", "photo/bus"), ("photo", "web"), ("bus", "train")),
        (("contest/cat", "valley/dog"), ("contest", "valley"), ("cat", "dog")),
        (("bullet_train", "freight_train"), None, ("bullet_train", "freight_train")),
        (("bullet_train", "test_tube", "bus"), None, ("bullet_train", "bus", "test_tube")),
    ],
)
def test_names_that_are_no_splits(
    tmp_path: Path, folders: tuple[str, ...], domains: tuple[str, ...] | None, classes: tuple[str, ...]
) -> None:
    for folder in folders:
        paint(tmp_path / folder / "a.png")
    images = read(tmp_path)
    assert (images.classes, images.domain_names) == (classes, domains or (tmp_path.name,))
    assert set(images.given_split.tolist()) == {-1}


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test", "web"),
        ("training", "extra"),
        ("dev1", "dev2"),
        ("test",),
        ("mnist_train", "mnist_test"),
        ("1-train", "2-val"),
        ("train", "x_test"),
    ],
)
def test_unclear_splits_are_asked_for(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        two_classes(tmp_path / folder)
    with pytest.raises(DataError, match=r"data\.splits=.*data\.ignore="):
        read(tmp_path)
    for remedy in ({"splits": {}}, {"domains": sorted(folders)}):
        assert read(tmp_path, **remedy).domain_names == tuple(sorted(folders))


def test_splits_by_names_of_the_users(tmp_path: Path) -> None:
    for folder in ("lessons", "exam"):
        two_classes(tmp_path / "web" / folder)
    splits = {"lessons": "train", "exam": "test"}
    assert read(tmp_path, splits=splits).given_split.tolist() == [2, 2, 0, 0]
    with pytest.raises(DataError, match="exam beside lessons"):
        read(tmp_path, splits={"exam": "test"})
    with pytest.raises(DataError, match=r"homework.* data\.splits"):
        read(tmp_path, splits={**splits, "homework": "train"})
    with pytest.raises(ConfigError, match=r"data\.splits=holiday"):
        read(tmp_path, splits={"lessons": "holiday"})


@pytest.mark.parametrize(
    ("image", "root", "message"),
    [
        ("a.png", "nowhere", "does not exist"),
        ("a.png", "a.png", "is not a folder"),
        ("a.txt", "", "no class folders; expected"),
        ("cat/a.txt", "", "no images"),
        ("a.png", "", r"no class folders above a\.png"),
        ("train/a.png", "", "no class folders"),
        ("cat/a.png", "", "only one class, cat"),
        ("a/b/c/d.png", "", "too deep down, as a/b/c/d.png"),
    ],
)
def test_layouts_that_cannot_be_read_say_so(tmp_path: Path, image: str, root: str, message: str) -> None:
    if image.endswith(".png"):
        paint(tmp_path / image)
    else:
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / image).touch()
    with pytest.raises(DataError, match=f"data.root={tmp_path / root} .*{message}"):
        read(tmp_path / root)


def test_a_nested_folder_is_named_and_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_classes(tmp_path)
    paint(tmp_path / "cat/crops/b.png")
    paint(tmp_path / "cat/crops/c.png")
    for remedy in ("cat/crops", "crops"):
        assert read(tmp_path, ignore=[remedy]).names == ("cat/a.png", "dog/a.png")
    assert "in data.ignore, the first cat/crops" in caplog.text
    paint(tmp_path / "dog/b.png")
    with pytest.raises(DataError, match=r"3 images .* 2 as cat/crops/b\.png.*data\.ignore=\[cat/crops\]"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.ignore=crops"):
        read(tmp_path, ignore="crops")


def test_left_out_files_are_logged_once_with_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_classes(tmp_path)
    for name in ("cat/.hidden.png", ".cache/cat/a.png", "bird/a.heic", "bird/b.HEIC", "cat/c.jp2", "cat/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image that is read")
    (tmp_path / "empty/inside").mkdir(parents=True)
    paint(tmp_path / "cat/1/2/3/4/b.png")
    with caplog.at_level(logging.WARNING, "fedbayes"):
        assert read(tmp_path).names == ("cat/a.png", "dog/a.png")
    (record,) = caplog.records
    for words in (
        "2 .heic files",
        "1 .jp2 files",
        "the first bird/a.heic",
        "without images, the first bird",
        "1/2/3/4",
    ):
        assert words in record.getMessage()
    assert "notes" not in caplog.text
    (tmp_path / "only/bird").mkdir(parents=True)
    (tmp_path / "bird/a.heic").rename(tmp_path / "only/bird/a.heic")
    with pytest.raises(DataError, match=r"no images .* but 1 \.heic files"):
        read(tmp_path / "only")


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "apng", "pnm", "avif"])
def test_further_extensions_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("needs a Pillow that reads AVIF")
    two_classes(tmp_path)
    Image.new("RGB", (SIZE, SIZE), (90, 90, 90)).save(tmp_path / f"dog/b.{suffix}")
    images = read(tmp_path)
    assert images.names[-1] == f"dog/b.{suffix}"
    assert abs(int(images.images[-1, 0, 0, 0]) - 90) <= 3


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_linked_file_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, link) -> None:
    two_classes(tmp_path)
    link(tmp_path / "cat/a.png", tmp_path / "cat/b.png")
    assert read(tmp_path).names == ("cat/a.png", "dog/a.png")
    assert "the first cat/b.png" in caplog.text
    outside = paint(tmp_path.parent / f"{tmp_path.name}.png")
    link(outside, tmp_path / "dog/outside.png")
    assert len(read(tmp_path)) == 3, "a link out of the folder is an image like others"
    link(tmp_path / "cat/a.png", tmp_path / "dog/cat.png")
    with pytest.raises(DataError, match=r"cat/a\.png and dog/cat\.png .*data\.ignore="):
        read(tmp_path)
    assert len(read(tmp_path, ignore=["dog/cat.png"])) == 3


def test_linked_folders_do_not_count_twice(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "dogs").symlink_to(tmp_path / "dog", target_is_directory=True)
    with pytest.raises(DataError, match=r"dog/a\.png and dogs/a\.png"):
        read(tmp_path)
    assert len(read(tmp_path, ignore=["dogs"])) == 2


def test_link_loops_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_classes(tmp_path)
    (tmp_path / "cat/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with caplog.at_level(logging.WARNING, "fedbayes"):
        assert len(read(tmp_path)) == 2
    assert "links to a folder that they lie in, the first cat/loop" in caplog.text


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9/a")
    with pytest.raises(DataError, match=r"caf\\udce9 is no UTF-8"):
        read(tmp_path)

"""Named sets of folders: fixed ids whatever the disk says, parts of larger folders, and what a missing one says."""

import os
import random
from pathlib import Path

import pytest
from hydra.utils import instantiate
from painted import paint

from fedbayes import build
from fedbayes.config.compose import CONF, compose
from fedbayes.data.sources.image_folder import image_folder
from fedbayes.errors import DataError

DATA = os.environ.get("FEDBAYES_DATA")
SETS = {
    "office_caltech10": (4, 10),
    "pacs": (4, 7),
    "office_home": (4, 65),
    "domainnet10": (6, 10),
    "domainnet": (6, 345),
}


def node(name, *overrides):
    return compose([f"data={name}", *overrides]).data


def fill(root, data, extra_classes=(), extra_domains=()):
    """One image per class and domain, written in a shuffled order."""
    folders = [(d, c) for d in (*data.domains, *extra_domains) for c in (*data.classes, *extra_classes)]
    random.Random(0).shuffle(folders)
    for domain, label in folders:
        paint(root / domain / label / "0.png")


@pytest.mark.parametrize("name", SETS)
def test_a_named_set_has_its_domains_and_classes_in_a_plain_order(name):
    data = node(name)
    assert (len(data.domains), len(data.classes)) == SETS[name]
    assert all(isinstance(name, str) for name in (*data.domains, *data.classes)), "YAML reads some words as numbers"
    assert list(data.classes) == sorted(data.classes)
    assert list(data.domains) == sorted(data.domains)


def test_the_ten_classes_of_domainnet10_are_domainnets():
    assert set(node("domainnet10").classes) < set(node("domainnet").classes)


@pytest.mark.parametrize("name", ["pacs", "three_digits"])
def test_ids_do_not_depend_on_the_order_of_folders(name, tmp_path, monkeypatch):
    listdir = os.listdir
    for seed in range(2):
        root = tmp_path / str(seed)
        if name == "three_digits":
            for domain in ("usps", "mnist"):
                for digit in "3120987654":
                    paint(root / domain / digit / "0.png", int(digit))
        else:
            fill(root, node(name))
        data, rng = node(name, f"data.root={root}"), random.Random(seed)
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", lambda path, rng=rng: rng.sample(names := listdir(path), len(names)))
            images = instantiate(data, _convert_="all")
        assert images.domain_names == tuple(data.get("domains", ["mnist", "usps", "digits"]))
        assert images.classes == tuple(data.get("classes", "0123456789"))
        for path, domain, label in zip(images.names, images.domains, images.labels, strict=True):
            if not path.startswith("digits/"):
                assert path == f"{images.domain_names[domain]}/{images.classes[label]}/0.png"


def test_ten_classes_are_picked_from_a_full_folder(tmp_path):
    data = node("domainnet10", f"data.root={tmp_path}")
    fill(tmp_path, data, extra_classes=["aircraft_carrier", "zigzag"], extra_domains=["photo"])
    (tmp_path / "clipart_train.txt").write_text("clipart/zebra/0.png 344")
    settings = {key: value for key, value in data.items() if key != "_target_"}
    images = image_folder(**settings)
    assert len(images) == 60
    assert images.classes == tuple(data.classes)
    assert sorted(set(images.labels.tolist())) == list(range(10))
    assert not [path for path in images.names if "zigzag" in path or "photo" in path]


@pytest.mark.parametrize("name", [*SETS, "three_digits"])
def test_a_missing_set_says_where_to_get_it_and_where_to_put_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDBAYES_DATA", str(tmp_path))
    data = node(name)
    with pytest.raises(DataError) as caught:
        build.data(compose([f"data={name}"]))
    assert f"data.root={tmp_path}" in str(caught.value)
    assert str(caught.value).endswith(f"{data.source}.")
    assert "FEDBAYES_DATA or data.root" in data.source
    assert "\n" not in str(caught.value)


def test_data_lie_below_the_working_directory_or_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("FEDBAYES_DATA", raising=False)
    assert node("pacs").root == str(Path("data/pacs").absolute()), "paths are absolute"
    monkeypatch.setenv("FEDBAYES_DATA", "/mnt/sets")
    assert node("pacs").root == "/mnt/sets/pacs"


def test_every_set_is_described_in_its_first_line():
    for path in sorted((CONF / "data").glob("*.yaml")):
        assert path.stem == path.stem.lower()
        assert path.read_text().startswith("# "), path.name


@pytest.mark.needs_data
@pytest.mark.skipif(not DATA, reason="needs FEDBAYES_DATA, a folder with office_caltech10/ and digits/")
def test_real_folders_have_the_published_numbers_of_images():
    office = build.data(compose(["data=office_caltech10", "partition=one_domain", "clients=4"])).images
    assert office.domains.bincount().tolist() == [958, 1123, 157, 295]
    digits = build.data(compose(["data=three_digits"])).images
    assert digits.domains.bincount().tolist()[2] == 1797
    assert Path(office.names[0]).parts[:2] == ("amazon", "backpack")

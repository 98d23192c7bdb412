"""Hub sets, with a stand-in for `flwr_datasets`: columns, orders, splits, and what its absence says."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.data.sources.hub import hub
from fedbayes.errors import ConfigError, DataError


class Image:
    """As `datasets.Image`: known by the name of its kind."""


class Value(Image):
    pass


class ClassLabel(Image):
    def __init__(self, names):
        self.names = names


class Part:
    """A split: rows by number, columns by name."""

    def __init__(self, features, rows):
        self.features, self.rows = features, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def grey(value):
    return Pillow.fromarray(np.full((8, 8), value, np.uint8))


FEATURES = {"id": Value(), "img": Image(), "style": Value(), "fine": ClassLabel(["zebra", "ant"])}
SPLITS = {
    "train": [
        {"id": 0, "img": grey(10), "style": "web", "fine": 1},
        {"id": 1, "img": grey(20), "style": "photo", "fine": 0},
    ],
    "test": [{"id": 2, "img": grey(30), "style": "sketch", "fine": 1}],
}


@pytest.fixture
def calls(monkeypatch):
    """Installs the stand-in; gives the arguments that it was called with."""
    settings_of_calls = []

    def federated_dataset(**settings):
        settings_of_calls.append(settings)

        def load_split(name):
            if name not in SPLITS:
                raise ValueError(f"no split {name}\nof these")
            return Part(FEATURES, SPLITS[name])

        return SimpleNamespace(load_split=load_split)

    module = ModuleType("flwr_datasets")
    module.FederatedDataset = federated_dataset
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)
    return settings_of_calls


def test_columns_are_found_by_kind_and_classes_keep_the_sets_order(calls):
    images = hub("org/animals", 8, test="test")
    assert images.classes == ("zebra", "ant")
    assert images.labels.tolist() == [1, 0, 1]
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images.given_split.tolist() == [0, 0, 2]
    assert images.domain_names == ("org/animals",)
    assert images.names[-1] == "org/animals/test/0"
    assert calls[0] == {"dataset": "org/animals", "subset": None, "partitioners": {}, "shuffle": False}


def test_a_column_of_words_gives_sorted_domains_over_all_splits(calls):
    images = hub("org/animals", 8, test="test", domain="style", label="style")
    assert images.domain_names == images.classes == ("photo", "sketch", "web")
    assert images.domains.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "weather"}, r"data\.domain=weather .* among id, img, style, fine"),
        ({"label": "weather"}, r"data\.label=weather"),
        ({"image": "picture"}, r"data\.image=picture"),
        ({"test": "exam"}, r"split exam .*\(no split exam\)"),
        ({"image": "id"}, "org/animals/train/0 cannot be read"),
    ],
)
def test_unknown_columns_and_splits_are_named(calls, settings, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        hub("org/animals", 8, **settings)
    assert "\n" not in str(caught.value)


def test_unpublished_labels_are_an_error(calls, monkeypatch):
    monkeypatch.setitem(SPLITS["test"][0], "fine", -1)
    with pytest.raises(DataError, match=r"1 images have no fine; .*data\.test"):
        hub("org/animals", 8, test="test")


def test_without_a_column_of_the_kind_the_key_is_named(calls, monkeypatch):
    monkeypatch.setitem(FEATURES, "fine", Value())
    with pytest.raises(ConfigError, match=r"ClassLabel; .*data\.label among id, img, style"):
        hub("org/animals", 8)


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install fedbayes\[hub\]"):
        build.data(compose(["data=hub", "data.name=uoft-cs/cifar10"]))

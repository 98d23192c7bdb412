"""Sets that torchvision reads: its own files in miniature, the given split, and what a missing set says."""

import bz2
import hashlib
import pickle

import numpy as np
import pytest
from torchvision import datasets

from fedbayes import build
from fedbayes.config.compose import compose
from fedbayes.data.sources.torchvision_sets import SETS, torchvision_set
from fedbayes.errors import ConfigError, DataError


def checksum(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Twelve images in CIFAR-10's format, eight to train on; image i is of class 9 - i % 10 and of grey 10 i."""
    place = tmp_path / datasets.CIFAR10.base_folder
    place.mkdir()
    numbers = {"data_batch_1": range(8), "test_batch": range(8, 12)}
    for name, ids in numbers.items():
        pixels = np.stack([np.full(3072, 10 * i, np.uint8) for i in ids])
        pixels[:, :1024] += 1  # the first plane is red
        (place / name).write_bytes(pickle.dumps({"data": pixels, "labels": [9 - i % 10 for i in ids]}))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    lists = {name: [[name, checksum(place / name)]] for name in numbers}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists["data_batch_1"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists["test_batch"])
    meta = {**datasets.CIFAR10.meta, "md5": checksum(place / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


@pytest.mark.parametrize("size", [16, 48])
def test_cifar_keeps_its_order_its_split_and_its_class_names(cifar10, size):
    images = torchvision_set("cifar10", str(cifar10), size)
    assert images.images.shape == (12, 3, size, size)
    assert images.images[:, :, 3, 3].tolist() == [[10 * i + 1, 10 * i, 10 * i] for i in range(12)]
    assert images.labels.tolist() == [9 - i % 10 for i in range(12)]
    assert images.given_split.tolist() == [0] * 8 + [2] * 4
    assert images.classes == tuple(f"class {i}" for i in range(10))
    assert images.domain_names == ("cifar10",)
    assert images.names[7:9] == ("train/7", "test/0")


def test_test_images_of_clients_are_the_given_ones(cifar10):
    chosen = [f"data.root={cifar10}", "partition=iid", "clients=2", "partition.min_images=3"]
    federated = build.data(compose(["data=cifar10", *chosen]))
    assert sorted(np.concatenate([client.test for client in federated.clients])) == [8, 9, 10, 11]
    assert all(len(client.train) and len(client.validation) for client in federated.clients)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_a_pickle_that_is_not_the_published_one_is_never_opened(cifar10, name):
    (cifar10 / datasets.CIFAR10.base_folder / name).write_bytes(pickle.dumps({"data": Evil(cifar10 / "called")}))
    with pytest.raises(DataError, match="has no cifar10 that can be read"):
        torchvision_set("cifar10", str(cifar10), 32)
    assert not (cifar10 / "called").exists()


@pytest.mark.parametrize("part", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(16), b"\x00\x00\x08\x01" + b"\xff" * 8, b"\x00\x00\x08\x01\0\0\0\1\xc8", b"["*99]
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path, part, content):
    mnist_of(tmp_path)
    (tmp_path / "MNIST" / "raw" / part).write_bytes(content)
    with pytest.raises(DataError, match=r"has no mnist that can be read \(.+\); put MNIST/raw/"):
        torchvision_set("mnist", str(tmp_path), 28)


def mnist_of(tmp_path):
    """Three images, two to train on."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, digits in (("train", [3, 7]), ("t10k", [9])):
        count = len(digits)
        pixels = np.stack([np.full((28, 28), 25 * digit, np.uint8) for digit in digits])
        header = b"".join(n.to_bytes(4, "big") for n in (2051, count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(n.to_bytes(4, "big") for n in (2049, count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(digits))


def test_mnist_and_usps_are_grey_and_their_classes_are_digits(tmp_path):
    mnist_of(tmp_path)
    mnist = torchvision_set("mnist", str(tmp_path), 28)
    assert mnist.labels.tolist() == [3, 7, 9]
    assert mnist.images[:, :, 9, 9].tolist() == [[75] * 3, [175] * 3, [225] * 3]
    for name, digit in (("usps.bz2", 4), ("usps.t.bz2", 5)):
        values = " ".join(f"{i + 1}:1.0" for i in range(256))
        (tmp_path / name).write_bytes(bz2.compress(f"{digit + 1} {values}\n".encode()))
    usps = torchvision_set("usps", str(tmp_path), 16)
    assert (usps.labels.tolist(), usps.given_split.tolist()) == ([4, 5], [0, 2])
    assert usps.images.min() == 255
    assert mnist.classes == usps.classes == tuple("0123456789")


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_is_not_downloaded_but_explained(name, tmp_path):
    with pytest.raises(DataError, match=rf"data\.root={tmp_path} has no {name} .*data\.download=true") as caught:
        build.data(compose([f"data={name}", f"data.root={tmp_path}"]))
    assert SETS[name].files in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.name=cifar1 .*cifar10, cifar100"):
        torchvision_set("cifar1", str(tmp_path), 32)
    with pytest.raises(ConfigError, match=r"data\.image_size=4"):
        torchvision_set("cifar10", str(tmp_path), 4)

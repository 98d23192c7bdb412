"""A run goes on, and is loaded, only with the images and the backbone that it began with."""

import json

import numpy as np
import pytest
from breaking import broken
from PIL import Image

import fedbayes
from fedbayes.errors import DataError
from fedbayes.run import resume

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for domain in ("day", "night"):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / domain / label
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def delete(root):
    (root / "day" / "cat" / "0.png").unlink()
    return r"day/cat/0\.png"


def paint(root):
    Image.new("RGB", (16, 16)).save(root / "night" / "dog" / "3.png")
    return r"night/dog/3\.png .* other contents"


def rename_class(root):
    for domain in ("day", "night"):
        (root / domain / "cat").rename(root / domain / "zcat")
    return r"classes differ: cat is missing, zcat is new"


def rename_domain(root):
    (root / "day").rename(root / "zday")
    return r"domains differ"


@pytest.mark.parametrize("change", [delete, paint, rename_class, rename_domain])
def test_other_images_are_refused_with_the_first_difference(change, photos, tmp_path, monkeypatch):
    words = ["experiment=smoke", "method=fedavg_head", "data=imagefolder", "clients=2", "partition.max_train=null"]
    words += [f"data.root={photos}", f"run_dir={tmp_path / 'run'}", "partition=iid"]
    broken(words, monkeypatch, 1)
    difference = change(photos)
    with pytest.raises(DataError, match=difference):
        resume(tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_finished_run_is_not_loaded_with_other_inputs(photos, tmp_path, monkeypatch):
    """Beside the images it is the weights of the backbone that count, whatever file they come from."""
    monkeypatch.chdir(tmp_path)
    words = ["experiment=smoke", "method=fedavg_head", "rounds=1", "data=imagefolder", "data.root=photos", "clients=2"]
    fedbayes.simulate([*words, "partition=iid", "run_dir=run"])
    monkeypatch.chdir("/")  # a relative root keeps its meaning
    image = photos / "day" / "cat" / "1.png"
    assert set(fedbayes.load(tmp_path / "run").predict([image]).labels) <= {"cat", "dog"}
    path = tmp_path / "run" / "inputs.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "backbone": "0"}))
    with pytest.raises(DataError, match="backbone"):
        fedbayes.load(tmp_path / "run").predict([image])
    path.write_text(json.dumps(stored))
    rename_class(photos)
    with pytest.raises(DataError, match="zcat"):
        fedbayes.load(tmp_path / "run").predict([image])


def test_a_missing_record_is_said(photos, tmp_path, monkeypatch, caplog):
    words = ["experiment=smoke", "method=fedavg_head", "data=imagefolder", "clients=2", "partition.max_train=null"]
    run_dir = tmp_path / "run"
    broken([*words, f"data.root={photos}", f"run_dir={run_dir}", "partition=iid"], monkeypatch, 1)
    (run_dir / "inputs.json").unlink()
    resume(run_dir)
    assert "inputs.json" in (run_dir / "run.log").read_text()
    (run_dir / "inputs.json").unlink()
    fedbayes.load(run_dir).predict([photos / "day" / "cat" / "1.png"])
    assert "no inputs.json" in caplog.text

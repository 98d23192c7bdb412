"""The gallery shows the images that were predicted, and says why where it cannot."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fedbayes import build
from fedbayes.config import stored as stored_configuration
from fedbayes.report.gallery import EACH, SIDE, _png, main, write_gallery
from fedbayes.run import simulate
from fedbayes.storage.predictions import read_predictions


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "run"
    simulate(["experiment=smoke", f"run_dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def parts(run_dir):
    cfg = stored_configuration.read(run_dir)
    return cfg, build.assemble(cfg, build.NoEngine())


def gallery(run_dir):
    return json.loads((run_dir / "gallery.json").read_text())


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).transpose(2, 0, 1)


def test_images_are_those_that_were_predicted(run_dir, parts):
    data = parts[1].data
    found, shown = read_predictions(run_dir), gallery(run_dir)["images"]
    ids = np.concatenate([data.indices(partition, "test").numpy() for partition in range(len(data))])
    order = np.argsort(-found.confidence, kind="stable")
    expected = {"most_certain": order[:EACH], "least_certain": order[::-1][:EACH]}
    expected["mistakes"] = [row for row in order if not found.right[row]][:EACH]
    for name, rows in expected.items():
        assert len(shown[name]) == len(rows)
        for image, row in zip(shown[name], rows, strict=True):
            np.testing.assert_array_equal(pixels(image["png"]), data.images.images[ids[row]].numpy())
            assert image["label"] == data.images.classes[data.images.labels[ids[row]]]
            assert image["domain"] == data.images.domain_names[data.images.domains[ids[row]]]
            assert image["predicted"] == data.images.classes[found.probabilities[row].argmax()]
            assert image["confidence"] == found.probabilities[row].max()
            assert image["partition"] == found.partitions[row]
            assert pixels(image["attention"]).shape == (3, 16, 16)


def test_the_codes_are_of_one_clients_images(run_dir, parts):
    data = parts[1].data
    codes = gallery(run_dir)["codes"]
    splits = [data.indices(codes["partition"], split) for split in ("test", "validation", "train")]
    domains = data.images.domains[np.concatenate([one.numpy() for one in splits])].tolist()
    assert [domain for *_, domain in codes["points"]] == domains
    assert np.abs(np.mean(codes["points"], 0)[:2]).max() < 1e-3  # components are about the mean
    first, second = np.var(codes["points"], 0)[:2]
    assert first >= second
    assert codes["explained"][0] / codes["explained"][1] == pytest.approx(first / second, rel=1e-2)


def test_a_gallery_made_again_is_the_same(run_dir, parts):
    before = gallery(run_dir)
    write_gallery(run_dir, *parts)
    assert gallery(run_dir) == before
    assert "Most certain mistakes" in (run_dir / "report.html").read_text()


def test_no_image_leaves_where_that_is_asked(run_dir, tmp_path):
    simulate(["experiment=smoke", "evaluate.gallery=false", f"run_dir={tmp_path / 'run'}"])
    found = gallery(tmp_path / "run")
    assert found["images"] == {}
    assert found["codes"] == gallery(run_dir)["codes"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Most certain mistakes" not in page
    assert "Images are left out: evaluate.gallery=false." in page


def test_prompts_that_are_the_same_for_all_images_have_no_codes(tmp_path):
    simulate(["experiment=smoke", "method=fedvpt", "rounds=1", f"run_dir={tmp_path / 'run'}"])
    found = gallery(tmp_path / "run")
    assert found["codes"] is None
    assert found["images"]["least_certain"][0]["attention"]


def test_other_data_than_the_runs_leave_a_reason(run_dir, parts, tmp_path):
    cfg, own = parts
    stranger = tmp_path / "run"
    stranger.mkdir()
    for name in ("predictions.safetensors", "config.yaml"):
        (stranger / name).write_bytes((run_dir / name).read_bytes())
    other = build.data(stored_configuration.read(run_dir))
    other.images.labels.copy_((other.images.labels + 1) % 10)
    write_gallery(stranger, cfg, replace(own, data=other))
    assert "the data have changed since the run" in gallery(stranger)["missing"]
    (stranger / "predictions.safetensors").unlink()
    write_gallery(stranger, cfg, own)
    assert "none was predicted" in gallery(stranger)["missing"]


def test_the_command_makes_it_for_an_older_run_or_says_what_is_wrong(run_dir, tmp_path, capsys):
    before = gallery(run_dir)
    (run_dir / "gallery.json").unlink()
    assert main([str(run_dir)]) == 0
    assert gallery(run_dir) == before
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("RunError: ")


def test_large_images_are_made_small():
    assert pixels(_png(np.zeros((3, 400, 200), np.uint8))).shape == (3, SIDE, SIDE // 2)

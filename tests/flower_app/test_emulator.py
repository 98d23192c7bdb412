"""SuperNodes get the emulator's file and never the ViT; the server has both."""

import pytest
from app_grid import AppGrid
from fedbayes_app import client_app
from fedbayes_app.settings import configuration
from safetensors.numpy import load_file
from side_images import SIDES, paint

import fedbayes
from fedbayes.commands.emulator import main
from fedbayes.errors import ConfigError, RunError
from fedbayes.models import zoo
from fedbayes.run import run, simulate
from fedbayes.simulation.superlink import Served

pytestmark = pytest.mark.usefixtures("no_pictures")

WORDS = ["experiment=smoke", "emulator=gradot", "emulator.loss=features", "owner.images=40"]
NODES = [{"partition-id": p, "num-partitions": 3} for p in range(3)]


def serve(overrides, nodes, run_dir):
    cfg = configuration(overrides)
    grid = AppGrid(client_app.app, nodes, {"overrides": overrides, "directory": ""})
    return run(cfg, run_dir, Served(device="cpu", threads=1, grid=grid))


@pytest.fixture
def reads(monkeypatch):
    """How often the full ViT is read."""
    calls, shipped = [], zoo.shipped
    monkeypatch.setattr(zoo, "shipped", lambda image_size: calls.append(image_size) or shipped(image_size))
    return calls


def test_nodes_train_on_the_file_that_the_server_wrote(tmp_path, reads):
    file = tmp_path / "emulator.safetensors"
    summary = serve(" ".join([*WORDS, f"owner.emulator={file}"]), NODES, tmp_path / "app")
    assert len(reads) == 1, "by the server alone"
    assert summary["emulator"]["bytes"] < file.stat().st_size < 1.05 * summary["emulator"]["bytes"]
    assert summary["final"]["gap"] is None, "no SuperNode has the full ViT"
    assert summary["emulator"]["predicts"] == "emulator"
    process = simulate([*WORDS, "simulation.cohort=1", f"run_dir={tmp_path / 'process'}"])
    assert summary["final"]["accuracy"] == process["final"]["emulator"]["accuracy"]
    assert summary["final"]["nll"] == process["final"]["emulator"]["nll"]
    # The owner plugs in what was learnt.
    images = fedbayes.load(tmp_path / "process").clients.client.data.images.images[:5]
    plugged = [fedbayes.load(tmp_path / name).predict(images).probabilities for name in ("app", "process")]
    assert plugged[0].tobytes() == plugged[1].tobytes()
    tensors = load_file(tmp_path / "app" / "predictions.safetensors")
    assert "emulator_probabilities" not in tensors


def test_without_a_file_the_run_is_rejected(tmp_path):
    with pytest.raises((ConfigError, RunError), match=r"owner\.emulator"):
        serve(" ".join(WORDS), NODES, tmp_path / "app")


def test_nodes_with_images_of_their_own_and_a_file_of_their_own(tmp_path, reads, capsys):
    file = tmp_path / "emulator.safetensors"
    words = ["experiment=smoke", "emulator=gradot", "emulator.loss=features", f"owner.emulator={file}"]
    assert main([*words, "owner.images=40"]) == 0
    assert str(file) in capsys.readouterr().out
    domains = ["ink", "sand", "snow"]
    local = [
        *("data=imagefolder", "data.root=null", "data.image_size=16", "partition=local_folder", "method=fedvpt"),
        *(f"data.domains=[{','.join(domains)}]", f"data.classes=[{','.join(SIDES)}]"),
    ]
    nodes = []
    for node, domain in zip(NODES, domains, strict=True):
        folder = paint(tmp_path / domain, domain, list(SIDES))
        copied = tmp_path / f"{domain}.safetensors"
        copied.write_bytes(file.read_bytes())
        nodes.append({**node, "data-root": str(folder), "emulator": str(copied)})
    reads.clear()
    summary = serve(" ".join([*words, *local]), nodes, tmp_path / "run")
    assert len(reads) == 1, "by the server alone"
    assert list(summary["per_domain"]) == domains


def test_a_file_of_other_settings_is_rejected(tmp_path):
    file = tmp_path / "emulator.safetensors"
    assert main([*WORDS, f"owner.emulator={file}"]) == 0
    with pytest.raises(ConfigError, match=r"emulator\.keep=0\.75"):
        simulate([*WORDS, f"owner.emulator={file}", "emulator.keep=0.6", f"run_dir={tmp_path / 'run'}"])


def test_a_file_takes_the_place_of_the_owners_images(tmp_path):
    file = tmp_path / "emulator.safetensors"
    built = simulate([*WORDS, f"owner.emulator={file}", f"run_dir={tmp_path / 'built'}"])
    read = simulate([*WORDS, f"owner.emulator={file}", f"run_dir={tmp_path / 'read'}"])
    for part in ("accuracy", "nll", "emulator", "gap"):
        assert built["final"][part] == read["final"][part]


def test_the_command_wants_both(capsys):
    assert main(["experiment=smoke"]) == 2
    assert "owner.emulator" in capsys.readouterr().err
    assert main(["experiment=smoke", "emulator=nothing"]) == 2


def test_an_emulators_file_is_a_backbone(tmp_path):
    file = tmp_path / "emulator.safetensors"
    assert main([*WORDS, f"owner.emulator={file}"]) == 0
    words = ["experiment=smoke", "backbone=emulator", f"backbone.checkpoint={file}"]
    assert simulate([*words, f"run_dir={tmp_path / 'run'}"])["backbone"] == "emulator"

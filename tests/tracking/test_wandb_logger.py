import io
import json
import struct
import time
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from fedbayes.errors import ConfigError, RunError
from fedbayes.report.run_page import publish
from fedbayes.storage import checkpoint
from fedbayes.storage.checkpoint import Checkpoint
from fedbayes.tracking.tracker import Tracker
from fedbayes.tracking.wandb_logger import WeightsAndBiases, choose_mode


def records(path):
    """All records of a W&B file, once its process, which writes after `finish` has come back, has ended the run."""
    end = time.monotonic() + 30
    while True:
        found = list(written(path))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < end, f"{path} has no end"
        time.sleep(0.02)


def written(path):
    """The records of a W&B file: a header of 7 bytes, then LevelDB's log of protocol buffers in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, pending = path.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little for a header: padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + length > len(data):  # half-written
            return
        pending += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def items(found):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in found}


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A home without credentials."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def test_a_run_without_a_key_is_a_file_with_the_history(no_key, tmp_path):
    run_dir = tmp_path / "0900-pfedbayespt"
    run_dir.mkdir()
    config = {"seed": 7, "optim": {"lr": 0.01}, "resume": None}
    # As build.py does it: the YAML's partial gets the run's directory and configuration.
    destination = partial(WeightsAndBiases, project="fedbayes", group=None, mode="auto")(run_dir, config)
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    for done in (1, 2):
        checkpoint.save(run_dir, Checkpoint(done, {"w": np.full(3, done, np.float32)}, {}))
    with Tracker(run_dir, 2, "a run", destinations=[destination], console=console) as tracker:
        for r in (1, 2):
            tracker.log({"round": r, "phase": "train", "loss": 2.0 / r, "kl": float("nan")})
            tracker.log({"round": r, "phase": "validation", "accuracy": 0.4 * r})
            rows = [{"round": r, "phase": "validation", "partition": i, "accuracy": 0.1 * i} for i in range(3)]
            tracker.log_clients(rows)
        tracker.log({"round": 1, "phase": "test", "nll": 0.5})  # the best round lies behind
        clients = [{"partition": 0, "images": 4, "accuracy": 0.75, "nll": None}]
        tracker.report({"method": "pfedbayespt", "final": {"round": 2, "nll": 0.6}, "per_client": clients}, publish)

    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(file))
    (started,) = [record.run for record in found if record.HasField("run")]
    assert started.display_name == run_dir.name
    assert started.project == "fedbayes"
    assert items(started.config.update)["optim"] == {"lr": 0.01}
    history = {}
    for record in found:
        if record.HasField("history"):
            row = items(record.history.item)
            history.setdefault(row["_step"], {}).update(row)
    assert history[1]["train/loss"] == 2.0
    assert history[2]["train/loss"] == 1.0
    assert history[2]["validation/accuracy"] == 0.8
    assert "train/kl" not in history[1]
    assert history[1]["validation/clients/accuracy/_type"] == "histogram"
    assert (history[2]["test/nll"], history[2]["test/round"]) == (0.5, 1)
    assert history[2]["clients/final/nrows"] == 1
    assert history[2]["clients/validation/nrows"] == 3
    assert history[2]["plots/train_loss/_type"] == "image-file"
    summary = {}
    for record in found:
        if record.HasField("summary"):
            summary.update(items(record.summary.update))
    assert any(name.startswith("method") for name in summary)
    sent = [
        record.artifact if record.HasField("artifact") else record.request.log_artifact.artifact for record in found
    ]
    files = {one.type: {entry.path for entry in one.manifest.contents} for one in sent if one.type}
    assert files["report"] == {"report.html", "report.md", "report.csv", "report.tex"}
    assert files["model"] == {path.name for path in (run_dir / "checkpoint/round-00002").iterdir()}
    assert {"server.safetensors", "state.json"} <= files["model"]
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]
    assert "W&B: offline; `wandb sync" in shown.getvalue()


def test_jobs_of_a_sweep_share_the_name_of_its_folder(no_key, tmp_path):
    sweep = tmp_path / "1200-sweep"
    for name in ("0-fedvpt-s0", "1-fedvpt-s1"):
        (sweep / name).mkdir(parents=True)
        (sweep / "sweep.jsonl").touch()
        job = WeightsAndBiases(sweep / name, {}, mode="offline")
        job.log({"round": 1, "phase": "train", "loss": 1.0})
        job.finish(sweep / name, None)
    files = sorted(sweep.glob("*/wandb/offline-run-*/run-*.wandb"))
    groups = [record.run.run_group for file in files for record in records(file) if record.HasField("run")]
    assert groups == ["1200-sweep"] * 2


def test_a_resumed_run_goes_on_as_the_same_run(no_key, tmp_path):
    for last in (2, 4):
        destination = WeightsAndBiases(tmp_path, {}, mode="offline")
        for server_round in (last - 1, last):
            destination.log({"round": server_round, "phase": "train", "loss": 1.0 / server_round})
        destination.finish(tmp_path, None)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    found = [record for file in files for record in records(file)]
    assert len({record.run.run_id for record in found if record.HasField("run")}) == 1
    steps = [items(record.history.item)["_step"] for record in found if record.HasField("history")]
    assert steps == [1, 2, 3, 4]


def test_after_a_kill_the_newest_folder_has_every_round(no_key, tmp_path):
    """The first process is killed before W&B has written round 2, which only the run's own file has."""
    (tmp_path / "wandb" / "offline-run-20260101_000000-abc123").mkdir(parents=True)
    for r in (1, 2):
        append(tmp_path / "metrics.jsonl", {"round": r, "phase": "train", "loss": 1.0 / r})
        append(tmp_path / "clients.jsonl", {"round": r, "phase": "validation", "partition": 0, "accuracy": 0.5})
    destination = WeightsAndBiases(tmp_path, {}, mode="offline")
    append(tmp_path / "metrics.jsonl", {"round": 3, "phase": "train", "loss": 0.25})  # as the tracker does it
    destination.log({"round": 3, "phase": "train", "loss": 0.25})
    where = destination.finish(tmp_path, None)
    (file,) = tmp_path.glob("wandb/offline-run-*-abc123/run-*.wandb")
    assert str(file.parent) in where
    rows = [items(record.history.item) for record in records(file) if record.HasField("history")]
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert "validation/clients/accuracy/_type" in rows[1]


def append(path, row):
    with path.open("a") as file:
        file.write(f"{json.dumps(row)}\n")


def test_an_empty_mode_is_none(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "")
    WeightsAndBiases(tmp_path, {}).finish(tmp_path, None)
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_a_run_that_breaks_off_is_marked_as_failed(no_key, tmp_path):
    destination = WeightsAndBiases(tmp_path, {}, mode="offline")
    with (
        pytest.raises(KeyboardInterrupt),
        Tracker(tmp_path, 1, "a run", [destination], Console(file=io.StringIO())),
    ):
        raise KeyboardInterrupt
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert [record.exit.exit_code for record in records(file) if record.HasField("exit")] == [1]


def test_auto_is_offline_without_a_key_and_online_with_one(tmp_path):
    assert choose_mode("auto", {}, tmp_path) == "offline"
    assert choose_mode("auto", {"WANDB_API_KEY": "k"}, tmp_path) == "online"
    assert choose_mode("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, tmp_path) == "disabled"
    assert choose_mode("offline", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, tmp_path) == "offline"


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_auto_finds_a_key_in_netrc(tmp_path, host):
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password secret\n")
    assert choose_mode("auto", {}, tmp_path) == "online"
    assert choose_mode("auto", {"NETRC": str(tmp_path / "none")}, tmp_path) == "offline"


def test_auto_finds_a_key_for_a_server_of_ones_own(tmp_path):
    (tmp_path / ".netrc").write_text("machine wandb.uni.example:8080\n  login user\n  password secret\n")
    assert choose_mode("auto", {}, tmp_path) == "offline"
    assert choose_mode("auto", {"WANDB_BASE_URL": "https://wandb.uni.example:8080"}, tmp_path) == "online"
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.uni.example:8080\n")
    assert choose_mode("auto", {}, tmp_path) == "online"


def test_broken_files_of_credentials_hold_no_key(tmp_path):
    (tmp_path / ".netrc").write_text("machine\n login")
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("not an ini file")
    assert choose_mode("auto", {}, tmp_path) == "offline"


def test_online_without_a_key_is_an_error_and_no_prompt(no_key, tmp_path):
    with pytest.raises(RunError, match="set WANDB_API_KEY"):
        WeightsAndBiases(tmp_path, {}, mode="online")
    assert not (tmp_path / "wandb").exists()


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mode=onlin is.*auto, online"):
        choose_mode("onlin", {}, tmp_path)
    with pytest.raises(ConfigError, match="WANDB_MODE='nonsense'"):
        choose_mode("auto", {"WANDB_MODE": "nonsense"}, tmp_path)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_server_out_of_reach_leaves_auto_offline_and_online_an_error(no_key, tmp_path, monkeypatch, caplog, mode):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("fedbayes.tracking.wandb_logger._SECONDS_TO_CONNECT", 1.0)
    if mode == "online":
        with pytest.raises(RunError, match="did not start in mode online"):
            WeightsAndBiases(tmp_path, {}, mode=mode)
        return
    destination = WeightsAndBiases(tmp_path, {}, mode=mode)
    assert "kept offline" in caplog.text
    assert "wandb sync" in destination.finish(tmp_path, None)

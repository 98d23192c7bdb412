"""End to end, as from the command line: a run writes every file, and equal commands give equal numbers."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

import fedbayes
from fedbayes.config.compose import CONF
from fedbayes.data.sources.styled_digits import styled_digits
from fedbayes.errors import RunError
from fedbayes.run import simulate
from fedbayes.server.rounds import RoundLoop
from fedbayes.server.validation import PartitionSizes
from fedbayes.storage.checkpoint import latest
from fedbayes.storage.run_dir import read_rows

KINDS = ("pfedbayespt", "pfedbayespt_lora", "fedper", "pfedpg", "fedncm", "local_head", "centralised", "pfedbayes")
"""Methods that differ in what they send and keep; tests/test_resume.py runs all of them."""
SMALL = ["experiment=smoke"]
FILES = {
    "config.yaml", "metrics.jsonl", "clients.jsonl", "summary.json", "partition.json", "report.html", "run.log",
    "checkpoint", "plots",
}  # fmt: skip
KEYS = {
    "method", "data", "partition", "backbone", "seed", "rounds", "clients", "git", "versions", "threads",
    "final", "best", "per_client", "per_domain", "bytes", "seconds", "images_per_second", "peak_memory_mb",
}  # fmt: skip
RESULT = {
    "accuracy", "nll", "ece", "ece_floor", "adaptive_ece", "adaptive_ece_floor", "brier", "aurc", "entropy",
    "expected_entropy", "prompt_uncertainty", "effective_components", "mixing_ratio", "temperature", "ood",
}  # fmt: skip


def refuse(word):
    raise AssertionError(f"{word} is not JSON")


def read(path):
    return json.loads(path.read_text(), parse_constant=refuse)


def numbers(run_dir, name):
    """The rows of a file without what depends on the clock."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in lines(run_dir / name)]


def lines(path):
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    returned = simulate([*SMALL, f"method={request.param}", f"run_dir={run_dir}"])
    return request.param, run_dir, returned


def test_a_run_writes_every_file_with_its_keys(finished):
    method, run_dir, returned = finished
    assert {path.name for path in run_dir.iterdir()} >= FILES
    assert list((run_dir / "plots").glob("*.png"))
    summary = read(run_dir / "summary.json")
    assert summary.keys() >= KEYS
    assert returned["run_dir"] == str(run_dir)
    assert (summary["method"], summary["rounds"], summary["clients"]) == (method, 2, 3)
    for which in ("final", "best"):
        result = summary[which]
        assert result.keys() >= RESULT
        assert result["accuracy"].keys() == {"mean", "weighted", "std", "worst_decile"}
        assert 0 <= result["accuracy"]["worst_decile"] <= result["accuracy"]["mean"] <= 1
        assert 0 < result["nll"] < math.inf
        assert all(0 <= result[name] <= 1 for name in ("ece", "adaptive_ece", "aurc"))
        assert 0 <= result["brier"] <= 2
        split = result["expected_entropy"] + result["prompt_uncertainty"]
        assert result["entropy"] == pytest.approx(split, abs=1e-6)
        assert result["temperature"] is result["ood"] is None
    assert summary["seconds"].keys() == {"total", "setup", "train", "evaluate", "aggregate"}
    assert summary["bytes"].keys() == {"up", "down"}
    for row in summary["per_client"]:
        assert row.keys() >= {"partition", "images", "accuracy", "nll", "ece", "ece_floor"}
    assert [row["partition"] for row in summary["per_client"]] == [0, 1, 2]


def test_the_files_agree_with_each_other(finished):
    _, run_dir, _ = finished
    summary = read(run_dir / "summary.json")
    rows = lines(run_dir / "metrics.jsonl")
    assert [row["round"] for row in rows if row["phase"] == "train"] == [1, 2]
    assert [row["round"] for row in rows if row["phase"] == "validation"] == [1, 2]
    last = next(row for row in rows if row["phase"] == "test" and row["round"] == 2)
    assert last["accuracy"] == summary["final"]["accuracy"]["mean"]
    assert last["nll"] == summary["final"]["nll"]
    best = max((row for row in rows if row["phase"] == "validation"), key=lambda row: (row["accuracy"], -row["round"]))
    assert summary["best"]["round"] == best["round"]
    trained = {row["round"]: row for row in rows if row["phase"] == "train"}
    for which in ("best", "final"):
        result = summary[which]
        assert result["effective_components"] == trained[result["round"]].get("effective_components")
    partition = read(run_dir / "partition.json")
    tested = [client["test"] for client in partition["clients"]]
    assert [row["images"] for row in summary["per_client"]] == tested
    assert sum(row["images"] for row in summary["per_domain"].values()) == sum(tested)
    assert summary["bytes"]["up"] == sum(row["bytes_up"] for row in rows if row["phase"] == "train")
    clients = [row for row in lines(run_dir / "clients.jsonl") if (row["round"], row["phase"]) == (2, "test")]
    assert [row["accuracy"] for row in clients] == [row["accuracy"] for row in summary["per_client"]]
    resolved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert resolved["rounds"] == 2
    assert "${" not in (run_dir / "config.yaml").read_text()


def test_the_checkpoint_is_what_was_learnt(finished):
    _, run_dir, _ = finished
    stored = latest(run_dir)
    assert stored.server_round == 2
    assert stored.server or stored.personal
    assert all(np.isfinite(array).all() for array in stored.server.values())


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("shifted") / "run"
    simulate([*SMALL, "evaluate.held_out=[noise]", "evaluate.temperature=true", f"run_dir={run_dir}"])
    return run_dir


def test_held_out_domains_and_temperature_reach_every_file(shifted):
    summary = read(shifted / "summary.json")
    for which in ("final", "best"):
        result = summary[which]
        assert 0.05 <= result["temperature"] <= 100
        assert 0 < result["nll_temperature"] < math.inf
        assert 0 <= result["ece_temperature"] <= 1
        ood = result["ood"]
        assert ood.keys() == {"domains", "images", "accuracy", "nll", "auroc", "fpr95"}
        assert ood["domains"] == ["noise"]
        assert 0 <= ood["accuracy"] <= 1
        for measure in ("auroc", "fpr95"):
            assert ood[measure].keys() == {"prompt_uncertainty", "entropy", "confidence"}
            assert all(0 <= value <= 1 for value in ood[measure].values())
    assert summary["per_domain"].keys() == {"ink", "texture", "rotated", "outline"}
    rows = lines(shifted / "metrics.jsonl")
    assert [row["phase"] for row in rows if row["round"] == 2] == ["train", "validation", "test", "held_out"]
    assert rows[-1]["ood_auroc_entropy"] == summary["final"]["ood"]["auroc"]["entropy"]
    assert rows[-2]["temperature"] == summary["final"]["temperature"]
    assert "held-out domains: noise" in (shifted / "report.html").read_text()
    assert fedbayes.load(shifted).predict(styled_digits(16).images[:3]).probabilities.shape == (3, 10)


def test_no_client_has_a_held_out_image(shifted):
    partition = read(shifted / "partition.json")
    images = sum(client["held_out"] for client in partition["clients"])
    assert images == read(shifted / "summary.json")["final"]["ood"]["images"]
    foreign = {index for client in partition["clients"] for index in client["indices"]["held_out"]}
    assert len(foreign) == images
    for client in partition["clients"]:
        seen = {index for split in ("train", "validation", "test") for index in client["indices"][split]}
        assert not seen & foreign
        assert max(seen) < min(foreign)
        assert client["domains"][partition["domains"].index("noise")] == 0


def test_equal_commands_give_equal_numbers_to_the_last_bit(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    for run_dir in (first, other):
        simulate([*SMALL, "participation=0.7", "simulation.cohort=1", f"run_dir={run_dir}"])
    for name in ("metrics.jsonl", "clients.jsonl"):
        assert numbers(first, name) == numbers(other, name)
    assert read(first / "summary.json")["final"] == read(other / "summary.json")["final"]
    assert read(first / "partition.json") == read(other / "partition.json")
    for name, array in latest(first).server.items():
        assert latest(other).server[name].tobytes() == array.tobytes(), name


def test_a_strategy_of_flowers_from_the_command_line(tmp_path):
    chosen = "method.strategy._target_=flwr.serverapp.strategy.FedAdam"
    summary = simulate([*SMALL, "method=fedvpt", chosen, f"run_dir={tmp_path / 'run'}"])
    plain = simulate([*SMALL, "method=fedvpt", f"run_dir={tmp_path / 'plain'}"])
    assert summary["final"]["nll"] != plain["final"]["nll"]
    assert "FedAdam" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_dropped_update_stands_in_the_log(tmp_path):
    # Steps of this size overflow float32, so no client sends anything finite.
    overrides = ["optim.name=sgd", "optim.clip=null", "optim.head_lr=1e38", "optim.lr=1e38"]
    with pytest.raises(RunError, match=r"round 1 failed .* is not finite"):
        simulate([*SMALL, "rounds=1", *overrides, f"run_dir={tmp_path / 'run'}"])
    text = (tmp_path / "run" / "run.log").read_text()
    assert "round 1: training reply of clients 0, 1, 2 rejected: " in text
    assert read_rows(tmp_path / "run" / "metrics.jsonl") == []
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_real_command_sweeps_and_one_failing_job_stops_no_other(tmp_path):
    command = [sys.executable, "-m", "fedbayes.run", "-m", *SMALL, "rounds=1", "clients=5000,2,3"]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "method=fedavg_head", f"hydra.sweep.dir={tmp_path}/sweep"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    first, *_, count, last = done.stderr.splitlines()
    for line in (first, last.strip()):
        assert line.startswith("job 0 (")
        assert "clients=5000,method=fedavg_head): PartitionError" in line
    assert count.startswith("1 failed; `fedbayes resume=")
    assert {path.parent.name for path in tmp_path.rglob("summary.json")} == {"1-fedavg_head-s0", "2-fedavg_head-s0"}
    assert not (tmp_path / "sweep" / "0-fedavg_head-s0").exists()


def test_a_run_knows_the_numbers_of_its_clients_images(tmp_path, monkeypatch):
    sizes, play = [], RoundLoop.run

    def spy(self, *args, **more):
        sizes.extend(value for value in (*args, *more.values()) if isinstance(value, PartitionSizes))
        return play(self, *args, **more)

    monkeypatch.setattr(RoundLoop, "run", spy)
    simulate([*SMALL, "method=fedavg_head", f"run_dir={tmp_path}/run"])
    clients = read(tmp_path / "run" / "partition.json")["clients"]
    for split in ("train", "test"):
        assert list(sizes[0].images[split]) == [client[split] for client in clients]

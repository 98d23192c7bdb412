"""What `dry_run=true` says is what the run then costs, and it leaves nothing behind."""

import pytest

from fedbayes.errors import ConfigError, RunError
from fedbayes.run import simulate

SMALL = ["experiment=smoke", "rounds=3"]


@pytest.mark.parametrize(
    ("method", "participation"),
    # pFedBayes sends more to clients that have trained before
    [
        ("pfedbayespt", 0.7),
        ("fedavg_head", 0.7),
        ("ditto", 0.7),
        ("pfedpg", 1),
        ("pfedbayes_product", 1),
        ("fedncm", 1),
    ],
)
def test_bytes_are_those_of_the_run_to_the_last_one(method, participation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=smoke", f"method={method}", f"participation={participation}", "rounds=3"]
    said = simulate([*words, "dry_run=true"])
    assert list(tmp_path.iterdir()) == []
    summary = simulate([*words, f"run_dir={tmp_path / 'run'}"])
    assert said["rounds"] == summary["rounds"]
    assert said["bytes_up"] * said["rounds"] == summary["bytes"]["up"]
    assert said["bytes_down"] + said["bytes_down_later"] * (said["rounds"] - 1) == summary["bytes"]["down"]


def test_the_numbers_of_a_head_are_its_weights_and_biases(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = simulate([*SMALL, "method=fedavg_head", "dry_run=true"])
    assert said["trained"] == said["sent"] == 96 * 10 + 10
    assert said["memory_mb"] > 100
    assert 0 < said["minutes"] < 10
    text = capsys.readouterr().out
    assert "970 trained by a client, 970 of them sent" in text
    assert "left out" in text


@pytest.mark.parametrize("method", ["pfedbayespt", "centralised"])
def test_a_run_with_hostile_clients_is_estimated_too(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert simulate([*SMALL, f"method={method}", "attack=backdoor", "dry_run=true"])["minutes"] > 0


def test_time_grows_with_the_rounds_and_the_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short, long = (simulate([*SMALL, "dry_run=true", f"rounds={rounds}"]) for rounds in (2, 200))
    assert long["train"] > 10 * short["train"]
    assert long["bytes_up"] == short["bytes_up"]


def test_steps_before_an_evaluation_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    none, some = (
        simulate([*SMALL, "method=fedbabu", "dry_run=true", f"optim.finetune_steps={steps}"]) for steps in (0, 20)
    )
    assert some["evaluate"] > 1.5 * none["evaluate"]


def test_errors_are_those_of_the_run():
    with pytest.raises(ConfigError, match="participation=2 is out of range"):
        simulate([*SMALL, "dry_run=true", "participation=2"])
    with pytest.raises(ConfigError, match=r"optim\.local_epochs=1 cannot be halved"):
        simulate([*SMALL, "dry_run=true", "method=ditto", "optim.local_epochs=1"])
    with pytest.raises(ConfigError, match="cannot be given beside resume"):
        simulate(["dry_run=true", "resume=somewhere"])
    with pytest.raises(RunError, match="no client could train or be evaluated"):
        simulate([*SMALL, "dry_run=true", "optim.name=sgd", "optim.clip=null", "optim.lr=1e38"])


@pytest.mark.slow
def test_minutes_are_within_a_factor_of_three(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["rounds=4", "simulation.threads=1"]
    said = simulate([*words, "dry_run=true"])
    seconds = simulate([*words, "run_dir=run"])["seconds"]["total"]
    assert seconds / 3 < said["minutes"] * 60 < seconds * 3

"""A run that broke off goes on as if it never had: for every method, engine and kind of end."""

import fcntl
import json
import shutil

import pytest
import yaml
from breaking import broken, result

from fedbayes import simulate
from fedbayes.config.compose import CONF
from fedbayes.errors import ConfigError, RunError
from fedbayes.run import resume
from fedbayes.storage import checkpoint
from fedbayes.tracking import provenance

pytestmark = pytest.mark.usefixtures("no_pictures")

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
SMALL = ["experiment=smoke", "rounds=3", "simulation.threads=1"]


def check(overrides, tmp_path, monkeypatch, after=2):
    """Compare a run that broke off after a round and went on with one that did not."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*overrides, f"run_dir={whole}"])
    broken([*overrides, f"run_dir={parts}"], monkeypatch, after)
    assert not (parts / "summary.json").exists()
    resume(parts)
    assert result(parts) == result(whole)
    return parts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the run `whole`, and `parts`, the same that broke off after round 2."""
    folder = tmp_path_factory.mktemp("runs")
    simulate([*SMALL, f"run_dir={folder / 'whole'}"])
    with pytest.MonkeyPatch.context() as monkeypatch:
        broken([*SMALL, f"run_dir={folder / 'parts'}"], monkeypatch, 2)
    return folder


@pytest.fixture
def whole(runs, tmp_path):
    return shutil.copytree(runs / "whole", tmp_path / "whole")


@pytest.fixture
def parts(runs, tmp_path):
    return shutil.copytree(runs / "parts", tmp_path / "parts")


OUTSIDE = """
from dataclasses import replace
from clients.wrapping import AbstractWrappingClient

class Remembers(AbstractWrappingClient):
    def train(self, requests):
        updates = self.inner.train([replace(request, personal={}) for request in requests])
        return [
            replace(update, personal={"memory": 0.5 * (request.personal.get("memory", 0) + update.arrays["head.bias"])})
            for request, update in zip(requests, updates)
        ]

    def adapt(self, parameters, requests):
        return [
            {name: array for name, array in arrays.items() if name != "memory"}
            | {"head.bias": arrays["head.bias"] + arrays.get("memory", 0)}
            for arrays in parameters
        ]
"""


def test_personal_parameters_of_a_client_from_outside_the_repository_are_collected(tmp_path, monkeypatch):
    (tmp_path / "remembering.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDBAYES_TRUST", "remembering")
    overrides = [*SMALL, "method=fedavg_head", "method.client._target_=remembering.Remembers"]
    run_dir = check(overrides, tmp_path, monkeypatch)
    assert sorted(checkpoint.latest(run_dir).personal) == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_exactly(method, tmp_path, monkeypatch):
    shorter = ["optim.finetune_steps=3"] if method == "fedbabu" else []
    check([*SMALL, "rounds=2", f"method={method}", *shorter], tmp_path, monkeypatch, after=1)


@pytest.mark.parametrize(
    "more",
    [
        ["server.name=momentum"],
        ["server.name=adam", "server.lr=0.01"],
        ["server.name=yogi", "method=pep_fedpt"],
        ["method.strategy._target_=flwr.serverapp.strategy.FedAvgM", "+method.strategy.server_momentum=0.9"],
        ["method.strategy._target_=flwr.serverapp.strategy.FedAdam"],
        ["server.name=momentum", "method.strategy._target_=flwr.serverapp.strategy.FedAdam"],
        ["privacy.noise=0.1", "server.name=adam"],
        ["method=fedper", "clients=6", "participation=0.34"],
        ["method=ditto", "evaluate.new_clients=1", "evaluate.adapt_steps=[0,1]", "evaluate.every=2"],
        ["evaluate.temperature=true", "evaluate.held_out=[noise]"],
        ["faults.drop=0.3", "faults.nan=0.2", "simulation.retries=9", "method=fedper"],
        ["evaluate.best_by=nll", "inference.beta_warmup=3"],
        ["attack=backdoor", "attack.fraction=0.4"],
        ["attack=jammer", "attack.groups=2", "attack.horizon=2", "sampling=security", "clients=4", "participation=0.5"],
        ["attack=jammer", "attack.groups=2", "attack.horizon=2", "sampling=expected", "simulation.retries=9"],
        ["head.prior=estimated", "partition=label_dirichlet", "evaluate.label_shift=uniform"],
        ["emulator=gradot", "emulator.loss=features", "owner.images=20", "method=ditto"],
    ],
    ids=" ".join,
)
def test_what_else_a_run_remembers_goes_on_exactly(more, tmp_path, monkeypatch):
    check([*SMALL, *more], tmp_path, monkeypatch)


def test_a_run_that_broke_off_after_its_last_checkpoint_gets_its_summary(tmp_path, monkeypatch):
    check([*SMALL, "evaluate.new_clients=1"], tmp_path, monkeypatch, after=3)


def test_checkpoints_that_come_seldom_cost_rounds_and_no_result(tmp_path, monkeypatch):
    run_dir = check([*SMALL, "rounds=5", "checkpoint.every=2"], tmp_path, monkeypatch, after=4)
    assert sorted(path.name for path in (run_dir / "checkpoint").iterdir()) == ["round-00004", "round-00005"]


def append(text):
    return lambda content: content + text.encode()


def without_round_2(content):
    return b"".join(line for line in content.splitlines(keepends=True) if b'"round": 2' not in line)


LATER = '{"round": 3, "phase": "train", "loss": 1.0}\n{"round": 3, "pha'
FOREIGN = "\n".join(
    ['{"round": "x", "phase": "train"}', '{"round": null}', '{"round": true}', "[1]", "[" * 100_000, ""]
)


@pytest.mark.parametrize(
    ("pattern", "change", "after"),
    [
        ("*.jsonl", append(LATER), 2),
        ("*.jsonl", append(FOREIGN), 2),
        ("metrics.jsonl", without_round_2, 1),
        ("clients.jsonl", without_round_2, 1),
        ("checkpoint/round-00002/server.safetensors", lambda content: content[:-1] + b"\x7f", 1),
        ("checkpoint/*/state.json", lambda content: b"{", 0),
    ],
    ids=["later rows, half a line", "rows of others", "no metrics", "no clients", "damaged newest", "all damaged"],
)
def test_what_changed_in_the_directory_costs_rounds_and_no_result(parts, runs, pattern, change, after):
    for file in parts.glob(pattern):
        file.write_bytes(change(file.read_bytes()))
    resume(parts)
    assert result(parts) == result(runs / "whole")
    log = (parts / "run.log").read_text()
    assert f"resumed after round {after};" in log
    assert after == 2 or "round-00002" in log, "why the newest is not used"


def test_a_first_round_that_fails_leaves_a_directory_to_go_on_with(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with pytest.raises(RunError, match="round 1 failed in 3 attempts"):
        simulate([*SMALL, "faults.drop=1.0", f"run_dir={run_dir}"])
    assert "no reply in time (simulated)" in (run_dir / "run.log").read_text()
    monkeypatch.setattr("fedbayes.simulation.faults.Faults.any", False)
    resume(run_dir)
    assert (run_dir / "summary.json").exists()


def test_a_checkpoint_that_lies_in_a_new_runs_directory_is_not_its_own(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(RunError, match=r"\(checkpoint\)"):
        simulate([*SMALL, f"run_dir={tmp_path}"])


def test_a_run_that_was_ended_before_its_report_gets_one_and_is_left_as_it_is_after(whole, capsys):
    (whole / "report.html").unlink()
    resume(whole)
    assert (whole / "report.html").exists()
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert simulate([f"resume={whole}"])["rounds"] == 3
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert f"{whole} has finished: 3 rounds" in capsys.readouterr().out


def test_a_summary_of_another_form_is_named_and_made_again_once_it_is_gone(whole, runs):
    for damage in ({"a": 1}, {"final": None, "a": 1}, {"final": "x"}, {"final": {"accuracy": 3}}):
        (whole / "summary.json").write_text(json.dumps(damage))
        with pytest.raises(RunError, match=r"summary\.json is no summary"):
            resume(whole)
    (whole / "summary.json").unlink()
    resume(whole)
    assert result(whole) == result(runs / "whole")


def test_other_values_beside_resume_and_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"rounds=9.*resume"):
        simulate([f"resume={tmp_path}", "rounds=9"])
    with pytest.raises(RunError, match=r"config\.yaml"):
        resume(tmp_path)


def test_a_run_that_another_process_is_at_work_on_is_refused(parts):
    with (parts / "run.log").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another run"):
            resume(parts)


def test_a_changed_version_is_logged_and_the_configuration_has_no_resume(parts, monkeypatch):
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9.9"})
    resume(parts)
    assert "another torch (9.9)" in (parts / "run.log").read_text()
    assert yaml.safe_load((parts / "config.yaml").read_text())["resume"] is None

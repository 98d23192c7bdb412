"""A run that broke off goes on as if it never had: for every method, engine and kind of end."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import yaml
from breaking import broken

from fedbayes import simulate
from fedbayes.config.compose import CONF
from fedbayes.errors import ConfigError, RunError
from fedbayes.run import resume
from fedbayes.storage import checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
SMALL = ["experiment=smoke", "rounds=3", "simulation.threads=1"]
CLOCK = {"seconds", "images_per_second", "peak_memory_mb"}


def result(run_dir):
    """Everything of a run that must not depend on breaks."""
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = {}
    for name in ("metrics.jsonl", "clients.jsonl"):
        found = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
        rows[name] = [{k: v for k, v in row.items() if "second" not in k} for row in found]
    predictions = (run_dir / "predictions.safetensors").read_bytes()
    stored = checkpoint.latest(run_dir)
    arrays = {
        **stored.server,
        **{f"{p}/{name}": array for p, one in stored.personal.items() for name, array in one.items()},
        **{f"strategy/{name}": array for name, array in stored.strategy.items()},
    }
    bits = {name: array.tobytes() for name, array in sorted(arrays.items())}
    return {k: v for k, v in summary.items() if k not in CLOCK}, rows, predictions, bits


def check(overrides, tmp_path, monkeypatch, after=2):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*overrides, f"run_dir={whole}"])
    broken([*overrides, f"run_dir={parts}"], monkeypatch, after)
    assert not (parts / "summary.json").exists()
    resume(parts)
    assert result(parts) == result(whole)
    return parts


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
            {name: array for name, array in own.items() if name != "memory"}
            | {"head.bias": own["head.bias"] + own.get("memory", 0)}
            for own in parameters
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
    check([*SMALL, f"method={method}", *shorter], tmp_path, monkeypatch)


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
    ],
    ids=" ".join,
)
def test_what_else_a_run_remembers_goes_on_exactly(more, tmp_path, monkeypatch):
    check([*SMALL, *more], tmp_path, monkeypatch)


def test_a_run_that_broke_off_after_its_last_checkpoint_gets_its_summary(tmp_path, monkeypatch):
    check([*SMALL, "evaluate.new_clients=1"], tmp_path, monkeypatch, after=3)


def test_checkpoints_that_come_seldom_cost_rounds_and_no_result(tmp_path, monkeypatch):
    parts = check([*SMALL, "rounds=5", "checkpoint.every=2"], tmp_path, monkeypatch, after=4)
    assert sorted(path.name for path in (parts / "checkpoint").iterdir()) == ["round-00004", "round-00005"]


def test_rows_that_came_after_the_checkpoint_and_half_a_line_are_dropped(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*SMALL, f"run_dir={whole}"])
    broken([*SMALL, f"run_dir={parts}"], monkeypatch, 2)
    for name in ("metrics.jsonl", "clients.jsonl"):
        with (parts / name).open("a") as file:
            file.write('{"round": 3, "phase": "train", "loss": 1.0}\n{"round": 3, "pha')
    resume(parts)
    assert result(parts) == result(whole)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*SMALL, f"run_dir={whole}"])
    broken([*SMALL, f"run_dir={parts}"], monkeypatch, 2)
    file = parts / "checkpoint" / "round-00002" / "server.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    resume(parts)
    assert result(parts) == result(whole)
    log = (parts / "run.log").read_text()
    assert "round-00002 cannot be read (server.safetensors was changed)" in log
    assert "resumed after round 1" in log


@pytest.mark.parametrize("name", ["metrics.jsonl", "clients.jsonl"])
def test_rounds_that_the_files_lack_are_done_again(name, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*SMALL, f"run_dir={whole}"])
    broken([*SMALL, f"run_dir={parts}"], monkeypatch, 2)
    file = parts / name
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines() if '"round": 2' not in line))
    resume(parts)
    assert result(parts) == result(whole)
    log = (parts / "run.log").read_text()
    assert "round-00002 is not used: metrics.jsonl or clients.jsonl lacks rounds after 1" in log
    assert "resumed after round 1" in log


def test_rows_that_are_none_of_ours_are_passed_over(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*SMALL, f"run_dir={whole}"])
    broken([*SMALL, f"run_dir={parts}"], monkeypatch, 2)
    for name in ("metrics.jsonl", "clients.jsonl"):
        with (parts / name).open("a") as file:
            rows = ['{"round": "x", "phase": "train"}', '{"round": null}', '{"round": true}', "[1]", "[" * 100_000]
            file.writelines(f"{row}\n" for row in rows)
    resume(parts)
    assert result(parts) == result(whole)


def test_without_any_whole_checkpoint_it_starts_again_from_round_0(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    simulate([*SMALL, f"run_dir={whole}"])
    broken([*SMALL, f"run_dir={parts}"], monkeypatch, 2)
    for file in parts.glob("checkpoint/*/state.json"):
        file.write_text("{")
    resume(parts)
    assert result(parts) == result(whole)
    assert "resumed after round 0" in (parts / "run.log").read_text()


def test_a_first_round_that_fails_leaves_a_directory_to_go_on_with(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with pytest.raises(RunError, match="round 1 failed in 3 attempts"):
        simulate([*SMALL, "faults.drop=1.0", f"run_dir={run_dir}"])
    assert "no reply in time (simulated)" in (run_dir / "run.log").read_text()
    monkeypatch.setattr("fedbayes.simulation.faults.Faults.any", False)
    resume(run_dir)
    assert (run_dir / "summary.json").exists()


def test_a_checkpoint_that_lies_in_a_new_runs_directory_is_not_its_own(tmp_path):
    simulate([*SMALL, "seed=5", f"run_dir={tmp_path / 'other'}"])
    (tmp_path / "run").mkdir()
    (tmp_path / "other" / "checkpoint").rename(tmp_path / "run" / "checkpoint")
    with pytest.raises(RunError, match=r"already holds a run \(checkpoint\)"):
        simulate([*SMALL, f"run_dir={tmp_path / 'run'}"])


def test_a_run_that_was_ended_before_its_report_gets_one(tmp_path):
    simulate([*SMALL, f"run_dir={tmp_path / 'run'}"])
    (tmp_path / "run" / "report.html").unlink()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    run_dir = tmp_path / "run"
    simulate([*SMALL, "rounds=1", f"run_dir={run_dir}"])
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    again = simulate([f"resume={run_dir}"])
    assert again["rounds"] == 1
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    assert f"{run_dir} has finished: 1 rounds" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [{"a": 1}, {"final": None, "a": 1}, {"final": "x"}, {"final": {"accuracy": 3}}])
def test_a_summary_that_is_none_is_said_and_made_again_once_it_is_gone(damage, tmp_path):
    run_dir = tmp_path / "run"
    simulate([*SMALL, f"run_dir={run_dir}"])
    before = result(run_dir)
    (run_dir / "summary.json").write_text(json.dumps(damage))
    with pytest.raises(RunError, match="is no summary"):
        resume(run_dir)
    (run_dir / "summary.json").unlink()
    resume(run_dir)
    assert result(run_dir) == before


def test_other_values_beside_resume_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"rounds=9 cannot be given beside resume"):
        simulate([f"resume={tmp_path}", "rounds=9"])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"holds no run \(no config\.yaml\)"):
        resume(tmp_path)


def test_a_run_that_another_process_is_at_work_on_is_refused(tmp_path, monkeypatch):
    import fcntl

    broken([*SMALL, f"run_dir={tmp_path / 'run'}"], monkeypatch, 1)
    with (tmp_path / "run" / "run.log").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is in use by another run"):
            resume(tmp_path / "run")


def test_a_changed_version_is_said(tmp_path, monkeypatch):
    from fedbayes.tracking import provenance

    broken([*SMALL, f"run_dir={tmp_path / 'run'}"], monkeypatch, 1)
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9.9"})
    resume(tmp_path / "run")
    assert "another torch (9.9) than it was begun with (" in (tmp_path / "run" / "run.log").read_text()


def _work(overrides, run_dir):
    """In a process of its own: begin, or go on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if (run_dir / "config.yaml").exists():
        resume(run_dir)
    else:
        simulate([*overrides, f"run_dir={run_dir}"])


def killed_at_random(overrides, tmp_path, kills, seed):
    """Kill until so many kills have hit, over as many runs as that takes; compare every result.

    Moments are random, but that of every fourth is when a checkpoint is being written.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["fedbayes.run", "fedbayes.build", "fedbayes.report.run_page", "timm", "sklearn.datasets"]
    )
    whole = tmp_path / "whole"
    for folder in (tmp_path / "warm", whole):  # the first also waits for imports
        started = time.monotonic()
        process = context.Process(target=_work, args=(overrides, folder))
        process.start()
        process.join()
        assert process.exitcode == 0
    typical = time.monotonic() - started
    rng, hits, number, phases = random.Random(seed), 0, 0, set()
    while hits < kills:
        number, expected = number + 1, ""
        run_dir = tmp_path / f"run{number}"
        while not (run_dir / "summary.json").exists():
            process = context.Process(target=_work, args=(overrides, run_dir))
            process.start()
            if hits < kills and hits % 4 == 3:  # wait for a checkpoint that is being written
                while process.exitcode is None and not list(run_dir.glob("checkpoint/.round-*")):
                    pass
            else:
                process.join(rng.uniform(0, typical) if hits < kills else None)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                hits += 1
                stored = sorted(path.name for path in run_dir.glob("checkpoint/round-*"))
                during = list(run_dir.glob("checkpoint/.round-*"))
                phases.add("during one" if during else "after" if stored else "before the first")
                begun = (run_dir / "config.yaml").exists()
                expected = f"resumed after round {int(stored[-1][6:]) if stored else 0};" if begun else ""
            else:
                assert process.exitcode == 0
                assert expected in (run_dir / "run.log").read_text()
        # A summary is written before pictures and report: a kill in between leaves the result.
        assert result(run_dir) == result(whole)
    return phases


def test_killed_at_random_moments(tmp_path):
    killed_at_random([*SMALL, "method=ditto"], tmp_path, kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["pfedbayespt", "ditto"])
def test_killed_at_twenty_random_moments(method, tmp_path):
    overrides = [*SMALL, f"method={method}", "rounds=8", "server.name=adam"]
    phases = killed_at_random(overrides, tmp_path, kills=20, seed=1)
    assert phases == {"before the first", "during one", "after"}


def test_config_is_written_resolved_and_without_resume(tmp_path):
    simulate([*SMALL, "rounds=1", f"run_dir={tmp_path / 'run'}"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["resume"] is None

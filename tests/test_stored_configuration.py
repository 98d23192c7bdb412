"""What is read back from a directory may come from anybody: it names nothing that is not trusted, and runs no code."""

import os
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf
from processes import COMPILED

from fedbayes import load, simulate, stored_configuration
from fedbayes.errors import RunError
from fedbayes.run import resume
from fedbayes.stored_configuration import read, sweep_again


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    simulate(["experiment=smoke", "rounds=1", f"run_dir={run_dir}"])
    return run_dir


@pytest.fixture
def edit(finished, tmp_path):
    """Write a copy of the run's configuration with one value changed; give the new run directory."""

    def change(place, value):
        cfg = OmegaConf.load(finished / "config.yaml")
        OmegaConf.update(cfg, place, value, force_add=True)
        OmegaConf.save(cfg, tmp_path / "config.yaml")
        (tmp_path / "summary.json").write_text("{}")
        return tmp_path

    return change


def test_what_a_run_wrote_is_read(finished):
    assert read(finished).names.method == "pfedbayespt"


@pytest.mark.parametrize(
    ("place", "target", "said"),
    [
        ("method.client._target_", "os.system", "names os.system, which is not a part of"),
        ("method.client._target_", "subprocess.Popen", "names subprocess.Popen"),
        ("method.strategy._target_", "builtins.eval", "names builtins.eval"),
        ("data._target_", "torch.load", "names torch.load"),
        ("data._target_", "numpy.load", "names numpy.load"),
        ("backbone._target_", "pickle.load", "names pickle.load"),
        ("optim._target_", "fedbayes.run.os.system", "which os defines|which posix defines"),
        ("optim._target_", "fedbayes.run.sys.exit", "which sys defines"),
        ("optim._target_", "clients.base.torch.load", "which torch.serialization defines"),
        ("optim._target_", "fedbayes.run.sys.modules", "which nobody defines"),
        ("optim._target_", "fedbayesian.thing", "names fedbayesian.thing, which is not a part of"),
        ("optim._target_", "fedbayes.nothing.here", "cannot be loaded"),
        ("optim._target_", 3, "names 3"),
        ("tracking.destinations", [{"_target_": "os.system", "command": "true"}], "names os.system"),
        ("evaluate.every", {"deep": [{"_target_": "os.system"}]}, "names os.system"),
    ],
)
def test_targets_that_are_not_trusted_are_refused_before_anything_is_called(edit, place, target, said):
    run_dir = edit(place, target)
    for command in (read, load):
        with pytest.raises(RunError, match=said):
            command(run_dir)
    (run_dir / "summary.json").unlink()
    with pytest.raises(RunError, match=said):
        resume(run_dir)


def test_modules_that_the_user_lists_are_trusted(edit, tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text("def make():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = edit("method.client._target_", "my_methods.make")
    with pytest.raises(RunError, match="list its module in the environment variable FEDBAYES_TRUST"):
        read(run_dir)
    monkeypatch.setenv("FEDBAYES_TRUST", "other, my_methods")
    assert read(run_dir).method.client._target_ == "my_methods.make"


def test_references_are_refused_so_that_no_secret_is_looked_up(edit, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    with pytest.raises(RunError, match="holds a reference"):
        read(edit("data.root", "${oc.env:SECRET}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no mapping|lacks"),
        ("- 1\n- 2\n", "holds no mapping"),
        ("a: [", "cannot be read"),
        ("a: !!python/object/apply:os.system ['true']\n", "cannot be read"),
        ("\0\1\2", "cannot be read"),
        ("seed: 0\n", "lacks rounds, clients, participation: another version of fedbayes wrote it"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=said):
        read(tmp_path)


def test_a_configuration_of_an_older_version_says_what_it_lacks(finished, tmp_path):
    cfg = OmegaConf.to_container(OmegaConf.load(finished / "config.yaml"))
    del cfg["faults"], cfg["simulation"]["retries"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(RunError, match=r"lacks faults, .*another version"):
        read(tmp_path)


def sweep(tmp_path, task, own):
    (tmp_path / "multirun.yaml").write_text(
        yaml.safe_dump({"hydra": {"overrides": {"task": list(task), "hydra": list(own)}}})
    )
    return [f"resume={tmp_path}"]


def test_a_sweeps_command_is_put_together_again(tmp_path):
    own = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    words = sweep_again(sweep(tmp_path, ["seed=0,1"], own))
    assert words == [
        "-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        f"hydra.sweep.dir='{tmp_path}'", f"resume='{tmp_path}'",
    ]  # fmt: skip
    assert sweep_again(["seed=0"]) == ["seed=0"]
    assert sweep_again([f"resume={tmp_path / 'none'}"]) == [f"resume={tmp_path / 'none'}"]


@pytest.mark.parametrize(
    "own",
    ["hydra.callbacks.x._target_=os.system", "hydra.launcher._target_=os.system", "hydra.searchpath=[/tmp]",
     "hydra/job_logging=other", "hydra.sweeper._target_=os.system"],
)  # fmt: skip
def test_a_sweep_that_could_call_anything_is_refused(tmp_path, own):
    with pytest.raises(RunError, match="which may call anything"):
        sweep_again(sweep(tmp_path, ["seed=0"], [own]))


def fedbayes(*words, cwd):
    command = [sys.executable, "-m", "fedbayes.run", *words]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **COMPILED, "OMP_NUM_THREADS": "1"}
    )


def test_a_sweep_goes_on_finished_jobs_are_skipped_and_a_hostile_one_calls_nothing(tmp_path):
    folder = tmp_path / "sweep"
    first = fedbayes(
        "-m", "experiment=smoke", "rounds=1", "method=fedavg_head", "seed=0,1,2", f"hydra.sweep.dir={folder}",
        cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    jobs = sorted(path.parent for path in folder.glob("*/summary.json"))
    assert len(jobs) == 3
    numbers = [(job / "metrics.jsonl").read_bytes() for job in jobs]
    for name in ("summary.json", "report.html"):  # broken off after its last checkpoint
        (jobs[1] / name).unlink()
    for path in sorted(jobs[2].rglob("*"), reverse=True):  # never begun
        path.rmdir() if path.is_dir() else path.unlink()
    jobs[2].rmdir()
    stamp = (jobs[0] / "summary.json").stat().st_mtime_ns

    again = fedbayes(f"resume={folder}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (jobs[0] / "summary.json").stat().st_mtime_ns == stamp
    assert f"{jobs[0]} has finished" in again.stdout
    assert all((job / "summary.json").exists() for job in jobs)
    assert (jobs[1] / "metrics.jsonl").read_bytes() == numbers[1]
    assert "resumed after round 1" in (jobs[1] / "run.log").read_text()

    (jobs[2] / "summary.json").unlink()
    text = (folder / "multirun.yaml").read_text()
    (folder / "multirun.yaml").write_text(
        text.replace("- rounds=1", "- rounds=1\n    - method.client._target_=os.system")
    )
    hostile = fedbayes(f"resume={folder}", cwd=tmp_path)
    assert hostile.returncode == 2
    assert "names os.system, which is not a part of" in hostile.stderr
    assert "Traceback" not in hostile.stderr


def test_nothing_that_can_run_code_reads_a_users_file():
    """No pickle and no eval: torch.load and numpy.load occur only with their safe settings."""
    import ast
    from pathlib import Path

    root = Path(stored_configuration.__file__).parent.parent
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in [file for folder in ("fedbayes", "clients", "strategies") for file in (root / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {name.name for name in node.names}
                module = getattr(node, "module", None) or ""
                found = {one.split(".")[0] for one in ({module} if module else names)} & banned
                assert not found or names == {"UnpicklingError"}, (path, found)
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert called not in ("eval", "exec", "compile", "__import__"), path
                if called.split(".")[-1] == "load" and called.split(".")[0] == "torch":
                    assert keywords.get("weights_only") == "True", path
                if called in ("np.load", "numpy.load"):
                    assert keywords.get("allow_pickle") == "False", path

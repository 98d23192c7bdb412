"""A sweep to trust: whatever fails is named with its error, kept apart from the rest, and run again alone."""

import csv
import json
import sys
from importlib.util import find_spec

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from processes import fedbayes

from fedbayes.commands import sweep
from fedbayes.commands.resume_sweep import sweep_again
from fedbayes.config.compose import CONF, compose
from fedbayes.errors import ConfigError, RunError
from fedbayes.storage.run_dir import read_jobs

SMALL = ["experiment=smoke", "method=fedavg_head", "rounds=1"]


def table(folder):
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def images(root, count):
    from PIL import Image

    for domain in ("ink", "chalk"):
        for name in ("a", "b"):
            (root / domain / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (10 * i, 20 * (name == "a"), 99)).save(root / domain / name / f"{i}.png")


def sweep_with_a_missing_folder(tmp_path, seeds, folders, missing):
    """Each folder of images makes a job per seed; one folder is not there until the sweep is run again."""
    for name in folders:
        if name != missing:
            images(tmp_path / name, 12)
    folder, jobs = tmp_path / "sweep", len(seeds) * len(folders)
    roots = ",".join(str(tmp_path / name) for name in folders)
    words = ["-m", *SMALL, "data=imagefolder", "clients=2", "partition.max_train=null", "partition.min_images=4"]
    first = fedbayes(
        *words, f"seed={','.join(map(str, seeds))}", f"data.root={roots}", f"hydra.sweep.dir={folder}", cwd=tmp_path
    )
    assert first.returncode == 2, first.stderr
    rows = table(folder)
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(rows) == jobs
    assert [row["data.root"] for row in failed] == [str(tmp_path / missing)] * len(seeds)
    assert [row["seed"] for row in failed] == [str(seed) for seed in seeds]
    # The end of what is printed names exactly these, with their errors.
    said = first.stderr.splitlines()[-len(seeds) - 1 :]
    assert said[0] == f"{len(seeds)} failed; `fedbayes resume={folder}` runs them again:"
    for line, row in zip(said[1:], failed, strict=True):
        assert line.startswith(f"  job {row['job']} (")
        assert line.endswith(f": {row['error']}")
        assert f"data.root={tmp_path / missing} " in row["error"]
    assert "Traceback" not in first.stderr
    kept = sorted(folder.glob("*/summary.json"))
    assert len(kept) == jobs - len(seeds)
    for row in rows:
        if row["status"] == "finished":
            summary = json.loads((folder / row["folder"] / "summary.json").read_text())
            assert float(row["accuracy"]) == summary["final"]["accuracy"]["mean"]
            assert float(row["nll"]) == summary["final"]["nll"]
    stamps = {path: path.stat().st_mtime_ns for path in kept}

    images(tmp_path / missing, 12)
    again = fedbayes(f"resume={folder}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps
    assert again.stdout.count("has finished") == len(kept)
    assert again.stdout.count("report: ") == len(seeds)  # the failed ones alone were trained
    assert [row["status"] for row in table(folder)] == ["finished"] * jobs
    assert f"{jobs} finished.\n" in (folder / "summary.md").read_text()


def test_failing_jobs_are_named_kept_apart_and_run_again_alone(tmp_path):
    sweep_with_a_missing_folder(tmp_path, [0, 1], ["here", "missing"], "missing")


@pytest.mark.slow
def test_two_of_twenty_jobs_fail_and_only_they_are_run_again(tmp_path):
    sweep_with_a_missing_folder(tmp_path, [0, 1], [*map(str, range(9)), "missing"], "missing")


def row(number, status, **found):
    overrides = ["rounds=1", f"seed={number}", f"optim.head_lr={0.1 * number}"]
    return {"job": number, "method": "m", "seed": number, "overrides": overrides, "status": status, **found}


def test_the_summary_follows_each_job_and_shows_what_varies(tmp_path):
    sweep.record(tmp_path, row(10, "running"))
    sweep.record(tmp_path, row(2, "finished", accuracy=0.5, nll=1.25, ece=0.1, seconds=3.0, folder="2-m"))
    assert [(one["job"], one["status"]) for one in table(tmp_path)] == [("2", "finished"), ("10", "running")]
    sweep.record(tmp_path, row(10, "failed", error="DataError: a|b"))
    rows = table(tmp_path)
    assert list(rows[0]) == [
        *("job", "method", "seed", "optim.head_lr", "validation", "accuracy", "nll", "ece"),
        *("seconds", "status", "error", "folder"),
    ]
    assert (rows[0]["optim.head_lr"], rows[0]["nll"]) == ("0.2", "1.25")
    page = (tmp_path / "summary.md").read_text()
    assert "1 finished, 1 failed." in page
    assert "| DataError: a\\|b |" in page


def test_a_job_that_broke_off_is_named_and_earlier_sweeps_are_not(tmp_path, monkeypatch):
    sweep.record(tmp_path, row(0, "failed", error="old"))
    monkeypatch.setattr(sweep.Watch, "folder", tmp_path)
    monkeypatch.setattr(sweep.Watch, "before", 1)
    assert sweep.failures() == []
    sweep.record(tmp_path, row(1, "running"))
    with (tmp_path / "sweep.jsonl").open("a") as file:
        file.write('{"job": 2, "half')
    assert sweep.failures() == ["job 1 (rounds=1,seed=1,optim.head_lr=0.1): broke off"]


def test_an_error_is_one_line_that_says_whose_fault_it_may_be():
    assert sweep.one_line(RunError("a\nb"), ["own"]) == "RunError: a b"
    assert sweep.one_line(ValueError("x")) == "a fault of fedbayes, please report it: ValueError: x"
    assert sweep.one_line(ValueError("x"), ["own"]) == "a fault of own or of fedbayes: ValueError: x"


def test_the_modules_of_a_user_are_those_that_no_shipped_file_names():
    assert sweep.user_modules(compose()) == []
    ours = compose(["method.strategy._target_=flwr.serverapp.strategy.FedMedian"])
    assert sweep.user_modules(ours) == []
    theirs = compose(["method.strategy._target_=my_methods.server.Gated", "+method.more={_target_: 'other.it'}"])
    assert sweep.user_modules(theirs) == ["my_methods", "other"]


GATED = """def aggregate(call):
    try:
        call()
    except KeyError as error:
        raise OSError("late") from error
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs a job of a sweep in an empty folder, whose method is in the module `gated_method`; gives its row."""
    (tmp_path / "gated_method.py").write_text(GATED)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "sweep"
    folder.mkdir()

    def run(work, made=True):
        cfg = OmegaConf.create({"names": {"method": "m"}, "seed": 0, "method": {"_target_": "gated_method.aggregate"}})
        (folder / "3-m").mkdir(exist_ok=True)
        if made:
            (folder / "3-m" / "config.yaml").touch()
        hydra = OmegaConf.create(
            {"sweep": {"dir": str(folder)}, "job": {"num": 3}, "overrides": {"task": ["seed=0"]}}
            | {"runtime": {"output_dir": str(folder / "3-m"), "choices": {"hydra/sweeper": "basic"}}}
        )
        assert sweep.job(cfg, hydra, folder / "3-m", work) is None
        (row,) = read_jobs(folder)
        return folder, row

    yield run
    sys.modules.pop("gated_method", None)


def test_an_exception_of_a_users_own_code_is_said_to_be_and_leaves_its_traceback(job, capsys):
    def work():
        import gated_method

        gated_method.aggregate(lambda: {}["x"])

    folder, row = job(work)
    place = folder.parent / "gated_method.py"
    said = f"raised in {place}, line 3: OSError: late; traceback in {folder / 'error-3.txt'}"
    assert row["error"] == said
    assert capsys.readouterr().err == f"job 3 (seed=0): {said}\n"
    kept = (folder / "error-3.txt").read_text()
    assert "KeyError: 'x'" in kept
    assert f'"{place}", line 5' in kept
    assert row["folder"] == "3-m"

    def mended():
        raise RunError("y")

    _, row = job(mended)
    assert row["error"] == "RunError: y"
    assert not (folder / "error-3.txt").exists()


def test_a_failed_job_names_no_folder_that_is_not_there(job):
    def work():
        raise ConfigError("before anything was written")

    folder, row = job(work, made=False)
    assert not (folder / "3-m").exists()
    assert row["folder"] is None
    (line,) = table(folder)
    assert line["folder"] == ""
    assert "3-m" not in (folder / "summary.md").read_text()


def test_what_a_search_maximises_is_validation_and_never_test(tmp_path):
    rows = [
        {"round": 1, "phase": "validation", "accuracy": 0.4, "nll": 1.0},
        {"round": 2, "phase": "validation", "accuracy": 0.3, "nll": 0.5},
        {"round": 2, "phase": "test", "accuracy": 0.9, "nll": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert sweep.score(tmp_path, "accuracy") == 0.4
    assert sweep.score(tmp_path, "nll") == -0.5
    assert sweep.score(tmp_path / "none", "nll") is None


@pytest.mark.parametrize("choice", ["hydra/launcher=joblib", "hydra/sweeper=search"])
def test_without_the_extra_the_remedy_is_named(choice):
    if find_spec("hydra_plugins") is not None:
        pytest.skip("needs an environment without fedbayes[sweeps]")
    with pytest.raises(ConfigError, match=r"is not installed; install fedbayes\[sweeps\]\."):
        compose([choice])


def test_a_launcher_for_slurm_composes():
    with initialize_config_dir(str(CONF), version_base=None):
        words = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=30"]
        launcher = hydra_compose("config", words, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.timeout_min) == ("gpu", 30)


@pytest.mark.slow
def test_jobs_of_a_cluster_are_recorded_like_others(tmp_path):
    folder = tmp_path / "sweep"
    done = fedbayes(
        "-m", *SMALL, "hydra/launcher=submitit_local", "clients=2,5000", f"hydra.sweep.dir={folder}", cwd=tmp_path
    )
    assert done.returncode != 0
    assert sorted(job["status"] for job in table(folder)) == ["failed", "finished"]


@pytest.mark.slow
def test_jobs_side_by_side_are_recorded_like_others(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs fedbayes[sweeps]")
    folder = tmp_path / "sweep"
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "clients=5000,2,3,6000", f"hydra.sweep.dir={folder}"]
    done = fedbayes("-m", *SMALL, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert [one["status"] for one in table(folder)] == ["failed", "finished", "finished", "failed"]
    count, *named = done.stderr.splitlines()[-3:]
    assert count.startswith("2 failed; ")
    assert [line.split(" (")[0] for line in named] == ["  job 0", "  job 3"]
    assert all("PartitionError: clients=" in line for line in named)


@pytest.mark.slow
def test_a_search_maximises_validation_and_goes_on_after_a_failure(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs fedbayes[sweeps]")
    folder = tmp_path / "search"
    words = ["hydra/sweeper=search", "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={folder}"]
    space = ["optim.head_lr=tag(log,interval(0.001,0.3))", "clients=choice(2,5000)"]
    done = fedbayes("-m", *SMALL, *words, *space, cwd=tmp_path)
    assert done.returncode == 2
    rows = table(folder)
    assert len(rows) == 4
    assert {one["status"] for one in rows} <= {"failed", "finished", sweep.CHOSEN}
    assert "resume=" not in done.stderr
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    scores = [sweep.score(folder / one["folder"], "accuracy") for one in rows if one["status"] != "failed"]
    assert best["best_value"] == max(scores)
    with pytest.raises(RunError, match="names a search"):
        sweep_again([f"resume={folder}"])

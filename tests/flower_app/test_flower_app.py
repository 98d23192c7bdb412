"""`flower_app/run.sh` on Flower's Simulation Runtime: the command's numbers, the true exit status, nothing left."""

import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import Marked

from fedbayes.run import simulate
from fedbayes.storage.run_dir import read_rows

APP = Path(__file__).resolve().parents[2] / "flower_app"
SMALL = ["experiment=smoke", "clients=4"]


@pytest.fixture
def shell(tmp_path):
    """Runs commands in a folder whose name has a space, and ends what they leave behind."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    commands = Marked(folder)
    yield commands
    commands.end()


def numbers(run_dir):
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["method=pfedbayespt"], marks=pytest.mark.slow),
        ["method=of_a_folder", "method.client.personal=[head]", "participation=0.5"],
        pytest.param(["participation=0.5"], marks=pytest.mark.slow),
    ],
    ids=["pfedbayespt", "method outside", "half"],
)
def test_a_run_gives_the_numbers_of_one_process(overrides, shell):
    app = shutil.copytree(APP, shell.folder / "the app", ignore=shutil.ignore_patterns("__pycache__"))
    methods = shell.folder / "conf" / "method"
    methods.mkdir(parents=True)
    (methods / "of_a_folder.yaml").write_text("# @package _global_\ndefaults: [fedvpt, _self_]\n")
    words = [*SMALL, *overrides]
    ran = shell.run(app / "run.sh", " ".join([*words, "hydra.searchpath=[file://conf]", "run_dir=app"]))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert f"report: {shell.folder}/app/report.html" in ran.stdout
    words.append(f"hydra.searchpath=['file://{methods.parent}']")
    simulate([*words, "simulation.cohort=1", f"run_dir='{shell.folder / 'process'}'"])
    assert numbers(shell.folder / "app") == numbers(shell.folder / "process")
    assert len(numbers(shell.folder / "app")) > 4
    assert shell.left(5) == []


def test_a_run_that_fails_has_another_exit_status(shell):
    ran = shell.run(APP / "run.sh", *SMALL, "partition.min_images=100000", "run_dir=nothing here")
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert "finished:failed" in last
    assert "partition.min_images" in last
    assert not (shell.folder / "nothing here").exists()
    assert shell.left(5) == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("method=nonsense", "method=nonsense"),
        ("data=imagefolder", "data.root"),
        ("clients=0", "clients=0"),
        ("simulation=ray", "simulation=ray"),
        ("dry_run=true", "dry_run=True"),
    ],
)
def test_a_bad_override_is_one_line_before_anything_starts(overrides, key, shell):
    ran = shell.run(APP / "run.sh", overrides)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith(f"ConfigError: {key} ")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process(sign, shell):
    running = shell.start(APP / "run.sh", "experiment=smoke rounds=100000 run_dir=stopped", log="output.txt")
    rows = shell.folder / "stopped" / "metrics.jsonl"
    end = time.monotonic() + 200
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(shell.left()) > 3
    running.send_signal(sign)
    assert running.wait(20) == 130
    assert shell.left() == []

"""Directories that cannot be written, disks that fill up, two runs in one place, and signals in every phase."""

import errno
import os
import signal
import subprocess
import sys
import time
from itertools import product

import pytest
from breaking import broken
from processes import COMPILED

from fedbayes import simulate
from fedbayes.errors import RunError
from fedbayes.run import resume
from fedbayes.storage import checkpoint
from fedbayes.tracking.tracker import Tracker

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["experiment=smoke", "simulation.threads=1"]
PHASES = ("start", "config.yaml", "checkpoint/round-00002", "summary.json")


def start(*words):
    environment = {**os.environ, **COMPILED, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedbayes.run", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with little room; skipped where this user may not mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs a user who may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_it_goes_on_once_there_is_room(small_disk, tmp_path):
    (small_disk / "ballast").write_bytes(b"\0" * 30_000)
    whole, run_dir = tmp_path / "whole", small_disk / "run"
    simulate([*SMALL, "rounds=3", f"run_dir={whole}"])
    with pytest.raises(RunError, match=r"fedbayes resume=") as caught:
        simulate([*SMALL, "rounds=3", f"run_dir={run_dir}"])
    assert "\n" not in str(caught.value)
    assert (run_dir / "config.yaml").exists(), "it can be resumed"
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    resume(run_dir)
    assert (run_dir / "metrics.jsonl").read_text().count('"train"') == 3
    first, second = checkpoint.latest(whole).server, checkpoint.latest(run_dir).server
    assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}


@pytest.mark.parametrize("method", ["_write", "keep", "report"])
def test_wherever_the_disk_is_full_the_message_is_one_line(tmp_path, monkeypatch, method):
    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(Tracker, method, full)
    with pytest.raises(RunError, match=r"x .*\(No space left on device\)"):
        simulate([*SMALL, f"run_dir={tmp_path / 'run'}"])


@pytest.mark.parametrize("place", ["/proc/nothing/run", "/dev/null/run", "/sys/run"])
def test_places_that_cannot_hold_a_run_are_named(place):
    with pytest.raises(RunError, match=rf"run_dir={place}"):
        simulate([*SMALL, f"run_dir={place}"])


def test_two_that_go_on_with_the_same_run(tmp_path, monkeypatch):
    broken([*SMALL, "rounds=3", f"run_dir={tmp_path / 'run'}"], monkeypatch, 1)
    processes = [start(f"resume={tmp_path / 'run'}") for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    (first, _), (second, error) = sorted(zip((p.returncode for p in processes), errors, strict=True))
    # The second either finds the first at work, or the run finished.
    assert first == 0
    assert second == 0 or (second == 2 and "in use by another run" in error)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"train"') == 3


FAST = [(signal.SIGINT, "config.yaml"), (signal.SIGTERM, "checkpoint/round-00002")]


@pytest.mark.parametrize(
    ("sign", "phase"),
    [
        pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow])
        for case in product((signal.SIGINT, signal.SIGTERM), PHASES)
    ],
)
def test_signals_in_every_phase_end_it_with_130_and_it_can_go_on(tmp_path, sign, phase):
    run_dir = tmp_path / "run"
    process = start(*SMALL, "rounds=40", "evaluate.every=40", f"run_dir={run_dir}")
    end = time.monotonic() + 120
    while phase != "start" and not (run_dir / phase).exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    if phase == "start":
        time.sleep(3.0)
    process.send_signal(sign)
    output, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        assert phase == "summary.json", "it was faster"
        return
    if phase == "start":  # before the command has its handlers, the signal's own way ends it
        assert process.returncode in (130, 1, -sign), (output, errors)
    else:
        assert (process.returncode, errors.strip()) == (130, "interrupted"), output
        assert phase == "config.yaml" or "interrupted" in (run_dir / "run.log").read_text()
    if (run_dir / "config.yaml").exists():
        resume(run_dir)
        assert (run_dir / "metrics.jsonl").read_text().count('"train"') == 40
        assert (run_dir / "summary.json").exists()

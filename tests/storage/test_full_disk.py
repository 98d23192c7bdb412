"""Directories that cannot be written, disks that fill up, two runs in one place, and signals in every phase."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import COMPILED

from fedbayes import simulate
from fedbayes.errors import RunError
from fedbayes.run import resume
from fedbayes.storage import checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["experiment=smoke", "simulation.threads=1"]
CODE = """
import os, sys
from fedbayes.run import main
sys.argv = ["fedbayes", *sys.argv[1:]]
main()
"""


def start(*words, **environment):
    environment = {**os.environ, **COMPILED, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", CODE, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


PHASES = ("start", "config.yaml", "checkpoint/round-00002", "summary.json")


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
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 30_000)
    whole = tmp_path / "whole"
    simulate([*SMALL, "rounds=3", f"run_dir={whole}"])
    run_dir = small_disk / "run"
    with pytest.raises(RunError, match=r"cannot be written .*go on with `fedbayes resume=") as caught:
        simulate([*SMALL, "rounds=3", f"run_dir={run_dir}"])
    assert "\n" not in str(caught.value)
    assert (run_dir / "config.yaml").exists(), "it can be resumed"
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    resume(run_dir)
    assert (run_dir / "metrics.jsonl").read_text().count('"train"') == 3
    one, other = checkpoint.latest(whole), checkpoint.latest(run_dir)
    assert {n: a.tobytes() for n, a in one.server.items()} == {n: a.tobytes() for n, a in other.server.items()}


@pytest.mark.parametrize("what", ["_write", "keep", "report"])
def test_wherever_the_disk_is_full_the_message_is_one_line(tmp_path, monkeypatch, what):
    import errno

    from fedbayes.tracking.tracker import Tracker

    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(Tracker, what, full)
    with pytest.raises(RunError, match=r"x cannot be written \(No space left on device\); make room"):
        simulate([*SMALL, f"run_dir={tmp_path / 'run'}"])


@pytest.mark.parametrize("place", ["/proc/nothing/run", "/dev/null/run", "/sys/run"])
def test_places_that_cannot_hold_a_run_are_named(place):
    with pytest.raises(RunError, match=rf"run_dir={place} cannot be"):
        simulate([*SMALL, f"run_dir={place}"])


def test_two_runs_told_to_use_one_directory(tmp_path):
    words = [*SMALL, "method=fedavg_head", f"run_dir={tmp_path / 'run'}"]
    both = [start(*words), start(*words)]
    ends = [(one.communicate(timeout=200), one.returncode) for one in both]
    codes = sorted(code for _, code in ends)
    assert codes == [0, 2], ends
    ((_, said), _) = next(one for one in ends if one[1] == 2)
    assert "already holds a run" in said or "was just taken by another run" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "summary.json").exists()


def test_two_that_go_on_with_one_run(tmp_path, monkeypatch):
    from breaking import broken

    broken([*SMALL, "rounds=3", f"run_dir={tmp_path / 'run'}"], monkeypatch, 1)
    both = [start(f"resume={tmp_path / 'run'}") for _ in range(2)]
    ends = [(one.communicate(timeout=200), one.returncode) for one in both]
    # The second either finds the first at work, or the run finished.
    assert {code for _, code in ends} <= {0, 2}
    assert any(code == 0 for _, code in ends), ends
    assert all("is in use by another run" in said for (_, said), code in ends if code == 2)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"train"') == 3


EVERY = [(sign, phase) for sign in (signal.SIGINT, signal.SIGTERM) for phase in PHASES]


@pytest.mark.parametrize(
    ("sign", "phase"), [pytest.param(*one, marks=[] if one in EVERY[1:7:5] else [pytest.mark.slow]) for one in EVERY]
)
def test_signals_in_every_phase_end_it_with_130_and_it_can_go_on(tmp_path, sign, phase):
    run_dir = Path(tmp_path / "run")
    process = start(*SMALL, "rounds=40", "evaluate.every=40", f"run_dir={run_dir}")
    end = time.monotonic() + 120
    while phase != "start" and not (run_dir / phase).exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    if phase == "start":
        time.sleep(3.0)
    process.send_signal(sign)
    out, said = process.communicate(timeout=60)
    if process.returncode == 0:
        assert phase == "summary.json", "it was faster"
        return
    if phase == "start":  # before the command has its handlers, the signal's own way ends it
        assert process.returncode in (130, 1, -sign), (out, said)
    else:
        assert process.returncode == 130, (out, said)
        assert said.strip() == "interrupted"
    if (run_dir / "config.yaml").exists():
        resume(run_dir)
        rows = (run_dir / "metrics.jsonl").read_text()
        assert rows.count('"train"') == 40
        assert (run_dir / "summary.json").exists()

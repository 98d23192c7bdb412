"""A sweep's processes, and runs of it that broke off."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import sweep
from processes import Marked

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

SLOW = """
import time
from pathlib import Path

import sweep

def for_ever(job):
    Path("begun").touch()
    time.sleep(600)

if __name__ == "__main__":
    import slow
    sweep._run = slow.for_ever
    sweep.run_all([(Path("runs/one"), ()), (Path("runs/two"), ())], 1)
"""


def test_values_are_separated_by_commas_outside_brackets():
    found = sweep.combinations(["a=1,2", "b=[x],[y,z]", "c=[[p,q],[r]]", "d={u:1,v:2}"])
    assert [one[:2] for one in found] == [("a=1", "b=[x]"), ("a=1", "b=[y,z]"), ("a=2", "b=[x]"), ("a=2", "b=[y,z]")]
    assert {one[2:] for one in found} == {("c=[[p,q],[r]]", "d={u:1,v:2}")}


def test_a_run_that_broke_off_goes_on_and_only_with_its_own_settings(tmp_path):
    folder, asked = tmp_path / "one", ("experiment=smoke", "method=fedvpt", "rounds=2")
    sweep._run((folder, asked))
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    (folder / "checkpoint" / "round-00002").rename(tmp_path / "gone")
    with pytest.raises(SystemExit, match="rounds=2, not 3"):
        sweep.require_same([(folder, (*asked[:2], "rounds=3"))])
    sweep.require_same([(folder, asked)])
    sweep._run((folder, asked))
    assert json.loads((folder / "summary.json").read_text())["final"] == whole["final"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if row["phase"] == "train"] == [1, 2]


def test_workers_end_with_the_one_that_hands_out_the_jobs(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    started = Marked(tmp_path, PYTHONPATH=os.pathsep.join([str(EXPERIMENTS), str(tmp_path)]))
    try:
        process = started.start(sys.executable, "slow.py", log="log")
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert len(started.left()) > 1
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert started.left(patience=20) == []
    finally:
        started.end()

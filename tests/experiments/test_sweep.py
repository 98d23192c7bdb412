"""The processes of a sweep."""

import os
import signal
import sys
import time
from pathlib import Path

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


def test_workers_end_with_the_one_that_hands_out_the_jobs(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    sweep = Marked(tmp_path, PYTHONPATH=os.pathsep.join([str(EXPERIMENTS), str(tmp_path)]))
    try:
        process = sweep.start(sys.executable, "slow.py", log="log")
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert len(sweep.left()) > 1
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert sweep.left(patience=20) == []
    finally:
        sweep.end()

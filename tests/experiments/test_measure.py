"""How the benchmarks watch a run."""

import subprocess
import sys
import time
from pathlib import Path

import measure
import pytest


def test_overlapping_spans_count_once():
    assert measure.covered([]) == 0
    assert measure.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0


def test_memory_of_a_process_includes_its_children():
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs /proc/self/smaps_rollup, which Linux has")
    grow = "import subprocess, sys, time; x = b'1' * {}; {} time.sleep(30)"
    child = grow.format(60 << 20, "")
    parent = grow.format(1, f"subprocess.Popen([sys.executable, '-c', {child!r}]);")
    with subprocess.Popen([sys.executable, "-c", parent], start_new_session=True) as process:
        try:
            for _ in range(100):
                time.sleep(0.1)
                if measure.tree_mb(process.pid) > 65:
                    break
            assert measure.tree_mb(process.pid) > 65
        finally:
            subprocess.run(["pkill", "-P", str(process.pid)], check=False)
            process.kill()


def test_a_watched_run_is_a_run_and_its_overhead_is_what_clients_leave():
    run = measure.watched(["experiment=smoke", "method=fedvpt", "rounds=3"])
    assert [row["round"] for row in run.rows if row["phase"] == "train"] == [1, 2, 3]
    trained = [span for span in run.spans if span["kind"] == "train"]
    assert [span["round"] for span in trained] == [1, 2, 3]
    overheads, rounds = run.overheads("train"), run.seconds("train")
    assert len(overheads) == len(rounds) == 2
    assert all(0 < overhead < whole for overhead, whole in zip(overheads, rounds, strict=True))
    assert 0 < run.start_up < run.wall
    assert run.workers == 1


def test_a_run_that_fails_says_why():
    with pytest.raises(RuntimeError, match="rounds=0"):
        measure.watched(["experiment=smoke", "rounds=0"])

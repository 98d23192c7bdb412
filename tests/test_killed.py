"""Runs whose process is killed at random moments end with the result of a run that nobody killed."""

import multiprocessing
import os
import random
import signal
import time

import pytest
from breaking import result

from fedbayes import simulate
from fedbayes.run import resume

SMALL = ["experiment=smoke", "rounds=3", "simulation.threads=1"]


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
    context.set_forkserver_preload(["fedbayes.run", "fedbayes.build", "fedbayes.report.run_page", "timm"])

    def started(run_dir):
        process = context.Process(target=_work, args=(overrides, run_dir))
        process.start()
        return process

    for folder in ("warm", "whole"):  # the first also waits for imports
        begin = time.monotonic()
        process = started(tmp_path / folder)
        process.join()
        assert process.exitcode == 0
    typical = time.monotonic() - begin
    rng, hits, number, phases = random.Random(seed), 0, 0, set()
    while hits < kills:
        number, expected = number + 1, ""
        run_dir = tmp_path / f"run{number}"
        while not (run_dir / "summary.json").exists():
            process = started(run_dir)
            if hits < kills and hits % 4 == 3:  # wait for a checkpoint that is being written
                while process.exitcode is None and not list(run_dir.glob("checkpoint/.round-*")):
                    pass
            else:
                process.join(rng.uniform(0, typical) if hits < kills else None)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                hits += 1
                checkpoints = sorted(path.name for path in run_dir.glob("checkpoint/round-*"))
                is_writing = any(run_dir.glob("checkpoint/.round-*"))
                phases.add("during one" if is_writing else "after" if checkpoints else "before the first")
                begun = (run_dir / "config.yaml").exists()
                expected = f"resumed after round {int(checkpoints[-1][6:]) if checkpoints else 0};" if begun else ""
            else:
                assert process.exitcode == 0
                assert expected in (run_dir / "run.log").read_text()
        # A summary is written before pictures and report: a kill in between leaves the result.
        assert result(run_dir) == result(tmp_path / "whole")
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

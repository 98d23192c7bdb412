"""Flower's Simulation Runtime on a cluster of two nodes: real Ray processes, the same objects, the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from breaking import broken
from journal import Journal
from processes import Marked
from remote import RemoteFactory
from scripted import SIZES, Scripted, round_loop

from fedbayes import simulate
from fedbayes.errors import ConfigError, RunError
from fedbayes.run import resume
from fedbayes.simulation.ray import Ray
from strategies.averaging import Averaging

pytestmark = pytest.mark.usefixtures("no_pictures")

UNEQUAL = {"seconds", "images_per_second"}
SAME = [
    ["method=pfedbayespt_personal", "participation=0.5"],
    pytest.param(["method=pfedbayespt"], marks=pytest.mark.slow),
    pytest.param(["method=fedvpt", "method.client.personal=[head]"], marks=pytest.mark.slow),
    pytest.param(["method=fedlora", "sparse=ist"], marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    assert len(cluster.list_all_nodes()) == 2
    for node in cluster.list_all_nodes():
        assert not node.any_processes_alive() or node.remaining_processes_alive(), "we ended a cluster that is not ours"
    cluster.shutdown()


def engine(address, **settings):
    return Ray(**{"num_cpus": 1, "num_gpus": 0, "address": address, "device": "auto", "threads": 1, **settings})


def play(address, factory, **settings):
    """Play rounds of a scripted federation on the cluster."""
    loop, journal = round_loop(**{"clients": 4, "patience": 60, **settings}), Journal()
    strategy = Averaging()
    progress = engine(address).run(
        client_factory=factory,
        clients=4,
        serve=lambda grid: loop.run(grid, strategy, Scripted().initial(), journal, SIZES),
    )
    return progress, journal


def replies(journal):
    """Replies by round."""
    return {row["round"]: row["replies"] for row in journal.rows if row["phase"] == "train"}


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in UNEQUAL} for line in lines]


def assert_equal(first, second):
    """Compare two runs to the last bit."""
    assert rows(first) == rows(second)
    summary, like = (json.loads((folder / "summary.json").read_text()) for folder in (first, second))
    for key in ("final", "best", "per_client"):
        assert summary[key] == like[key], key


@pytest.mark.parametrize("overrides", SAME, ids=["half, personal heads", "all clients", "personal heads", "blocks"])
def test_workers_and_cohorts_of_one_give_the_same_bits(address, tmp_path, overrides):
    common = ["experiment=smoke", "clients=4", "simulation.threads=1", *overrides]
    simulate([*common, "simulation.cohort=1", f"run_dir={tmp_path}/process"])
    simulate([*common, "simulation=ray", f"simulation.address={address}", f"run_dir={tmp_path}/ray"])
    assert_equal(tmp_path / "ray", tmp_path / "process")
    assert len(rows(tmp_path / "ray")) >= 5


def test_both_nodes_work_and_each_worker_builds_its_client_once(address, tmp_path):
    environment = dict(os.environ)
    progress, journal = play(address, RemoteFactory(tmp_path), rounds=3)
    assert progress.arrays["w"].tolist() == pytest.approx([3.0])  # (1 + 4 + 9 + 16) / 10
    clients = sorted(tmp_path.glob("made-*"))
    processes = [path.name.split("-")[1] for path in clients]
    assert len(processes) == len(set(processes)) == 2
    assert len({path.read_text() for path in clients}) == 2, "one of the two nodes had nothing to do"
    assert journal.notes == []
    assert dict(os.environ) == environment


def test_workers_that_die_come_back_and_an_exception_is_the_clients_own(address, tmp_path):
    script = RemoteFactory(tmp_path, dies={(2, 0)}, kills={(3, 1)}, raises={(1, 3)})
    progress, journal = play(address, script, rounds=4)
    assert replies(journal) == {1: 3, 2: 4, 3: 3, 4: 4}
    assert (tmp_path / "died-2-0").exists()
    raised, killed = journal.notes
    assert raised.startswith("round 1: ")
    assert "client 3 rejected: ZeroDivisionError: rotten image (" in raised
    assert killed.startswith("round 3: ")
    assert "client 1 rejected: Actor" in killed
    assert "'" not in killed
    assert progress.accepted == {0: 4, 1: 4, 2: 4, 3: 4}


@pytest.mark.slow
def test_late_clients_are_left_out_and_the_run_goes_on(address, tmp_path):
    _, journal = play(address, RemoteFactory(tmp_path, hangs={(1, 0)}), timeout=4, rounds=60)
    assert "client 0 rejected: no reply in time" in journal.notes[0]
    assert replies(journal)[60] == 4, "rounds wait four seconds each until there is a new worker, then milliseconds"


def test_a_client_that_never_comes_back_is_ended_and_its_worker_replaced(address, tmp_path):
    started = time.monotonic()
    progress, journal = play(address, RemoteFactory(tmp_path, freezes={(2, 0)}), timeout=3, rounds=60)
    assert time.monotonic() - started < 240, "Flower joins what its workers have begun, for ever if need be"
    assert replies(journal)[2] < 4
    assert replies(journal)[60] == 4, "rounds wait three seconds each until there is a new worker, then milliseconds"
    assert any("client 0 rejected: no reply in time" in note for note in journal.notes if note.startswith("round 2:"))
    assert len(list(tmp_path.glob("made-*"))) > 2
    assert progress.accepted[0] == 60


COMMON = ["experiment=smoke", "method=fedper", "clients=4", "simulation.threads=1"]


def resumed_as_never_broken(folder, more):
    """Go on with the run in `parts`, and compare it with one that was never broken off."""
    simulate([*COMMON, *more, "simulation.cohort=1", f"run_dir={folder}/whole"])  # the same bits as on Ray, see above
    resume(folder / "parts")
    assert_equal(folder / "parts", folder / "whole")


def test_a_run_that_broke_off_goes_on_in_other_workers(address, tmp_path, monkeypatch):
    ray = [*COMMON, "rounds=3", "simulation=ray", f"simulation.address={address}"]
    broken([*ray, f"run_dir={tmp_path}/parts"], monkeypatch, 2)
    resumed_as_never_broken(tmp_path, ["rounds=3"])


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4])
def test_a_run_whose_process_was_killed_goes_on_in_other_workers(address, tmp_path, after):
    parts, more = tmp_path / "parts", ["rounds=6"]
    command = [sys.executable, "-m", "fedbayes.run", *COMMON, *more, "simulation=ray", f"simulation.address={address}"]
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen([*command, f"run_dir={parts}"], stdout=file, stderr=file)
    written, end = parts / "metrics.jsonl", time.monotonic() + 300
    while not (written.exists() and written.read_text().count('"phase": "train"') >= after):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (parts / "summary.json").exists()
    resumed_as_never_broken(tmp_path, more)


@pytest.mark.parametrize("error", [RunError("the server is tired"), KeyError("lost")])
def test_what_ends_the_server_comes_out_as_itself(address, tmp_path, error):
    def serve(grid):
        raise error

    with pytest.raises(type(error)) as caught:
        engine(address).run(client_factory=RemoteFactory(tmp_path), clients=2, serve=serve)
    assert caught.value is error


@pytest.mark.parametrize(
    "setting",
    [
        {"num_cpus": 0}, {"num_cpus": 1000}, {"num_gpus": -1}, {"num_gpus": 1000},
        {"device": "tpu"}, {"device": "cuda"}, {"threads": 0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting):
    ((key, value),) = setting.items()
    with pytest.raises(ConfigError, match=rf"simulation\.{key}={value}"):
        engine(None, **setting)


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"simulation\.address=127\.0\.0\.1:1 "):
        engine("127.0.0.1:1").run(client_factory=RemoteFactory(tmp_path), clients=2, serve=lambda _: None)


def test_ray_is_loaded_only_where_it_runs():
    code = "import sys, fedbayes.build, fedbayes.simulation.ray; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc/self/environ, which Linux has")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "is_group", "moment"),
    [
        (signal.SIGINT, True, 2),
        (signal.SIGINT, False, 2),
        (signal.SIGTERM, False, 2),
        (signal.SIGINT, True, 0),
        (signal.SIGINT, False, 0),
    ],
)
def test_an_interrupted_run_ends_at_once_and_leaves_nothing_behind(tmp_path, sign, is_group, moment):
    """`moment` is the number of rows that the run has logged by then; 0 is while the engine starts."""
    shell, run_dir = Marked(tmp_path), tmp_path / "run"
    overrides = ["experiment=smoke", "simulation=ray", "rounds=500", "simulation.threads=1", f"run_dir={run_dir}"]
    process = shell.start(sys.executable, "-m", "fedbayes.run", *overrides, log="output")
    try:
        rows, end = run_dir / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if rows.exists() and rows.read_text().count("\n") >= moment:
                break
            time.sleep(0.02)
        time.sleep(0.0 if moment else 3.0)
        started = time.monotonic()
        os.killpg(process.pid, sign) if is_group else process.send_signal(sign)
        status = process.wait(timeout=60)
        output = (tmp_path / "output").read_text()
        assert time.monotonic() - started < 15, output
        assert status == 130, output
        assert shell.left(15) == []
    finally:
        shell.end()
    assert output.rstrip().endswith("interrupted")
    assert not (run_dir / "summary.json").exists()
    assert "interrupted" in (run_dir / "run.log").read_text()

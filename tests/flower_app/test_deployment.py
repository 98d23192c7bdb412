"""A real SuperLink and three SuperNodes as processes of their own, each with images that nobody else sees."""

import json
import signal
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from processes import BIN, Marked, free_port, run_config
from side_images import SIDES, paint

from fedbayes.storage import checkpoint

APP = Path(__file__).resolve().parents[2] / "flower_app"
DOMAINS = ["ink", "sand", "snow"]
OVERRIDES = [
    "experiment=smoke", "clients=3", "evaluate.every=2", "data=imagefolder", "data.root=null", "data.image_size=16",
    f"data.domains=[{','.join(DOMAINS)}]", f"data.classes=[{','.join(SIDES)}]", "partition=local_folder",
    "method=fedvpt", "method.client.personal=[head]", "participation=0.7",
]  # fmt: skip


class Deployment:
    """A SuperLink and its SuperNodes."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = Marked(folder, FLWR_HOME=str(folder / "home"))
        self.address = f"127.0.0.1:{free_port()}"
        (folder / "home").mkdir()
        connection = f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "{self.address}"\ninsecure = true\n'
        (folder / "home" / "config.toml").write_text(connection)
        port = self.address.partition(":")[2]
        self.started = [
            self.processes.start(BIN / "flower-superlink", "--insecure", "--port", port, log="superlink.log")
        ]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            with suppress(OSError):
                opener.open(f"http://{self.address}/health").close()
                break
            time.sleep(0.1)

    def join(self, node_config):
        words = ["--insecure", "--superlink", self.address, "--port", free_port(), "--node-config", node_config]
        self.started.append(self.processes.start(BIN / "flower-supernode", *words, log=f"node{len(self.started)}.log"))

    def run(self, overrides):
        """Submit a run and wait for it: what `flwr list` says of it, and its log."""
        file = run_config(self.folder / "run.toml", overrides=" ".join(overrides))
        submitted = self.processes.run(BIN / "flwr", "run", APP, "--run-config", file, "--stream")
        listing = self.processes.run(BIN / "flwr", "list", "--limit", "1", "--format", "json").stdout
        return json.loads(listing[listing.index("{") :])["runs"][0], submitted.stdout

    def stop(self):
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            process.wait(20)


@pytest.fixture
def deployment(tmp_path):
    running = Deployment(tmp_path)
    yield running
    running.processes.end()
    for process in running.started:
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_with_images_of_their_own_train_together(deployment, tmp_path):
    for p, domain in enumerate(DOMAINS):
        root = paint(tmp_path / f"its images {p}", domain, list(SIDES)[: 3 if p else 2])
        deployment.join(f'data-root="{root}" partition-id={p} num-partitions=3')
    run_dir = tmp_path / "run"
    status, log = deployment.run([*OVERRIDES, f"run_dir={run_dir}"])
    assert status["status"] == "finished:completed", log
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["rounds"] == 2
    assert list(summary["per_domain"]) == DOMAINS
    assert [row["partition"] for row in summary["per_client"]] == [0, 1, 2]
    assert not (run_dir / "partition.json").exists()
    assert checkpoint.latest(run_dir).personal == {}, "heads stay where they are"

    status, log = deployment.run([*OVERRIDES, "clients=2", f"run_dir={tmp_path / 'refused'}"])
    assert status["status"] == "finished:failed"
    assert "clients=2; set clients" in status["status-details"]
    assert not (tmp_path / "refused").exists()

    deployment.stop()
    assert deployment.processes.left(10) == []

"""Commands of the environment that runs the tests, marked so that whatever they leave behind can be found."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

BIN = Path(sys.executable).parent
MARK = "FEDBAYES_TEST_MARK"
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "FEDBAYES_PYTHON": sys.executable,
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


COMPILED = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / f"fedbayes-bytecode-{os.getuid()}"),
}
"""Bytecode that all commands of all tests share: each imports torch and timm, maybe from an environment without any."""


def fedbayes(*words: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What the command did in a folder, on one thread."""
    command = [sys.executable, "-m", "fedbayes.run", *words]
    env = {**os.environ, **COMPILED, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


class Marked:
    """Starts commands in a folder; `left` lists the processes, theirs and their children's, that still run."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.environment = {**os.environ, **QUIET, **COMPILED, MARK: self.mark, **environment}

    def start(self, *command: object, log: str) -> subprocess.Popen:
        with (self.folder / log).open("wb") as file:
            words = [str(word) for word in command]
            return subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )

    def run(self, *command: object) -> subprocess.CompletedProcess:
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def left(self, patience: float = 0.0) -> list[int]:
        """After at most `patience` seconds; empty where there is no `/proc` to look at."""
        end = time.monotonic() + patience
        while (pids := self._running()) and time.monotonic() < end:
            time.sleep(0.1)
        return pids

    def end(self) -> None:
        """Kill what is left, for a test that has failed."""
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)

    def _running(self) -> list[int]:
        sign = f"{MARK}={self.mark}".encode()
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if sign in path.read_bytes().split(b"\0"):
                    pids.append(int(path.parent.name))
            except OSError:
                continue
        return pids


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_config(path: Path, **values: str) -> Path:
    """A TOML file of texts."""
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path

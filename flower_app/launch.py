"""What `run.sh` does: one run on a SuperLink that is started for it and gone afterwards.

`flwr run` alone would leave a SuperLink behind, with the working directory and the variables of its first caller, and
would return 0 for a run that fails. Here the exit status is the run's: 0 completed, 1 failed, 2 refused, 130 stopped.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

from fedbayes_app.settings import configuration

from fedbayes.config.compose import resolved
from fedbayes.errors import FedbayesError, require_number, require_whole

APP = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START, STOP = 60.0, 5.0
"""Seconds for the SuperLink to answer, and for its processes to end by themselves."""


def main() -> int:
    """Run what the command line asks for."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    words = sys.argv[1:]
    overrides = words[0] if len(words) == 1 else shlex.join(words)
    try:
        cfg = configuration(overrides)
        resolved(cfg)
        nodes = {
            "num-supernodes": require_whole("clients", cfg.clients, 1),
            "client-resources-num-cpus": require_whole("simulation.num_cpus", cfg.simulation.num_cpus, 1),
            "client-resources-num-gpus": require_number("simulation.num_gpus", cfg.simulation.num_gpus, 0),
        }
    except FedbayesError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fedbayes-flower-") as home:
        run_config = {"overrides": overrides, "directory": os.getcwd()}
        try:
            return _served(Path(home), run_config, nodes)
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
            return 130


def _served(home: Path, run_config: dict[str, str], nodes: dict[str, float]) -> int:
    """Start a SuperLink, give it the run, follow its log, and stop everything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Flower takes its commands from PATH, and some proxies catch even this machine's own address.
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else Ray waits for whatever cluster was last on this machine, also for one that was killed.
        "RAY_ADDRESS": os.environ.get("RAY_ADDRESS", "local"),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        **{name: f"{os.environ.get(name, '')},127.0.0.1,localhost".lstrip(",") for name in ("NO_PROXY", "no_proxy")},
    }
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\ninsecure = true\n', encoding="utf-8"
    )
    settings = home / "run.toml"
    # JSON's text is also TOML's.
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in run_config.items())
    settings.write_text("".join(lines), encoding="utf-8")
    host, port = address.split(":")
    command: list[str | Path] = [BIN / "flower-superlink", "--insecure", "--simulation", "--host", host, "--port", port]
    with (home / "superlink.log").open("wb") as log:
        # In a session of its own Ctrl-C reaches it only through us; in a folder of its own nothing hides a package.
        superlink = subprocess.Popen(command, cwd=home, env=environment, start_new_session=True, stdout=log, stderr=log)
    try:
        if not _answers(superlink, address):
            print((home / "superlink.log").read_text(errors="replace"), file=sys.stderr)
            print("the SuperLink did not start; its log stands above.", file=sys.stderr)
            return 1
        federation = " ".join(f"{name}={value}" for name, value in nodes.items())
        run: list[str | Path] = [BIN / "flwr", "run", APP, "--stream", "--run-config", settings]
        run += ["--federation-config", federation]
        if subprocess.run(run, cwd=home, env=environment).returncode != 0:
            return 1
        return _status(home, environment)
    finally:
        _stop(superlink)


def _answers(superlink: subprocess.Popen[bytes], address: str) -> bool:
    """Whether the SuperLink has come up."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START
    while superlink.poll() is None and time.monotonic() < end:
        try:
            with direct.open(f"http://{address}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def _status(home: Path, environment: dict[str, str]) -> int:
    """How the only run of the SuperLink ended; its log can end a moment before."""
    listing: list[str | Path] = [BIN / "flwr", "list", "--format", "json"]
    end = time.monotonic() + START
    while True:
        said = subprocess.run(listing, cwd=home, env=environment, capture_output=True, text=True).stdout
        run = json.loads(said[said.index("{") :])["runs"][0]
        if run["status"].startswith("finished") or time.monotonic() > end:
            break
        time.sleep(0.5)
    if run["status"] == "finished:completed":
        return 0
    print(f"the run is {run['status']}: {run['status-details']}", file=sys.stderr)
    return 1


def _stop(superlink: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and all that it has started, Ray included; what does not go is killed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half of them
    family = {superlink.pid}
    end = time.monotonic() + STOP
    told: set[int] = set()
    while True:
        superlink.poll()
        parents = _parents()
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        alive = family & parents.keys()
        if not alive:
            return
        late = time.monotonic() > end
        for pid in alive if late else alive - told:
            try:
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            except ProcessLookupError:
                continue
        told |= alive
        time.sleep(0.1)


def _parents() -> dict[int, int]:
    """The parent of every process that has not ended; Linux containers often lack `ps`, other systems `/proc`."""
    found = {}
    if Path("/proc/self/stat").exists():
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if state not in "ZX":
                found[int(path.parent.name)] = int(parent)
        return found
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    for pid, parent, state in (line.split()[:3] for line in listing.stdout.splitlines()):
        if not state.startswith("Z"):
            found[int(pid)] = int(parent)
    return found


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (Python's signature)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

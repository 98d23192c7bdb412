"""Flower's Simulation Runtime: clients in Ray's worker processes, one machine, several GPUs or an existing cluster.

Flower owns the main thread and runs the server's side in another. It hands the ClientApp to a worker with every
message, so the app carries the configuration as text, and each worker builds backbone and client once. Facts of Flower
1.41 that shape this file: its runtime waits for its own threads when it is interrupted, so the server's thread must be
told to stop (`PolledGrid`); an actor that died goes back into its pool and fails every later message, unless Ray
restarts it.
"""

import logging
import math
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, final

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedbayes.errors import ConfigError, require_number
from fedbayes.simulation.app import client_app
from fedbayes.simulation.client import ClientFactory, ClientGrid
from fedbayes.simulation.flower_private import RESTARTS, workers_end_with_ray
from fedbayes.simulation.hardware import available_cores, choose_device, choose_threads, settle
from fedbayes.simulation.polled_grid import PolledGrid

Result = TypeVar("Result")
LAST_WORDS = 20.0
"""Seconds that the server's side has to end after an interruption."""
SILENT = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"
"""Keeps Ray from printing its C++ stack when SIGTERM ends a run; read when ray is imported."""


@final
class Ray:
    """Runs a federation on Flower's Simulation Runtime.

    Args:
        num_cpus: CPU cores of a worker; as many workers start as fit, but here no more than there are clients.
        num_gpus: GPUs of a worker; may be a fraction.
        address: of a running Ray cluster, as `HOST:PORT`, or `auto` for the one of this machine; null starts Ray here.
        device: of a worker: `cpu`, `cuda`, or `auto` for a GPU if `num_gpus` gives it one.
        threads: of torch in a worker; null for `num_cpus`.

    Raises:
        ConfigError: if a value is out of range or asks for more than the machine has.
    """

    def __init__(
        self, *, num_cpus: float, num_gpus: float, address: str | None, device: str, threads: int | None
    ) -> None:
        self.num_cpus = require_number("simulation.num_cpus", num_cpus, 0, open_low=True)
        self.num_gpus = require_number("simulation.num_gpus", num_gpus, 0)
        self.address = address
        for key, wanted, present in (
            ("num_cpus", self.num_cpus, available_cores()),
            ("num_gpus", self.num_gpus, torch.cuda.device_count()),
        ):
            if address is None and wanted > present:
                raise ConfigError(
                    f"simulation.{key}={wanted:g} is more than the {present} here, so no worker could start; lower it."
                )
        if device == "cuda" and self.num_gpus == 0:
            raise ConfigError(
                "simulation.device=cuda needs a GPU, or a fraction, for each worker; set simulation.num_gpus."
            )
        chosen = choose_device(device)
        self.device = chosen if self.num_gpus else "cpu"
        self.threads = choose_threads(threads, max(1, int(self.num_cpus)))

    def prepare(self) -> None:
        """Settle this process: the server's, and each worker's."""
        settle(self.threads)

    def run(self, *, client_factory: ClientFactory, clients: int, serve: Callable[[ClientGrid], Result]) -> Result:
        """Start the runtime, run `serve`, the server's side, in another thread, and end everything with it.

        Raises:
            ConfigError: if there is no cluster at `address`, or no worker fits into it.
        """
        from flwr.simulation import run_simulation

        stop, ended = threading.Event(), threading.Event()
        results: list[Result] = []
        failures: list[BaseException] = []
        server = ServerApp()

        @server.main()
        def main(grid: Grid, _: Context) -> None:
            try:
                results.append(serve(PolledGrid(grid, stop)))
            except BaseException as error:
                failures.append(error)
            finally:
                ended.set()

        _require_reachable(self.address)
        with _quiet(), _same_environment(), workers_end_with_ray():
            backend: Any = {
                "client_resources": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **RESTARTS},
                "init_args": self._init_args(clients),
            }
            try:
                app = client_app(lambda _: client_factory())
                run_simulation(server, app, num_supernodes=clients, backend_config=backend)
            except BaseException as error:
                stop.set()
                ended.wait(LAST_WORDS)
                with suppress(Exception):  # ends this process's Ray, however far it has come; clusters stay
                    import ray

                    ray.shutdown()
                if isinstance(error, SystemExit):  # Ray's own way to take a SIGTERM
                    raise KeyboardInterrupt from None
                self._explain(_root(error))
                raise
        if failures:
            raise failures[0]
        return results[0]

    def _init_args(self, clients: int) -> dict[str, Any]:
        """Return how Flower starts Ray here, or finds it."""
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        if self.address is not None:
            return {**quiet, "address": self.address}
        # Idle workers would cost start-up and memory.
        cores = min(available_cores(), math.ceil(clients * self.num_cpus))
        # Without "local" Ray would join whatever cluster was started last on this machine.
        return {**quiet, "address": "local", "num_cpus": cores, "num_gpus": torch.cuda.device_count()}

    def _explain(self, root: BaseException) -> None:
        """Say in one line what a user can mend; Flower wraps it twice."""
        if isinstance(root, ConnectionError):
            raise ConfigError(
                f"simulation.address={self.address} leads to no cluster; start one by `ray start --head`, or leave it "
                "null."
            ) from root
        if isinstance(root, ValueError) and str(root).startswith("ActorPool is empty"):
            raise ConfigError(
                f"no node of the cluster at simulation.address={self.address} has simulation.num_cpus="
                f"{self.num_cpus:g} and simulation.num_gpus={self.num_gpus:g} for a worker; lower them, or start "
                "nodes that have."
            ) from root


def _require_reachable(address: str | None) -> None:
    """Look whether anybody listens there: Ray would wait for minutes."""
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"simulation.address={address} is neither HOST:PORT nor auto; correct it, or leave it null.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"simulation.address={address} does not answer ({error}); start a cluster there by `ray start --head`, or "
            "leave it null."
        ) from error


def _root(error: BaseException) -> BaseException:
    """Return the first error of a chain of causes."""
    return error if error.__cause__ is None else _root(error.__cause__)


@contextmanager
def _same_environment() -> Iterator[None]:
    """Undo what Flower does to PYTHONPATH for its workers, and Ray to SIGTERM: what runs later must not inherit it."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", SILENT)}
    handler = signal.getsignal(signal.SIGTERM)
    os.environ[SILENT] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's banners off the terminal; its warnings still reach `run.log`."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("DEPRECATED FEATURE")  # fedbayes pins Flower

    logger = logging.getLogger("flwr")
    consoles = [handler for handler in logger.handlers if type(handler) is not logging.FileHandler]
    level = logger.level
    for handler in consoles:
        logger.removeHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.addFilter(is_wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.removeFilter(is_wanted)
        logger.setLevel(level)
        for handler in consoles:
            logger.addHandler(handler)

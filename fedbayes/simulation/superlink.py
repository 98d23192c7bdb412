"""The engine of a Flower App: the grid is Flower's, and clients answer wherever its SuperNodes are."""

import threading
from collections.abc import Callable
from typing import TypeVar, final

from flwr.serverapp import Grid

from fedbayes.errors import RunError
from fedbayes.simulation.client import ClientFactory, ClientGrid
from fedbayes.simulation.hardware import choose_device, choose_threads, settle
from fedbayes.simulation.polled_grid import PolledGrid

Result = TypeVar("Result")

LONGEST_PAUSE = 0.2
"""Seconds between two looks for answers, at most: each may be a request over a network."""


@final
class Served:
    """Runs a federation on a grid that a Flower ServerApp was given, simulated or deployed.

    Args:
        device: of a client's process: `cpu`, `cuda`, or `auto` for a GPU if there is one. The server needs none.
        threads: of torch on the CPU, in the server and in every client's process; null for 1.
        grid: the federation; None in a client's process, and in one that no SuperLink has started.
    """

    def __init__(self, *, device: str, threads: int | None, grid: Grid | None = None) -> None:
        self.device = choose_device(device) if grid is None else "cpu"
        self.threads = choose_threads(threads, 1)
        self._grid = grid

    def prepare(self) -> None:
        """Settle this process; results depend on the number of threads in the last bit."""
        settle(self.threads)

    def run(self, *, client_factory: ClientFactory, clients: int, serve: Callable[[ClientGrid], Result]) -> Result:  # noqa: ARG002  (the SuperNodes have both)
        """Hand the grid to `serve`, the server's side; each client's process builds its client from the overrides."""
        if self._grid is None:
            raise RunError("simulation=flower has no SuperLink here; start it with flower_app/run.sh.")
        return serve(PolledGrid(self._grid, threading.Event(), LONGEST_PAUSE))

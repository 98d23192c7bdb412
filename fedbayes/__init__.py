"""Federated Bayesian prompt tuning: simulate, load, predict, and frame, a table of runs.

`import fedbayes` is quick; what needs torch or Flower is loaded at its first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read once, when flwr is first imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

if TYPE_CHECKING:
    from fedbayes.load import load
    from fedbayes.report.frame import frame
    from fedbayes.run import simulate

__all__ = ["frame", "load", "simulate"]


def __getattr__(name: str) -> Any:
    """Load the functions where they are used."""
    modules = {"frame": "fedbayes.report.frame", "load": "fedbayes.load", "simulate": "fedbayes.run"}
    if name not in modules:
        raise AttributeError(f"module 'fedbayes' has no attribute '{name}'")
    return getattr(import_module(modules[name]), name)

"""Federated Bayesian prompt tuning: simulate, load, predict.

`import fedbayes` is quick; what needs torch or Flower is loaded at its first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbayes.results import load
    from fedbayes.run import simulate

__all__ = ["load", "simulate"]


def __getattr__(name: str) -> Any:
    """Load the two functions where they are used."""
    if name == "simulate":
        from fedbayes.run import simulate

        return simulate
    if name == "load":
        from fedbayes.results import load

        return load
    raise AttributeError(f"module 'fedbayes' has no attribute '{name}'")

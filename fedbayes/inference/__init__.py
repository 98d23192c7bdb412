"""Semi-implicit inference for Pyro. The names below load on first use, since torch and Pyro take seconds to import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbayes.inference.bounds import lower_bound, upper_bound
    from fedbayes.inference.gaussian import AmortisedNormal
    from fedbayes.inference.mixing import Pushforward
    from fedbayes.inference.reverse import GaussianReverse
    from fedbayes.inference.semi_implicit import SemiImplicitNormal

__all__ = ["AmortisedNormal", "GaussianReverse", "Pushforward", "SemiImplicitNormal", "lower_bound", "upper_bound"]

_MODULES = dict(zip(__all__, ("gaussian", "reverse", "mixing", "semi_implicit", "bounds", "bounds"), strict=True))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"fedbayes.inference has no {name}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"fedbayes.inference.{_MODULES[name]}"), name)

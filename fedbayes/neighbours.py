"""That `strategies` and `clients` are those beside this package, and not others of the same names on Python's path."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from fedbayes.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("strategies", "clients")


@lru_cache(maxsize=1)
def require_own() -> None:
    """Refuse to take methods from elsewhere: `python -m` and PYTHONPATH put other folders first.

    Raises:
        ConfigError: naming the package that is in the way.
    """
    for name in NAMES:
        spec = find_spec(name)
        if spec is None:
            raise ConfigError(f"{name} is not beside fedbayes in {ROOT}; install fedbayes again.")
        places = [Path(one).resolve() for one in spec.submodule_search_locations or ()]
        if places != [ROOT / name]:
            found = spec.origin or next(iter(places), "nowhere")
            raise ConfigError(
                f"the package {name} is taken from {found} and not from {ROOT / name}: it is first on Python's path. "
                "Use the command fedbayes instead of python -m, take that folder off PYTHONPATH, or rename it."
            )

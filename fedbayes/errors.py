"""What goes wrong because of a user's input: each error says the value, the place and the remedy.

The command prints these as one line and exits with status 2; every other exception is a fault of ours, or of a method
from elsewhere, and keeps its traceback. The functions `require_...` raise ConfigError.
"""

import math
from collections.abc import Sequence


class FedbayesError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(FedbayesError):
    """A configuration value that cannot work."""


class DataError(FedbayesError):
    """Images that are missing, unreadable or laid out in another way."""


class PartitionError(FedbayesError):
    """A division of the images that the request makes impossible."""


class BackboneError(FedbayesError):
    """A vision transformer that is unknown, unsupported or does not fit its checkpoint."""


class RunError(FedbayesError):
    """A run that cannot start, cannot go on, or cannot be read back."""


class StoppedError(RunError):
    """A run that broke off in the middle and can go on."""


def require_whole(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` if it is a whole number of at least `minimum`, and of at most `maximum` unless that is None."""
    most = math.inf if maximum is None else maximum
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= most:
        span = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ConfigError(f"{name}={value} is not a whole number {span}; give one, e.g. {name}={minimum}.")
    return value


def require_number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """Return `value` if it is a finite number in `[low, high]`, or in `(low, high]` if `open_low`."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
        and not (open_low and value == low)
    ):
        return float(value)
    span = f"{'above' if open_low else 'at least'} {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
    raise ConfigError(f"{name}={value} is out of range; it must be a finite number {span}.")


def require_bool(name: str, value: object) -> bool:
    """Return `value` if it is true or false; `no`, which YAML 1.1 would understand, is a word to Hydra."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value} is neither true nor false; choose one of them.")
    return value


def require_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}={value} is unknown; choose one of {', '.join(choices)}.")
    return value

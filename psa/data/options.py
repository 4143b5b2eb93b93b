"""The checks that options of data sets share; a message names the option as the configuration does, data.NAME."""

from collections.abc import Iterable

import numpy as np

from psa.errors import ConfigError


def require_integer(option: str, value: object, low: int, high: int | None = None) -> int:
    """The value as an int in [low, high]; ConfigError otherwise (a bool is not an integer here)."""
    if (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and low <= value <= (value if high is None else high)
    ):
        return int(value)
    support = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise ConfigError(f"data.{option}: expected an integer {support}, got {value!r}")


def require_choice(option: str, value: object, choices: Iterable[str]) -> str:
    """The value, which must be one of the choices; ConfigError otherwise."""
    if isinstance(value, str) and value in tuple(choices):
        return value
    raise ConfigError(f"data.{option}: expected one of {', '.join(choices)}, got {value!r}")


def require_share(option: str, value: object) -> float:
    """The value as a float in [0, 1]; ConfigError otherwise."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ConfigError(f"data.{option}: expected a number from 0 to 1, got {value!r}")

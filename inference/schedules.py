"""The papers' ways of training, by name: ``training.schedule``.

Each is a set of keys of ``training``. PSA and SMM have no row of their own beyond what the texts at hand say of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Value = str | int | float


@dataclass(frozen=True)
class Schedule:
    """Settings of ``training``, and where they are from."""

    settings: Mapping[str, Value]
    source: str


_SLOT_ATTENTION: Mapping[str, Value] = MappingProxyType(
    {
        "steps": 500_000,
        "batch_size": 64,
        "learning_rate": 4e-4,
        "warmup_steps": 10_000,
        "decay": "exponential",
        "half_life": 100_000,
    }
)

SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "slot-attention": Schedule(_SLOT_ATTENTION, "Locatello et al. 2020, object discovery"),
        "bo-qsa-mixture": Schedule(
            {
                "steps": 250_000,
                "batch_size": 128,
                "learning_rate": 4e-4,
                "warmup_steps": 5_000,
                "decay": "exponential",
                "half_life": 50_000,
                "noise_steps": 30_000,
            },
            "BO-QSA, table 11 (its decay steps taken as a half-life, as in Slot Attention)",
        ),
        "bo-qsa-transformer": Schedule(
            {
                "steps": 250_000,
                "batch_size": 128,
                "learning_rate": 1e-4,
                "code_learning_rate": 3e-4,
                "warmup_steps": 10_000,
                "decay": "constant",
                "noise_steps": 30_000,
            },
            "BO-QSA, table 12 (which names no decay)",
        ),
        "psa-transformer": Schedule(
            {**_SLOT_ATTENTION, "learning_rate": 1e-4},
            "PSA: at most 1e-4 with a transformer decoder, for stability; the rest is Slot Attention's",
        ),
    }
)


def schedule_settings(name: object) -> Mapping[str, Value]:
    """The keys of ``training`` that a named schedule sets.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    return SCHEDULES[name].settings

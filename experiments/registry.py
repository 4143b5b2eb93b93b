"""Every experiment by name. A test compares this list with the files beside it."""

from collections.abc import Mapping

from psa.errors import ConfigError
from psa.experiments import (
    ablation_covariance,
    aggregate_2d,
    aggregate_lemma,
    bottleneck,
    complexity,
    concatenated_slots,
    decoders,
    feature_reconstruction,
    query_initialisation,
    set_prediction,
    slot_count,
    special_cases,
    sprites_identifiability,
    transfer,
    violated_assumptions,
)
from psa.experiments.experiment import SCALES, Experiment

_MODULES = (
    special_cases,
    concatenated_slots,
    aggregate_lemma,
    aggregate_2d,
    violated_assumptions,
    sprites_identifiability,
    query_initialisation,
    ablation_covariance,
    slot_count,
    set_prediction,
    decoders,
    bottleneck,
    feature_reconstruction,
    transfer,
    complexity,
)
EXPERIMENTS: Mapping[str, Mapping[str, Experiment]] = {module.SCALES["cpu"].name: module.SCALES for module in _MODULES}


def find_experiment(name: str, scale: str) -> Experiment:
    """An experiment at a scale.

    Raises:
        ConfigError: If there is no experiment or scale of that name.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment {name}: expected one of {', '.join(EXPERIMENTS)}")
    if scale not in SCALES:
        raise ConfigError(f"--scale {scale}: expected one of {', '.join(SCALES)}")
    return EXPERIMENTS[name][scale]

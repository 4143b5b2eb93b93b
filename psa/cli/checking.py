"""What ``psa check`` computes. Apart from the command, which is imported with all others: this brings ArviZ."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import psa
from psa.cli.common import warn
from psa.data.token_files import NUMPY_SUFFIXES, read_tokens
from psa.errors import ConfigError, DataError
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.check_statistics import (
    FIT_STATISTICS,
    IMAGE_STATISTICS,
    SLOT_STATISTICS,
    TOKEN_STATISTICS,
    Family,
    Statistic,
    scene_statistics,
    token_statistics,
)
from psa.inference.checks import (
    CheckOptions,
    Statistics,
    calibrated_check,
    held_out_check,
    posterior_predictive_check,
    prior_predictive_check,
)
from psa.inference.compare import weak_prior
from psa.inference.feature_extractors import dotted_callable, named_features
from psa.inference.images import ImageSet
from psa.inference.replicates import SceneRun, TokenModel
from psa.inference.sessions import prepared_as, run_images
from psa.metrics.generation import FewImagesWarning, frechet_distance
from psa.metrics.p_values import Check

RUN_KINDS, TOKEN_KINDS = ("prior", "posterior", "calibrated"), ("posterior", "held-out", "calibrated")
NUM_RESTARTS = 4  # of a fit of tokens
CALIBRATED_REPLICATES = 39  # of each simulated data set; the number of simulations alone limits p
NUM_FRECHET, CHUNK = 1024, 128  # images on each side, at most; at once


@dataclass(frozen=True)
class Request:
    """What a user asks for; see the options of the command."""

    kinds: Sequence[str] | None
    statistics: Sequence[str] | None
    data: str | None
    split: str
    num_images: int
    num_slots: int | None
    features: str | None
    seed: int

    def chosen_kinds(self, known: tuple[str, ...], what: str) -> Sequence[str]:
        """The kinds of check; left out, the first two of those known.

        Raises:
            ConfigError: If one is not known for this subject.
        """
        for kind in self.kinds or ():
            if kind not in known:
                raise ConfigError(f"--kind {kind}: expected one of {', '.join(known)} for {what}")
        return self.kinds or known[:2]


@dataclass(frozen=True)
class Found:
    """The checks by kind, and what is known of the subject beside them."""

    checks: dict[str, list[Check]]
    about: dict[str, Any]


def run_checks(path: Path, request: Request, options: CheckOptions, progress: Callable[[str], None]) -> Found:
    """Check the tokens of a file, or images by the run of a directory.

    Raises:
        PsaError: If path, options or what they name do not fit.
    """
    pyro.set_rng_seed(request.seed)
    generator = torch.Generator().manual_seed(request.seed)
    check = _check_tokens if path.suffix in NUMPY_SUFFIXES and not path.is_dir() else _check_run
    try:
        return check(path, request, options, generator, progress)
    except ValueError as error:  # of a statistic, the user's or one that these data do not have
        raise ConfigError(f"{path}: {error}") from None


def _check_tokens(
    path: Path, request: Request, options: CheckOptions, generator: torch.Generator, progress: Callable[[str], None]
) -> Found:
    kinds = request.chosen_kinds(TOKEN_KINDS, "tokens")
    if request.num_slots is None or request.features is not None or request.data is not None:
        raise ConfigError(f"{path}: expected --slots for a file of tokens, and neither --data nor --features")
    tokens = torch.as_tensor(read_tokens(path).values)[None]
    if tokens.shape[1] < 2:
        raise DataError(f"{path}: expected at least 2 tokens, got {tokens.shape[1]}")
    model = TokenModel(weak_prior(tokens[0]), request.num_slots, num_restarts=NUM_RESTARTS)
    family = token_statistics(model, generator)
    statistics = _selected(request.statistics, TOKEN_STATISTICS, FIT_STATISTICS, family)
    checks = {
        "posterior": lambda: posterior_predictive_check(model, tokens, statistics, options, generator),
        "held-out": lambda: held_out_check(model, tokens, statistics, options, generator),
        # The prior is made from the tokens, so that it cannot calibrate.
        "calibrated": lambda: calibrated_check(model, tokens, statistics, _few(options), generator, "fit"),
    }
    return Found(_each(kinds, checks, progress), {"tokens": tokens.shape[1], "slots": request.num_slots})


def _check_run(
    path: Path, request: Request, options: CheckOptions, generator: torch.Generator, progress: Callable[[str], None]
) -> Found:
    kinds = request.chosen_kinds(RUN_KINDS, "a run")
    if request.num_slots is not None:
        raise ConfigError(f"{path}: expected --slots for a file of tokens alone, a run has its own number")
    autoencoder = psa.load(path)
    if autoencoder.config.encoder.kind == "features":
        raise ConfigError(f"{path}: it observes features, and statistics are of pixels")
    rule = autoencoder.config.decoder.relevance
    if rule != "none":
        raise ConfigError(
            f"{path}: its decoder leaves slots out (decoder.relevance = {rule}), and replicates decode all of them; "
            "set it to none in config.toml"
        )
    statistics = _selected(request.statistics, IMAGE_STATISTICS, SLOT_STATISTICS, scene_statistics(autoencoder))
    features = None if request.features is None else named_features(request.features, autoencoder)
    wanted = request.num_images if features is None else max(request.num_images, NUM_FRECHET)
    everything = run_images(autoencoder, prepared_as(autoencoder, request.data), request.split, wanted)
    images, run = everything.batch(slice(request.num_images)), SceneRun(autoencoder)
    checks = {
        "prior": lambda: prior_predictive_check(run, images, statistics, options, generator),
        "posterior": lambda: posterior_predictive_check(run, images, statistics, options, generator),
        "calibrated": lambda: calibrated_check(run, images, statistics, _few(options), generator),
    }
    about: dict[str, Any] = {"split": request.split, "images": len(images)}
    found = _each(kinds, checks, progress)
    if features is not None:
        distance = _frechet(autoencoder, everything, features)
        about |= {"features": request.features, "frechet_distance": distance, "frechet_images": len(everything)}
    return Found(found, about)


def _few(options: CheckOptions) -> CheckOptions:
    return replace(options, num_replicates=min(options.num_replicates, CALIBRATED_REPLICATES))


def _each(
    kinds: Sequence[str], checks: Mapping[str, Callable[[], dict[str, Check]]], progress: Callable[[str], None]
) -> dict[str, list[Check]]:
    found = {}
    for kind in kinds:
        found[kind] = list(checks[kind]().values())
        progress(kind)
    return found


def _selected(
    names: Sequence[str] | None, plain: Mapping[str, Statistic], costly: Sequence[str], family: Family
) -> Statistics:
    """The statistics of these names; those that need inference only if one of them is asked for.

    Raises:
        ConfigError: If a name is not known.
    """
    if names is None:
        return family
    own = {name: dotted_callable(name) for name in names if "." in name or ":" in name}
    rest = [name for name in names if name not in own]
    for name in rest:
        if name not in plain and name not in costly:
            known = ", ".join((*plain, *costly))
            raise ConfigError(f"--statistic {name}: expected package.module:function, or one of {known}")
    if not set(rest) & set(costly):
        return {name: plain[name] for name in rest} | own

    def statistics(batch: Tensor) -> dict[str, Tensor]:
        found = family(batch)
        return {name: found[name] for name in rest} | {name: function(batch) for name, function in own.items()}

    return statistics


def _frechet(autoencoder: SlotAutoencoder, images: ImageSet, features: Callable[[Tensor], Tensor]) -> float:
    """Between images and as many samples of the run."""
    parts = [slice(first, first + CHUNK) for first in range(0, len(images), CHUNK)]
    real = (images.batch(part) for part in parts)
    generated = (autoencoder.sample(len(images.images[part]))[0] for part in parts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FewImagesWarning)
        distance = frechet_distance(real, generated, features)
    for warning in caught:
        warn(str(warning.message))
    return distance

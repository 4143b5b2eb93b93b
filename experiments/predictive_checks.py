"""Claim: predictive checks catch planted misfits, and their p-values are uniform on data from the model itself.

One statistic is named for each misfit (``MISFITS``). They were chosen in a pilot on seeds 0 to 3, where the number of
slots in use of a fit with 8 slots missed the extra components, and the kurtosis within slots was unsteady on two groups
with heavy tails; so the claim is judged on other seeds (``SEEDS``). Uniformity is judged by the Kolmogorov-Smirnov test
on data sets from the prior predictive; raw posterior predictive p-values stand beside the others and fail it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.check_statistics import IMAGE_STATISTICS, TOKEN_STATISTICS, scene_statistics, token_statistics
from psa.inference.checks import (
    CheckOptions,
    calibrated_check,
    held_out_check,
    posterior_predictive_check,
    prior_predictive_check,
)
from psa.inference.config import RECIPE, override, parse_config
from psa.inference.replicates import SceneRun, TokenModel
from psa.inference.sessions import open_trainer
from psa.metrics.p_values import Check
from psa.models.local_mixture import LocalMixturePrior

MISFITS = {
    "5 components fitted with 2": "token_nearest_distance",
    "Student t, 3 degrees, fitted with a Gaussian": "token_kurtosis",
    "decoder's noise scale halved": "high_frequency_variance",
}
SEEDS = (10, 11, 12)
NUM_TOKENS, RADIUS, DEGREES = 100, 6.0, 3.0
WEAK = LocalMixturePrior(1.0, 0.0, 0.01, 1.0, 2.0)
ONCE, CALIBRATED = CheckOptions(999), CheckOptions(39, 999)

PRIOR = LocalMixturePrior(1.0, 0.0, 0.1, 2.0, 1.0)  # of the sets whose p-values are uniform
SMALL = TokenModel(PRIOR, 3, num_iterations=30)
SMALL_TOKENS = 24
SCENES = (
    "data.size=16",
    "data.num_scenes=256",
    "encoder.channels=8",
    "encoder.num_layers=1",
    "slots.num_slots=3",
    "slots.slot_dim=8",
    "slots.num_iterations=3",
    "decoder.hidden_dim=32",
    "decoder.num_layers=1",
    "objective.sigma=0.2",
    "training.num_held_out=8",
    "training.threads=1",
)
SCENE_STEPS, NUM_IMAGES = 200, 4


@dataclass(frozen=True)
class Caught:
    """One check of one planted misfit.

    Attributes:
        misfit: A key of MISFITS.
        statistic: The one named for it.
        check: The kind of check.
        observed: The statistic of the data.
        replicated: Its mean over replicates.
        spread: Its standard deviation over them.
        p_value: Two-sided.
    """

    misfit: str
    statistic: str
    check: str
    observed: float
    replicated: float
    spread: float
    p_value: float


def five_components(generator: torch.Generator) -> Float[Tensor, "1 tokens 2"]:
    """100 points of 5 unit Gaussians on a circle of radius 6."""
    angle = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    noise = torch.randn(NUM_TOKENS, 2, generator=generator, dtype=torch.float64)
    return (centres[torch.arange(NUM_TOKENS) % 5] + noise)[None]


def heavy_tails(generator: torch.Generator) -> Float[Tensor, "1 tokens 2"]:
    """100 points of two independent Student t features, 3 degrees of freedom."""
    normal = torch.randn(NUM_TOKENS, 2, generator=generator, dtype=torch.float64)
    half = torch.full((NUM_TOKENS, 2), DEGREES / 2, dtype=torch.float64)
    chi_squared = 2.0 * torch._standard_gamma(half, generator=generator)
    return (normal * (DEGREES / chi_squared).sqrt())[None]


def token_misfits(seed: int = 0) -> list[Caught]:
    """The two misfits of the local model, each by four kinds of check."""
    five, heavy, _ = MISFITS
    rows = []
    for misfit, make, model in (
        (five, five_components, TokenModel(WEAK, 2, num_restarts=4)),
        (heavy, heavy_tails, TokenModel(WEAK, 1)),
    ):
        generator = torch.Generator().manual_seed(seed)
        data = make(generator)
        statistics = {MISFITS[misfit]: TOKEN_STATISTICS[MISFITS[misfit]]}
        found = (
            posterior_predictive_check(model, data, statistics, ONCE, generator),
            held_out_check(model, data, statistics, ONCE, generator),
            calibrated_check(model, data, statistics, CALIBRATED, generator),
            calibrated_check(model, data, statistics, CALIBRATED, generator, "fit"),
        )
        rows += [_row(misfit, checks) for checks in found]
    return rows


def scene_misfit(autoencoder: SlotAutoencoder, seed: int = 0) -> list[Caught]:
    """Four images of a run's own prior predictive, checked by a copy whose noise scale is half of the run's."""
    misfit = "decoder's noise scale halved"
    torch.manual_seed(seed)
    like = torch.zeros(NUM_IMAGES, 3, *autoencoder.size)
    data = SceneRun(autoencoder).prior_draw(like)(1)[0]
    model, sigma = autoencoder.model, autoencoder.model.sigma
    statistics = {MISFITS[misfit]: IMAGE_STATISTICS[MISFITS[misfit]]}
    run, once, calibrated = SceneRun(autoencoder), replace(ONCE, pooled=True), replace(CALIBRATED, pooled=True)
    try:
        model.sigma = sigma / 2
        found = (
            prior_predictive_check(run, data, statistics, once),
            posterior_predictive_check(run, data, statistics, once),
            calibrated_check(run, data, statistics, calibrated),
        )
    finally:
        model.sigma = sigma
    return [_row(misfit, checks) for checks in found]


def _row(misfit: str, checks: Mapping[str, Check]) -> Caught:
    check = checks[MISFITS[misfit]]
    shown = check.raw or check
    return Caught(
        misfit,
        check.statistic,
        check.provenance.kind,
        float(shown.observed),
        float(shown.reference.mean()),
        float(shown.reference.std()),
        float(check.p_value),
    )


def small_run(steps: int = SCENE_STEPS, seed: int = 0) -> SlotAutoencoder:
    """The recipe, much smaller, trained for some steps on sprites of 16 x 16 pixels."""
    config = parse_config(override(RECIPE, [*SCENES, f"training.steps={steps}", f"training.seed={seed}"]))
    trainer = open_trainer(config, None)
    trainer.fit()
    return trainer.autoencoder.eval()


@dataclass(frozen=True)
class Uniformity:
    """Kolmogorov-Smirnov p-values of the p-values of one kind of check, on data from the model.

    Attributes:
        check: The kind, and of what.
        claim: What the record says of uniformity: exactly, approximately or no.
        p_values: Statistic's name to the test's p-value.
    """

    check: str
    claim: str
    p_values: dict[str, float]

    @property
    def smallest(self) -> float:
        """Over the statistics."""
        return min(self.p_values.values())


def token_uniformity(num_sets: int = 500, seed: int = 0) -> list[Uniformity]:
    """Token sets of the prior predictive, each checked by itself in four ways; all statistics."""
    generator = torch.Generator().manual_seed(seed)
    data = SMALL.prior_draw(torch.zeros(num_sets, SMALL_TOKENS, 2, dtype=torch.float64), generator)(1)[0]
    every = token_statistics(SMALL, generator)
    return [
        _tested("tokens", prior_predictive_check(SMALL, data, every, CheckOptions(99), generator)),
        _tested("tokens", calibrated_check(SMALL, data, every, CheckOptions(19, 19), generator)),
        _tested("tokens", held_out_check(SMALL, data, every, CheckOptions(99), generator)),
        _tested("tokens", posterior_predictive_check(SMALL, data, every, CheckOptions(99), generator)),
    ]


def scene_uniformity(autoencoder: SlotAutoencoder, num_sets: int = 500, seed: int = 0) -> list[Uniformity]:
    """Images of a run's own prior predictive, each checked by itself in three ways."""
    torch.manual_seed(seed)
    run = SceneRun(autoencoder)
    data = run.prior_draw(torch.zeros(num_sets, 3, *autoencoder.size))(1)[0]
    return [
        _tested("images", prior_predictive_check(run, data, scene_statistics(autoencoder), CheckOptions(39))),
        _tested("images", calibrated_check(run, data, IMAGE_STATISTICS, CheckOptions(19, 19))),
        _tested("images", posterior_predictive_check(run, data, IMAGE_STATISTICS, CheckOptions(99))),
    ]


def _tested(of: str, checks: Mapping[str, Check]) -> Uniformity:
    tests = {name: float(scipy.stats.kstest(check.p_value.numpy(), "uniform").pvalue) for name, check in checks.items()}
    first = next(iter(checks.values())).provenance
    return Uniformity(f"{first.kind}, {of}", first.uniform, tests)

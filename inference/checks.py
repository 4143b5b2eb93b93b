"""Predictive checks: does what the model makes look like the data, judged by statistics named beforehand?

Prior predictive, posterior predictive, held-out, and calibrated by simulation (docs/checks.md). Box 1980; Gelman, Meng
and Stern 1996; of the calibration, Hjort, Dahl and Steinbakk 2006.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psa.arviz import inference_data
from psa.inference.check_statistics import Family, Statistic
from psa.inference.replicates import Draw, PredictiveModel, TokenModel, fit_draw
from psa.inference.slot_inference import positive_int
from psa.metrics.p_values import TAILS, Check, Provenance, randomised_p_value, smoothed_p_value

Statistics = Mapping[str, Statistic] | Family
"""Functions of a batch by name, (B, ...) -> (B,); or one function that returns several by name."""

PRIOR = Provenance("prior predictive", "exactly", "data and replicates are draws from the same model")
POSTERIOR = Provenance(
    "posterior predictive",
    "no",
    "raw: the data were used twice, to fit and to compare, so p crowds around 1/2 and misses misfit",
)
HELD_OUT = Provenance(
    "held-out posterior predictive",
    "approximately",
    "replicated tokens were not fitted; uniform as far as the variational posterior is the model's",
)
CALIBRATED = {
    "prior": Provenance(
        "calibrated on the prior predictive",
        "exactly",
        "the rank of the raw p-value among those of data sets from the prior predictive, by the same steps",
    ),
    "fit": Provenance(
        "calibrated on the fit",
        "approximately",
        "the rank of the raw p-value among those of data sets from the posterior predictive, each fitted anew",
    ),
}
MAX_ENTRIES = 1 << 24  # numbers of replicates at once


@dataclass(frozen=True)
class CheckOptions:
    """How to check.

    Attributes:
        num_replicates: R, of every data set.
        num_simulations: S, data sets that calibrate; each is replicated R times.
        tail: two-sided, upper or lower; of every statistic.
        pooled: A statistic is averaged over the batch, which is then one data set with one p-value; otherwise every
            image of the batch is checked by itself.

    Raises:
        ValueError: If a number is below 1 or the tail is unknown.
    """

    num_replicates: int = 999
    num_simulations: int = 999
    tail: str = "two-sided"
    pooled: bool = False

    def __post_init__(self) -> None:
        positive_int("num_replicates", self.num_replicates)
        positive_int("num_simulations", self.num_simulations)
        if self.tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {self.tail!r}")


def prior_predictive_check(
    model: PredictiveModel,
    data: Tensor,
    statistics: Statistics,
    options: CheckOptions = CheckOptions(),
    generator: torch.Generator | None = None,
) -> dict[str, Check]:
    """Data beside replicates from the prior predictive; p is uniform if the data come from the model.

    Args:
        model: A TokenModel, a SceneRun, or another with their two methods.
        data: (B, ...), tokens (B, N, D) or images (B, 3, H, W) in [0, 1].
        statistics: What to compare, by name.
        options: Numbers of replicates, the tail, and whether images are pooled.
        generator: Source of the replicates, where the model takes one, and of what breaks ties.

    Raises:
        ValueError: If a statistic is not (B,) numbers, or is NaN.
    """
    return _compare(data, model.prior_draw(data, generator), statistics, options, generator, PRIOR)


def posterior_predictive_check(
    model: PredictiveModel,
    data: Tensor,
    statistics: Statistics,
    options: CheckOptions = CheckOptions(),
    generator: torch.Generator | None = None,
) -> dict[str, Check]:
    """Data beside replicates from the posterior given the same data: raw p-values, which are not uniform.

    Of a scene run also where the images are held out from training: each image's own slots are inferred from it.
    Arguments as :func:`prior_predictive_check`.
    """
    return _compare(data, model.posterior_draw(data, generator), statistics, options, generator, POSTERIOR)


def held_out_check(
    model: TokenModel,
    data: Float[Tensor, "batch tokens features"],
    statistics: Statistics,
    options: CheckOptions = CheckOptions(),
    generator: torch.Generator | None = None,
    share: float = 0.5,
) -> dict[str, Check]:
    """Tokens left out at random beside replicates from the posterior given the others.

    Arguments as :func:`prior_predictive_check`; ``share`` is that of tokens left out, in (0, 1), at least one of both.

    Raises:
        ValueError: If there are fewer than two tokens or the share is outside (0, 1).
    """
    num_tokens = data.shape[1]
    if not 0.0 < share < 1.0 or num_tokens < 2:
        raise ValueError(f"share must be in (0, 1) and tokens at least 2, got {share} and {num_tokens}")
    num_left_out = min(max(1, round(share * num_tokens)), num_tokens - 1)
    order = torch.rand(data.shape[:2], device=data.device, generator=generator).argsort(1)
    shuffled = data.gather(1, order[..., None].expand_as(data))
    left_out, rest = shuffled[:, :num_left_out], shuffled[:, num_left_out:]
    draw = fit_draw(model.fit(rest, generator), num_left_out, generator)
    return _compare(left_out, draw, statistics, options, generator, HELD_OUT)


def calibrated_check(
    model: PredictiveModel,
    data: Tensor,
    statistics: Statistics,
    options: CheckOptions = CheckOptions(),
    generator: torch.Generator | None = None,
    source: str = "prior",
) -> dict[str, Check]:
    """The rank of the raw posterior predictive p-value among those of data sets that the model made.

    Each simulated data set goes through the steps of the data: its own posterior, its own R replicates, its raw
    p-value by ``options.tail`` (:func:`~psa.metrics.p_values.smoothed_p_value`). The p-value is the share of simulated
    raw p-values that are as small. R may be far below 999: S alone limits how small p can be.

    Other arguments as :func:`prior_predictive_check`; S * R replicates are made.

    Args:
        source: ``prior``: data sets from the prior predictive, p exactly uniform on data from the model. ``fit``: from
            the posterior predictive of the data (parametric bootstrap), where the prior is too wide to tell anything.

    Raises:
        ValueError: If the source is unknown, or a statistic is not (B,) numbers.
    """
    if source not in CALIBRATED:
        raise ValueError(f"source must be one of {', '.join(CALIBRATED)}, got {source!r}")
    simulate = (model.prior_draw if source == "prior" else model.posterior_draw)(data, generator)

    def raw_checks(sets: Tensor) -> dict[str, Check]:
        draw = model.posterior_draw(sets, generator)
        return _compare(sets, draw, statistics, options, generator, POSTERIOR, len(data))

    raw = raw_checks(data)
    size = max(1, MAX_ENTRIES // (data.numel() * options.num_replicates))
    simulated: dict[str, list[Tensor]] = {name: [] for name in raw}
    for part in torch.arange(options.num_simulations).split(size):
        for name, check in raw_checks(simulate(len(part)).flatten(0, 1)).items():
            simulated[name].append(_smoothed(check).unflatten(0, (len(part), -1)))
    found = {}
    for name, check in raw.items():
        observed, reference = _smoothed(check), torch.cat(simulated[name])
        p_value = randomised_p_value(observed, reference, "lower", generator)
        found[name] = Check(name, CALIBRATED[source], options.tail, observed, reference, p_value, raw=check)
    return found


def _smoothed(check: Check) -> Tensor:
    return smoothed_p_value(check.observed, check.reference, check.tail)


def _compare(
    data: Tensor,
    draw: Draw,
    statistics: Statistics,
    options: CheckOptions,
    generator: torch.Generator | None,
    provenance: Provenance,
    num_images: int | None = None,
) -> dict[str, Check]:
    """Checks of data (S B, ...) that hold S sets of ``num_images`` = B images each, S = 1 unless said."""
    family = _family(statistics)
    group = (num_images or len(data)) if options.pooled else 1
    size = max(1, MAX_ENTRIES // data.numel())
    observed = _evaluated(family, data[None], group)
    replicates = [
        _evaluated(family, draw(len(part)), group) for part in torch.arange(options.num_replicates).split(size)
    ]
    found = {}
    for name, value in observed.items():
        reference = torch.cat([part[name] for part in replicates])
        p_value = randomised_p_value(value[0], reference, options.tail, generator)
        found[name] = Check(name, provenance, options.tail, value[0], reference, p_value)
    return found


def _family(statistics: Statistics) -> Family:
    if not isinstance(statistics, Mapping):
        return statistics
    functions = dict(statistics)
    return lambda batch: {name: function(batch) for name, function in functions.items()}


def _evaluated(family: Family, sets: Tensor, group: int) -> dict[str, Float[Tensor, "replicates batch"]]:
    """The statistics of replicates (R, B, ...), float64, each the mean of ``group`` neighbours; (R, B / group)."""
    found = {}
    for name, value in family(sets.flatten(0, 1)).items():
        if tuple(value.shape) != (len(sets) * sets.shape[1],) or value.is_complex():
            raise ValueError(
                f"statistics[{name!r}] must be a number for each of {len(sets) * sets.shape[1]} sets, "
                f"got {value.dtype} {tuple(value.shape)}"
            )
        if bool(value.isnan().any()):
            raise ValueError(f"statistics[{name!r}] must not be NaN, which has no rank")
        found[name] = value.to(torch.float64).unflatten(0, (len(sets), -1, group)).mean(-1)
    return found


def check_groups(checks: Sequence[Check], values: tuple[Tensor, Tensor] | None = None) -> Any:
    """Checks as ArviZ groups, for ``arviz.plot_ppc`` and ``arviz.plot_bpv``.

    The statistics of replicates are in prior_predictive or posterior_predictive, one chain of R draws, those of the
    data in observed_data, both with the axis image; of a simulation-calibrated check those of the raw one. The note
    ``p_values`` is JSON: name to kind, tail, whether p is uniform, and p.

    Args:
        checks: With different names, of one kind and one number of replicates.
        values: Data (B, ...) and replicates (R, B, ...) themselves, to be added as ``values``.

    Raises:
        ValueError: If there is no check, or kinds are mixed.
    """
    if not checks or len({check.provenance.kind for check in checks}) > 1:
        raise ValueError(f"checks must be some of one kind, got {sorted({c.provenance.kind for c in checks})}")
    group = "prior_predictive" if checks[0].provenance == PRIOR else "posterior_predictive"
    sources = [check.raw or check for check in checks]
    observed = {check.statistic: check.observed.cpu() for check in sources}
    replicated = {check.statistic: check.reference[None].cpu() for check in sources}
    dims = {name: ["image"] for name in observed}
    if values is not None:
        observed["values"], replicated["values"] = values[0].cpu(), values[1][None].cpu()
        dims["values"] = ["image", *(f"axis_{index}" for index in range(1, values[0].ndim))]
    notes = {
        check.statistic: {
            "kind": check.provenance.kind,
            "tail": check.tail,
            "uniform": check.provenance.uniform,
            "p_value": check.p_value.tolist(),
        }
        for check in checks
    }
    return inference_data({group: replicated, "observed_data": observed}, dims, attrs={"p_values": json.dumps(notes)})

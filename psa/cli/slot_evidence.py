"""What ``psa slots`` computes. Apart from the command, which is imported with all others: this brings ArviZ."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from psa.arviz import write_netcdf
from psa.data.token_files import Tokens
from psa.errors import ConfigError
from psa.inference.compare import (
    METHODS,
    CountDraws,
    CountEvidence,
    compare_slot_counts,
    occupied_distribution,
    predict_left_out,
    variational_draws,
    weak_prior,
)
from psa.inference.enumeration import MAX_ASSIGNMENTS
from psa.inference.fits import LocalMixtureFit
from psa.inference.nuts import MixtureStart, diagnose, sample_posterior
from psa.permanent import MAX_SIZE
from psa.report.slot_counts import SlotCounts

DRAWS = ("variational", "nuts", "none")
MAX_DEFAULT = 8
MAX_CONCENTRATION = 1e6  # far above it counts are lost in rounding
NUM_CHAINS, NUM_DRAWS, NUM_WARMUP = 4, 250, 250  # of NUTS: as many draws as variational_draws makes
MAX_ENTRIES = 1 << 26  # draws x slots x tokens; a few arrays of so many numbers are in memory at once

Progress = Callable[[str, int], None]
"""Called with what is being done and the number of slots for which it is."""


@dataclass(frozen=True)
class Settings:
    """What a user asks for.

    Attributes:
        max_slots: Kmax; None for 8, or the number of tokens if that is smaller.
        method: Of the evidence, one of METHODS.
        draws: Where posterior draws come from, one of DRAWS.
        concentration: alpha0 > 0, at most 1e6.
        seed: Of all random numbers.

    Raises:
        ConfigError: If a value is outside its support.
    """

    max_slots: int | None
    method: str
    draws: str
    concentration: float
    seed: int

    def __post_init__(self) -> None:
        for option, value, choices in (("--method", self.method, METHODS), ("--draws", self.draws, DRAWS)):
            if value not in choices:
                raise ConfigError(f"{option} {value}: expected one of {', '.join(choices)}")
        if not 0 < self.concentration <= MAX_CONCENTRATION:
            limits = f"a number above 0, at most {MAX_CONCENTRATION:g}"
            raise ConfigError(f"--concentration {self.concentration:g}: expected {limits}")

    @property
    def stages(self) -> tuple[str, ...]:
        """What :func:`compare_slots` goes through, for every K."""
        return ("evidence",) if self.draws == "none" else ("evidence", "draws")

    def num_counts(self, num_tokens: int) -> int:
        """Kmax for so many tokens.

        Raises:
            ConfigError: If there are fewer tokens than slots, or more of both than the method or the draws can take.
        """
        if self.max_slots is not None and self.max_slots > num_tokens:
            raise ConfigError(f"--max {self.max_slots}: expected at most the number of tokens, {num_tokens}")
        most = self.max_slots or min(MAX_DEFAULT, num_tokens)
        if self.method == "exact" and num_tokens * math.log2(most) > math.log2(MAX_ASSIGNMENTS):
            allowed = math.floor(MAX_ASSIGNMENTS ** (1 / num_tokens) + 1e-9)
            raise ConfigError(
                f"--method exact: {most} slots of {num_tokens} tokens have more than {MAX_ASSIGNMENTS} assignments, "
                f"expected at most --max {allowed}, or another method"
            )
        if most > MAX_SIZE and (self.method == "importance" or self.draws == "variational"):
            raise ConfigError(
                f"--max {most}: expected at most {MAX_SIZE} with --method importance or --draws variational, "
                "which sum over the orders of slots"
            )
        allowed = MAX_ENTRIES // (NUM_CHAINS * NUM_DRAWS * most)
        if num_tokens > allowed and (self.draws != "none" or self.method == "annealed"):
            raise ConfigError(
                f"--max {most}: expected at most {allowed} tokens, since draws and annealing hold much for each "
                f"in memory, got {num_tokens}; --draws none --method variational takes more"
            )
        return most


@dataclass(frozen=True)
class Prediction:
    """How draws at one K predict each token from the others, and what the draws are worth; elpd in nats."""

    elpd: float
    elpd_se: float
    pareto_k: float
    draws_pareto_k: float | None = None  # of variational draws
    rhat: float | None = None  # of NUTS, over quantities that need no relabelling
    divergent: int | None = None


@dataclass(frozen=True)
class Found:
    """The evidence of K = 1..Kmax slots of one image, with a prediction of each K where there are draws."""

    tokens: Tokens
    settings: Settings
    evidence: CountEvidence
    occupied: Float[Tensor, " counts_and_none"]
    predictions: list[Prediction]

    @property
    def best(self) -> int:
        """The likeliest K."""
        return int(self.evidence.best[0])

    def record(self) -> dict[str, Any]:
        """Plain numbers for JSON; None where one is not finite."""
        num_tokens, num_features = self.tokens.values.shape
        settings = {name: value for name, value in vars(self.settings).items() if name != "max_slots"}
        return {
            "tokens": num_tokens,
            "features": num_features,
            **settings,
            "best": self.best,
            "best_occupied": int(self.occupied.argmax()),
            "occupied": self.occupied.tolist(),
            "counts": self._rows(),
        }

    def _rows(self) -> list[dict[str, Any]]:
        columns = {
            "log_evidence": self.evidence.log_evidence,
            "standard_error": self.evidence.standard_error,
            "failed": self.evidence.failed,
            "bound": self.evidence.bound,
            "probability": self.evidence.posterior,
        }
        rows = []
        for index in range(len(self.evidence.fits)):
            row: dict[str, Any] = {"num_slots": index + 1} | {
                name: _plain(value[0, index].item()) for name, value in columns.items()
            }
            if self.predictions:
                prediction = vars(self.predictions[index])
                row |= {name: _plain(value) for name, value in prediction.items() if value is not None}
                row["netcdf"] = netcdf_name(index + 1)
            rows.append(row)
        return rows

    def view(self) -> SlotCounts:
        """For the picture."""
        fit, evidence = self.evidence.fits[self.best - 1], self.evidence
        return SlotCounts(
            log_evidence=evidence.log_evidence[0].numpy(),
            standard_error=evidence.standard_error[0].numpy(),
            failed=evidence.failed[0].numpy(),
            bound=evidence.bound[0].numpy(),
            probability=evidence.posterior[0].numpy(),
            occupied=self.occupied.numpy(),
            tokens=self.tokens.values,
            labels=fit.labels[0].numpy(),
            loc=fit.loc[0].numpy(),
            scale=fit.slot_posterior().var[0].sqrt().numpy(),
            picture=self.tokens.picture,
        )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def netcdf_name(num_slots: int) -> str:
    """The file of the draws at one K."""
    return f"slots-{num_slots}.nc"


def compare_slots(tokens: Tokens, settings: Settings, folder: Path, progress: Progress) -> Found:
    """Compare K = 1..Kmax; the draws of each K become a netCDF file in ``folder``.

    Raises:
        ConfigError: If the settings do not fit the tokens.
    """
    most = settings.num_counts(len(tokens.values))
    generator = torch.Generator().manual_seed(settings.seed)
    pyro.set_rng_seed(settings.seed)
    values = torch.from_numpy(tokens.values)
    prior = weak_prior(values, settings.concentration)
    evidence = compare_slot_counts(
        values[None], prior, most, settings.method, generator=generator, progress=lambda k: progress("evidence", k)
    )
    occupied = occupied_distribution(values[None], prior, most, generator=generator)[0]
    predictions = []
    for num_slots, fit in enumerate(evidence.fits, start=1):
        if settings.draws != "none":
            found, prediction = _predict(fit, settings, generator)
            write_netcdf(found.data, folder / netcdf_name(num_slots))
            predictions.append(prediction)
            progress("draws", num_slots)
    return Found(tokens, settings, evidence, occupied, predictions)


def _predict(fit: LocalMixtureFit, settings: Settings, generator: torch.Generator) -> tuple[CountDraws, Prediction]:
    if settings.draws == "variational":
        draws, pareto_k = variational_draws(fit, NUM_CHAINS * NUM_DRAWS, generator)
        found = predict_left_out(fit, draws, pareto_k, generator)
        return found, Prediction(found.loo.elpd, found.loo.se, found.loo.max_pareto_k, draws_pareto_k=pareto_k)
    weights = fit.concentration / fit.concentration.sum(-1, keepdim=True)
    start = MixtureStart(weights, fit.loc, fit.slot_posterior().var.reciprocal())
    sampled = sample_posterior(
        fit.tokens,
        fit.prior,
        fit.loc.shape[1],
        num_samples=NUM_DRAWS,
        num_warmup=NUM_WARMUP,
        num_chains=NUM_CHAINS,
        initial=start,
        seed=settings.seed,
    )
    found = predict_left_out(fit, sampled.draws, generator=generator)
    rhat = float(diagnose(sampled.draws, fit.tokens).label_free_rhat)
    return found, Prediction(
        found.loo.elpd, found.loo.se, found.loo.max_pareto_k, rhat=rhat, divergent=sampled.num_divergent
    )

"""The evidence: exact by enumeration, estimates held to it, and failures that are told."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import oracles
import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.inference import importance
from psa.inference.evidence import (
    METHODS,
    EvidenceEstimate,
    EvidenceWarning,
    exact_log_evidence,
    log_evidence,
)
from psa.inference.fits import LocalMixtureFit
from psa.inference.gibbs import Problem
from psa.inference.importance import Proposal
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

PRIOR = oracles.Prior(alpha=0.6, loc=0.4, strength=0.3, shape=1.4, rate=0.7)
OURS = LocalMixturePrior(PRIOR.alpha, PRIOR.loc, PRIOR.strength, PRIOR.shape, PRIOR.rate)
WIDE = LocalMixturePrior(1.0, 0.0, 0.01, 1.0, 1.0)
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(num_tokens: int, num_groups: int, dim: int, apart: float, seed: int) -> Tensor:
    """(N, D), groups of scale 1 whose centres have scale ``apart``, of equal sizes."""
    centres = apart * draw(num_groups, dim, seed=seed)
    return centres[torch.arange(num_tokens) % num_groups] + draw(num_tokens, dim, seed=seed + 1)


def three_far_clusters() -> Tensor:
    """(9, 2), so far apart that the prior never draws another labelling of them by chance."""
    centres = torch.tensor([[-30.0, 0.0], [0.0, 30.0], [30.0, 0.0]], dtype=torch.float64)
    return centres.repeat(3, 1) + draw(9, 2, seed=5)


def overlapping() -> Tensor:
    """(1, 60, 6), four groups within each other: much to find for few draws."""
    return clusters(60, 4, 6, 1.0, seed=0)[None]


def quietly(call: Callable[[], EvidenceEstimate]) -> EvidenceEstimate:
    """What comes back, where a warning says no more than ``failed``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        return call()


def log_factorial(number: int) -> float:
    return math.lgamma(number + 1)


# the exact evidence


@given(
    num_tokens=st.integers(1, 5),
    num_slots=st.integers(1, 3),
    dim=st.integers(1, 2),
    seed=st.integers(0, 10_000),
    kept=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_exact_evidence_is_the_sum_over_assignments_of_the_tokens_kept(
    num_tokens: int, num_slots: int, dim: int, seed: int, kept: list[bool]
):
    tokens, mask = 2 * draw(2, num_tokens, dim, seed=seed), torch.ones(2, num_tokens, dtype=torch.bool)
    mask[1, 1:] = torch.tensor(kept)[: num_tokens - 1]
    padded = tokens.masked_fill(~mask[..., None], math.nan)
    found = exact_log_evidence(padded, OURS, num_slots, mask)
    for b in range(2):
        assert_close(found[b], oracles.exact_log_evidence(tokens[b, mask[b]], PRIOR, num_slots))


def test_exact_evidence_of_one_slot_is_in_closed_form():
    tokens = draw(2, 50, 2, seed=0)
    expected = [sum(oracles.log_predictive(image[:, d].tolist(), PRIOR) for d in range(2)) for image in tokens]
    assert_close(exact_log_evidence(tokens, OURS, 1), torch.tensor(expected, dtype=torch.float64))


def test_exact_evidence_does_not_depend_on_the_order_of_tokens():
    tokens = draw(1, 7, 2, seed=1)
    for covariance in ("diagonal", "full"):
        found = exact_log_evidence(tokens.flip(1), OURS, 3, covariance=covariance)
        assert_close(found, exact_log_evidence(tokens, OURS, 3, covariance=covariance))


def test_exact_evidence_counts_the_tokens_kept():
    mask = torch.ones(1, 30, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"at most 2\^20 for enumeration, got 2 \*\* 30; log_evidence estimates it"):
        exact_log_evidence(draw(1, 30, 1, seed=2), OURS, 2, mask)
    mask[:, 8:] = False
    assert bool(torch.isfinite(exact_log_evidence(draw(1, 30, 1, seed=2), OURS, 2, mask)).all())


# the estimates


@dataclass(frozen=True)
class Case:
    """Two images, separated and overlapping, under one prior."""

    num_slots: int
    dim: int
    alpha0: float

    @property
    def prior(self) -> LocalMixturePrior:
        return LocalMixturePrior(self.alpha0, 0.0, 0.1, 1.0, 1.0)

    @property
    def tokens(self) -> Tensor:
        num_tokens, groups, seed = 11 - self.num_slots, max(2, self.num_slots), 10 * self.num_slots + self.dim
        return torch.stack([clusters(num_tokens, groups, self.dim, apart, seed) for apart in (6.0, 1.0)])


CASES = [Case(*sizes) for sizes in itertools.product((1, 2, 3), (1, 2), (0.1, 1.0))]


@EACH_METHOD
def test_estimates_agree_with_enumeration_and_no_miss_is_silent(method: str):
    away, failed = [], []
    for case in CASES:
        exact = exact_log_evidence(case.tokens, case.prior, case.num_slots)
        found = quietly(lambda c=case: log_evidence(c.tokens, c.prior, c.num_slots, method, 2048, generator=seeded()))
        away.append((found.log_evidence - exact).abs() / found.standard_error.clamp(min=1e-12 * exact.abs()))
        failed.append(found.failed)
        assert found.method == method
    missed = torch.cat(away) > 4.0
    assert len(missed) >= 20
    assert int(missed.sum()) <= 1
    assert bool(torch.cat(failed)[missed].all()), "a miss was silent"
    assert int(torch.cat(failed).sum()) <= 2, "small problems that fail"


@EACH_METHOD
def test_misses_of_few_draws_are_not_silent(method: str):
    silent = 0
    prior = LocalMixturePrior(1.0, 0.0, 0.1, 1.0, 1.0)
    for seed in range(8):
        tokens = clusters(10, 3, 2, 1.0, seed=100 * seed)[None]
        exact = exact_log_evidence(tokens, prior, 3)
        tokens = tokens.expand(10, -1, -1)
        found = quietly(lambda t=tokens, s=seed: log_evidence(t, prior, 3, method, 1024, generator=seeded(s)))
        missed = (found.log_evidence - exact).abs() > 4.0 * found.standard_error
        silent += int((missed & ~found.failed).sum())
    assert silent <= 1, f"{silent} of 80 estimates are more than 4 standard errors away and not marked as failed"


@pytest.mark.parametrize("symmetrised", [True, False])
def test_one_labelling_alone_is_low_by_log_of_their_number_and_nothing_shows_it(
    symmetrised: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importance, "NUM_FITS", 1)
    if not symmetrised:

        def identity(match: Tensor) -> Tensor:
            """K! times what was drawn from, of which log_density takes the mean over K! relabellings."""
            return match.diagonal(dim1=-2, dim2=-1).sum(-1) + log_factorial(match.shape[-1])

        monkeypatch.setattr(importance, "log_permanent", identity)
    tokens = three_far_clusters()[None]
    found = log_evidence(tokens, WIDE, 3, "importance", 1000, generator=seeded())
    lost = 0.0 if symmetrised else log_factorial(3)
    assert abs(float(found.log_evidence - exact_log_evidence(tokens, WIDE, 3)) + lost) < 0.1
    assert not bool(found.failed)
    assert float(found.diagnostic) < 0.5


def test_annealed_evidence_of_separated_clusters_is_that_of_the_fit():
    centres = torch.tensor([[-12.0, 0.0], [0.0, 12.0], [12.0, 0.0]], dtype=torch.float64)
    tokens = (centres.repeat(20, 1) + draw(60, 2, seed=3))[None]
    found = log_evidence(tokens, WIDE, 3, "annealed", 512, generator=seeded())
    fit = fit_local_mixture(tokens, WIDE, 3)
    assert isinstance(fit, LocalMixtureFit)
    away = found.log_evidence - (fit.elbo + log_factorial(3))
    assert not bool(found.failed)
    # the mean field loses little where clusters do not touch
    assert abs(float(away)) < STANDARD_ERRORS * float(found.standard_error) + 0.1


def narrow(problem: Problem, *_: object) -> list[Proposal]:
    """As if far more tokens had been seen."""
    sums = 60.0 * problem.features.sum(-1)[:, None].expand(-1, problem.num_slots, -1)
    return [importance._given_sums(problem, sums)]


def test_importance_with_narrow_proposals_fails_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "_fitted", lambda _, __, problem, *___: narrow(problem))
    monkeypatch.setattr(importance, "_given_assignments", narrow)
    message = (
        r"importance evidence of 2 slots failed on 2 of 2 images: "
        r"Pareto k up to (\d+\.\d\d|inf), 0.7 is the most to trust"
    )
    with pytest.warns(EvidenceWarning, match=message):
        found = log_evidence(clusters(30, 2, 3, 2.0, seed=0).expand(2, -1, -1), OURS, 2, generator=seeded())
    assert bool(found.failed.all())
    assert bool((found.diagnostic >= 0.7).all())


def test_annealing_with_few_particles_fails_and_says_so():
    tokens = torch.cat([overlapping(), torch.zeros(1, 60, 6, dtype=torch.float64)])
    message = r"annealed evidence of 4 slots failed on 1 of 2 images: standard error up to [01]\.\d\d, 0.5 is the most"
    with pytest.warns(EvidenceWarning, match=message):
        found = log_evidence(tokens, LocalMixturePrior(1.0, 0.0, 0.1), 4, "annealed", 64, generator=seeded())
    assert found.failed.tolist() == [True, False]
    assert torch.equal(found.diagnostic, found.standard_error)
    assert bool((found.diagnostic > 0.5).equal(found.failed))
    assert bool(torch.isfinite(found.log_evidence).all())


def test_an_estimate_that_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch):
    likelihood = importance.log_likelihood
    monkeypatch.setattr(importance, "log_likelihood", lambda *given: likelihood(*given) - math.inf)
    with pytest.warns(EvidenceWarning, match="failed on 1 of 1 images"):
        found = log_evidence(draw(1, 4, 1, seed=4), OURS, 2, "importance", 100, generator=seeded())
    assert bool(found.failed.all())


@EACH_METHOD
def test_masked_tokens_count_nowhere_whatever_they_hold(method: str):
    tokens, mask = draw(2, 7, 1, seed=5), torch.ones(2, 7, dtype=torch.bool)
    mask[0, 2], mask[1, 4:] = False, False
    padded = tokens.masked_fill(~mask[..., None], math.nan)
    found = log_evidence(padded, OURS, 2, method, 2048, mask=mask, generator=seeded())
    away = (found.log_evidence - exact_log_evidence(padded, OURS, 2, mask)).abs()
    assert bool((away <= STANDARD_ERRORS * found.standard_error).all())


@EACH_METHOD
def test_estimates_repeat_by_their_generator_and_leave_the_global_one_alone(method: str):
    tokens, before = draw(2, 5, 1, seed=6), torch.get_rng_state()
    first, second, other = (
        quietly(lambda s=s: log_evidence(tokens, OURS, 2, method, 128, generator=seeded(s))) for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.log_evidence, second.log_evidence)
    assert torch.equal(first.diagnostic, second.diagnostic)
    assert not torch.equal(first.log_evidence, other.log_evidence)


@EACH_METHOD
def test_evidence_is_estimated_on_every_device(method: str, device: torch.device):
    tokens, generator = draw(1, 5, 1, seed=7).to(device), torch.Generator(device).manual_seed(0)
    found = log_evidence(tokens, OURS, 2, method, 1024, generator=generator)
    exact = exact_log_evidence(tokens, OURS, 2)
    assert found.log_evidence.device.type == exact.device.type == device.type
    assert bool(((found.log_evidence - exact).abs() <= STANDARD_ERRORS * found.standard_error).all())


@EACH_METHOD
def test_arguments_outside_their_support_are_refused(method: str):
    tokens = draw(2, 4, 1, seed=8)
    with pytest.raises(ValueError, match="tokens must be finite, token 2 of image 1 is not"):
        log_evidence(tokens.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan).double()), OURS, 2)
    with pytest.raises(ValueError, match=r"num_samples must be .*, got 50"):
        log_evidence(tokens, OURS, 2, method, 50)
    for num_slots in (0, -1):
        with pytest.raises(ValueError, match=f"num_slots must be .*, got {num_slots}"):
            log_evidence(tokens, OURS, num_slots, method, 128)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of importance, annealed, got 'laplace'"):
        log_evidence(draw(1, 4, 1, seed=8), OURS, 2, "laplace")

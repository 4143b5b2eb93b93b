"""The number of slots: every method against enumeration; leave-one-out against the ratio of exact evidences."""

import pytest
import torch
from contracts import draw
from tolerances import ALGEBRA, assert_close, assert_mean_is
from torch import Tensor

from psa.inference.compare import (
    METHODS,
    compare_slot_counts,
    occupied_distribution,
    predict_left_out,
    variational_draws,
    weak_prior,
)
from psa.inference.enumeration import enumerate_posterior
from psa.inference.evidence import exact_log_evidence
from psa.inference.fits import LocalMixtureFit
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior


def groups(num_tokens: int = 9, distance: float = 12.0) -> Tensor:
    """(1, N, 2): two groups far apart."""
    return draw(1, num_tokens, 2, seed=1) + distance * (torch.arange(num_tokens) % 2)[None, :, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(tokens: Tensor, prior: LocalMixturePrior, num_slots: int, mask: Tensor | None = None) -> LocalMixtureFit:
    fit = fit_local_mixture(tokens, prior, num_slots, num_restarts=8, mask=mask, generator=seeded())
    assert isinstance(fit, LocalMixtureFit)
    return fit


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_exact_evidence_of_every_count(method: str):
    tokens = groups()
    prior = weak_prior(tokens[0])
    found = compare_slot_counts(tokens, prior, 3, method, num_samples=1024, generator=seeded())
    exact = torch.stack([exact_log_evidence(tokens, prior, k) for k in (1, 2, 3)], dim=1)
    off = (found.log_evidence - exact).abs()
    if method == "variational":
        assert bool((off < 1.0).all())
    else:
        assert bool((off <= 6 * found.standard_error + ALGEBRA * exact.abs()).all())
        assert not bool(found.failed.any())
    assert bool((found.bound <= exact + ALGEBRA).all())
    assert_close(found.posterior.sum(), 1.0)
    assert_close(found.posterior, found.log_evidence.exp() / found.log_evidence.exp().sum())
    assert found.best.tolist() == [2]
    assert [fit.loc.shape[1] for fit in found.fits] == [1, 2, 3]


def test_masked_tokens_do_not_count():
    tokens = groups(8)
    prior = weak_prior(tokens[0])
    padded = torch.cat([tokens, torch.full((1, 3, 2), torch.nan)], dim=1)
    mask = torch.arange(11)[None] < 8
    one, other = (
        compare_slot_counts(t, prior, 2, "exact", mask=m, generator=seeded())
        for t, m in ((tokens, None), (padded, mask))
    )
    assert_close(one.log_evidence, other.log_evidence)
    with pytest.raises(ValueError, match="max_slots must be at most the number of tokens, 8, got 9"):
        compare_slot_counts(padded, prior, 9, mask=mask)


def test_what_cannot_be_compared_is_refused():
    tokens = groups()
    with pytest.raises(ValueError, match="method must be one of variational, importance, annealed, exact, got 'waic'"):
        compare_slot_counts(tokens, weak_prior(tokens[0]), 2, "waic")
    with pytest.raises(ValueError, match="max_slots must be at most the number of tokens, 9, got 10"):
        compare_slot_counts(tokens, weak_prior(tokens[0]), 10)


def test_progress_is_told_of_every_count():
    seen: list[int] = []
    compare_slot_counts(groups(), weak_prior(groups()[0]), 3, "variational", generator=seeded(), progress=seen.append)
    assert seen == [1, 2, 3]


def test_the_weak_prior_moves_and_scales_with_the_tokens():
    tokens = groups()[0]
    prior, moved = weak_prior(tokens), weak_prior(torch.tensor([2.0, 5.0]) * tokens + 3.0)
    assert_close(moved.loc, torch.tensor([2.0, 5.0]) * prior.loc + 3.0)
    assert_close(moved.precision_rate, torch.tensor([4.0, 25.0]) * prior.precision_rate)
    scale = torch.tensor([2.0, 5.0]).double().log().sum() * len(tokens)
    one = exact_log_evidence(tokens[None], prior, 2)
    other = exact_log_evidence((torch.tensor([2.0, 5.0]) * tokens + 3.0)[None], moved, 2)
    assert_close(other, one - scale)


def test_the_weak_prior_has_a_scale_where_an_axis_has_none():
    tokens = torch.stack([torch.arange(5.0), torch.full((5,), 3.0)], dim=1)
    assert_close(weak_prior(tokens).precision_rate, torch.tensor([0.2, 0.2], dtype=torch.float64))
    assert_close(weak_prior(torch.zeros(4, 2)).precision_rate, torch.tensor([0.1, 0.1], dtype=torch.float64))


def test_a_sparse_fit_occupies_the_slots_that_are_needed():
    tokens = groups(60)
    share = occupied_distribution(tokens, weak_prior(tokens[0]), 5, num_samples=50, generator=seeded())
    assert share.shape == (1, 6)
    assert_close(share.sum(), 1.0)
    assert float(share[0, 2]) > 0.9


@pytest.mark.parametrize("distance", [1.0, 8.0])
def test_variational_draws_have_the_exact_posteriors_expectations(distance: float):
    tokens = groups(8, distance)
    prior = LocalMixturePrior(1.0, 0.0, 0.1, 2.0, 1.0)
    draws, pareto_k = variational_draws(fitted(tokens, prior, 2), 4000, seeded())
    exact = enumerate_posterior(tokens[0], prior, 2).draws(40_000, seeded(1)).label_free(tokens)
    for name, values in draws.label_free(tokens).items():
        assert values.shape == (1, 4, 1000)
        assert_mean_is(values.flatten(), float(exact[name].mean()))
    assert pareto_k == pareto_k


@pytest.mark.parametrize("masked", [False, True])
def test_leave_one_out_is_the_ratio_of_exact_evidences(masked: bool):
    tokens = groups(8, 6.0)
    mask = torch.arange(8)[None] < 7 if masked else None
    prior = LocalMixturePrior(1.0, 0.0, 0.1, 3.0, 2.0)
    fit = fitted(tokens, prior, 2, mask)
    draws, pareto_k = variational_draws(fit, 4000, seeded())
    found = predict_left_out(fit, draws, pareto_k, seeded())
    kept = tokens[0] if mask is None else tokens[0, mask[0]]
    whole = enumerate_posterior(kept, prior, 2).log_evidence
    without = [enumerate_posterior(kept[torch.arange(len(kept)) != n], prior, 2).log_evidence for n in range(len(kept))]
    exact = sum(float(whole - rest) for rest in without)
    assert abs(found.loo.elpd - exact) < 0.25
    assert found.pareto_k == pareto_k
    assert len(found.loo.pareto_k) == len(kept)

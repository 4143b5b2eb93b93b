"""The experiments behind docs/evidence.md, at tiny sizes."""

from dataclasses import asdict

import pytest
import torch
from tolerances import assert_close

from psa.experiments import calibrated_ranks, evidence_recovery, local_bayes
from psa.experiments.tables import markdown


def test_separated_sets_are_apart_and_run_through_the_counts():
    tokens, counts = evidence_recovery.separated_sets(10, 8.0, torch.Generator().manual_seed(0))
    assert tokens.shape == (10, evidence_recovery.NUM_TOKENS, 2)
    assert counts.tolist() == [1, 2, 3, 4, 5] * 2
    # with one cluster the deviation is 1; with more, the distance between centres shows
    assert bool(((tokens[0].std(0) > 0.8) & (tokens[0].std(0) < 1.2)).all())
    assert float(tokens[1].std(0).max()) > 2.0


def test_recovery_is_right_on_far_clusters_and_its_shares_are_shares(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evidence_recovery, "NUM_TOKENS", 60)
    monkeypatch.setattr(evidence_recovery, "MAX_SLOTS", 4)
    monkeypatch.setattr(evidence_recovery, "MAX_TRUE", 3)
    found = evidence_recovery.recovery(12.0, num_sets=3)
    assert found.chosen == found.occupied == 1.0
    assert found.over == 0.0
    assert 0.5 < found.mean_probability <= 1.0


def test_reliability_counts_every_pair_once_and_knows_a_perfect_forecast():
    truth = torch.tensor([1, 2, 2, 3])
    certain = torch.nn.functional.one_hot(truth - 1, 3).double()
    bins = evidence_recovery.reliability(certain, truth)
    assert sum(one.pairs for one in bins) == 12
    assert sum(one.observed for one in bins) == 4
    assert bins[-1].observed == bins[-1].pairs == 4
    wrong = evidence_recovery.reliability(torch.tensor([[0.9, 0.1]] * 50).double(), torch.full((50,), 2))
    assert max(abs(one.z) for one in wrong) > 10


def test_sets_from_the_prior_have_its_moments():
    prior = evidence_recovery.CALIBRATION_PRIOR
    tokens, counts = evidence_recovery.prior_sets(3000, 4, 2, prior, torch.Generator().manual_seed(0))
    assert set(counts.tolist()) == {1, 2}
    # a token is Student t with 2 a0 = 4 degrees of freedom about 0: its quartiles are known
    import scipy.stats

    scale = (1.0 / 2.0 * (1.0 + 1.0 / prior.loc_strength)) ** 0.5
    share = float((tokens[:, 0, 0].abs() < scipy.stats.t(4, 0, scale).ppf(0.75)).double().mean())
    assert abs(share - 0.5) < 6 * (0.25 / 3000) ** 0.5


def test_ranks_are_uniform_for_exact_draws_and_not_for_the_mean_field(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrated_ranks, "NUM_TOKENS", 8)
    monkeypatch.setattr(calibrated_ranks, "NUM_SLOTS", 2)
    exact, narrow = (calibrated_ranks.ranks_of(name, 300) for name in ("exact", "variational"))
    assert exact.smallest > 0.001
    assert narrow.smallest < 0.001
    assert all(bool(((rank >= 0) & (rank <= calibrated_ranks.NUM_RANKS)).all()) for rank in exact.ranks.values())


def test_a_row_against_enumeration_and_its_table():
    prior = local_bayes.LocalMixturePrior(0.1, 0.0, 0.05, 1.0, 1.0)
    row = local_bayes.against_exact("one cluster", local_bayes.two_groups(6, 1, 0.0, 3), prior, 3)
    assert row.elbo <= row.bound <= 0
    assert_close(row.elbo_log_factorial - row.elbo, float(torch.tensor(6.0).double().log()))
    text = markdown([asdict(row)])
    assert text.splitlines()[0].startswith("| name | exact |")
    assert f"{row.exact:.3f}" in text


def test_agreement_has_small_errors_on_small_problems():
    rows = local_bayes.agreement(num_problems=2)
    assert all(abs(row.importance) < 0.2 and abs(row.annealed) < 0.2 for row in rows)


def test_the_mean_field_is_right_about_far_groups():
    row = local_bayes.narrowness(12.0, num_tokens=10, num_draws=2000)
    assert 0.8 < row.loc < 1.2
    assert row.loc_shift < 0.2

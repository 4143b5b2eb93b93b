"""Log joints of assignments against Polya's urn and Student t predictions, and the count of relabellings."""

import itertools
import math

import oracles
import pytest
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from psa.inference.evidence_bounds import assignment_log_joint, log_relabellings, occupied_slots
from psa.models.local_mixture import LocalMixturePrior

PRIOR = oracles.Prior(alpha=0.4, loc=0.7, strength=0.3, shape=1.5, rate=0.8)
OURS = LocalMixturePrior(PRIOR.alpha, PRIOR.loc, PRIOR.strength, PRIOR.shape, PRIOR.rate)
CORRELATED = LocalMixturePrior(0.4, torch.tensor([0.7, -0.2]), 0.3, 1.5, torch.tensor([[0.8, 0.5], [0.5, 1.0]]))
COVARIANCES = pytest.mark.parametrize("covariance", ["diagonal", "full"])
seeds = st.integers(0, 10_000)


def full_log_evidence(values: Tensor, prior: LocalMixturePrior) -> float:
    """One token after another, each a multivariate Student t given those before it."""
    loc, rate = (torch.as_tensor(part, dtype=torch.float64) for part in (prior.loc, prior.precision_rate))
    strength, shape, total = prior.loc_strength, prior.precision_shape, 0.0
    for value in values:
        scale = rate * (strength + 1) / (shape * strength)
        total += float(scipy.stats.multivariate_t(loc.numpy(), scale.numpy(), 2 * shape).logpdf(value.numpy()))
        rate = rate + 0.5 * strength / (strength + 1) * torch.outer(value - loc, value - loc)
        loc, strength, shape = loc + (value - loc) / (strength + 1), strength + 1, shape + 0.5
    return total


def log_joint(labels: list[int], tokens: Tensor, num_slots: int, covariance: str) -> float:
    """log p(c) p(v | c) of an image (N, D)."""
    total = oracles.log_urn(tuple(labels), num_slots, PRIOR.alpha)
    for k in range(num_slots):
        owned = tokens[[n for n, label in enumerate(labels) if label == k]]
        if covariance == "full":
            total += full_log_evidence(owned, CORRELATED)
        else:
            total += sum(oracles.log_predictive(owned[:, d].tolist(), PRIOR) for d in range(tokens.shape[1]))
    return total


def prior_of(covariance: str) -> LocalMixturePrior:
    return OURS if covariance == "diagonal" else CORRELATED


def some_labels(batch: int, num_tokens: int, num_slots: int, seed: int) -> Tensor:
    return torch.randint(num_slots, (batch, num_tokens), generator=torch.Generator().manual_seed(seed))


@COVARIANCES
@given(seed=seeds, num_tokens=st.integers(1, 6), num_slots=st.integers(1, 4), masked=st.booleans())
def test_log_joint_is_the_urn_times_the_predictions(
    covariance: str, seed: int, num_tokens: int, num_slots: int, masked: bool
):
    tokens, labels = 2 * draw(2, num_tokens, 2, seed=seed) + 3, some_labels(2, num_tokens, num_slots, seed)
    keep = draw(2, num_tokens, seed=seed + 1) > (-0.5 if masked else -torch.inf)
    keep[:, 0] = True
    given_tokens = torch.where(keep[..., None], tokens, torch.full_like(tokens, torch.nan))
    mask = keep if masked else None
    joint, used = assignment_log_joint(labels, given_tokens, prior_of(covariance), num_slots, mask, covariance)
    for b in range(2):
        own = labels[b, keep[b]].tolist()
        assert_close(joint[b], log_joint(own, tokens[b, keep[b]], num_slots, covariance))
        assert int(used[b]) == len(set(own))


@COVARIANCES
def test_log_joints_of_all_assignments_sum_to_the_evidence(covariance: str):
    tokens = 2 * draw(4, 2, seed=1)
    every = list(itertools.product(range(3), repeat=4))
    joint, _ = assignment_log_joint(
        torch.tensor(every), tokens.expand(81, 4, 2), prior_of(covariance), 3, None, covariance
    )
    expected = [log_joint(list(labels), tokens, 3, covariance) for labels in every]
    assert_close(joint, torch.tensor(expected, dtype=torch.float64))
    if covariance == "diagonal":
        assert_close(joint.logsumexp(0), oracles.exact_log_evidence(tokens, PRIOR, 3))


@COVARIANCES
@given(seed=seeds)
def test_a_whole_weight_counts_a_token_so_often(covariance: str, seed: int):
    tokens, labels = 2 * draw(1, 5, 2, seed=seed), some_labels(1, 5, 3, seed)
    times = torch.tensor([1, 3, 0, 2, 1])
    joint, used = assignment_log_joint(labels, tokens, prior_of(covariance), 3, times[None].double(), covariance)
    repeated = (labels.repeat_interleave(times, 1), tokens.repeat_interleave(times, 1))
    expected, also_used = assignment_log_joint(*repeated, prior_of(covariance), 3, None, covariance)
    assert_close(joint, expected)
    assert torch.equal(used, also_used)


@COVARIANCES
@given(seed=seeds, num_slots=st.integers(1, 4))
def test_relabellings_have_the_same_log_joint_and_are_counted(covariance: str, seed: int, num_slots: int):
    tokens, labels = 2 * draw(4, 2, seed=seed), some_labels(1, 4, num_slots, seed)[0]
    orders = list(itertools.permutations(range(num_slots)))
    relabelled = torch.tensor(orders)[:, labels]
    together = tokens.expand(len(orders), 4, 2)
    joint, used = assignment_log_joint(relabelled, together, prior_of(covariance), num_slots, None, covariance)
    assert_close(joint, joint[:1].expand(len(orders)))
    different = {tuple(row) for row in relabelled.tolist()}
    for count in log_relabellings(num_slots, used):
        assert_close(count, math.log(len(different)))


def test_log_relabellings_is_the_number_of_injections():
    for num_slots in (1, 3, 30):
        occupied = torch.arange(num_slots + 1)
        expected = [math.log(math.perm(num_slots, int(k))) for k in occupied]
        assert_close(log_relabellings(num_slots, occupied), torch.tensor(expected, dtype=torch.float64))
    assert log_relabellings(3, torch.tensor([2])).dtype == torch.float64


def test_a_slot_is_occupied_when_it_is_the_likeliest_of_enough_tokens():
    # 300 tokens: one likeliest under slot 2, three under slot 1, the others under slot 0; slot 3 is never the likeliest
    responsibilities = torch.tensor([[0.4], [0.1], [0.2], [0.3]]).double().repeat(1, 1, 300)
    responsibilities[0, :, 0] = torch.tensor([0.2, 0.2, 0.35, 0.25])
    responsibilities[0, :, 1:4] = torch.tensor([[0.1], [0.5], [0.2], [0.2]])
    assert occupied_slots(responsibilities, None).tolist() == [2]  # 1 % is three tokens
    for least, expected in ((0.5, 3), (1, 3), (1.5, 2), (3, 2), (3.5, 1), (297, 0)):
        assert occupied_slots(responsibilities, None, least).tolist() == [expected]
    mask = torch.ones(1, 300, dtype=torch.bool)
    mask[0, 3] = False
    assert occupied_slots(responsibilities, mask).tolist() == [1]  # 2 of 299 tokens are less than 1 %
    mask[0, 200:] = False
    assert occupied_slots(responsibilities, mask).tolist() == [2]  # 2 of 199
    weights = mask.double()
    weights[0, :3] = 7.0
    assert occupied_slots(responsibilities, weights).tolist() == [3]
    assert occupied_slots(responsibilities[..., :4], None).tolist() == [2]  # at least one token, however few

import copy
import math
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from scipy.stats import norm
from tolerances import FLOAT32, assert_close
from torch import Tensor

from psa.errors import ConfigError
from psa.inference.autoencoder import SlotAutoencoder, load_run
from psa.inference.evaluation import evaluate
from psa.inference.objectives import held_out_objective, objective
from psa.inference.relevance import RULES, SPARE, Relevance, information, kept, relevance_scores
from psa.inference.training import seed_everything as seed
from psa.models.aggregate import AggregatePrior
from psa.models.scene import SceneModel
from psa.records import SlotPosterior


def posterior_of(responsibilities: Tensor, num_features: int = 2) -> SlotPosterior:
    """With these responsibilities (B, K, N), and weights that are their means."""
    shape = (*responsibilities.shape[:2], num_features)
    return SlotPosterior(
        weights=responsibilities.mean(-1),
        loc=torch.zeros(shape, dtype=torch.float64),
        var=torch.ones(shape, dtype=torch.float64),
        responsibilities=responsibilities,
        initial_loc=torch.zeros(shape, dtype=torch.float64),
    )


def drawn_posterior(batch: int = 3, num_slots: int = 4, num_tokens: int = 9) -> SlotPosterior:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(batch, num_slots, num_tokens, dtype=torch.float64, generator=generator)
    return posterior_of(logits.softmax(1))


def moments(batch: int = 3, num_slots: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(batch, num_slots, 2, dtype=torch.float64, generator=generator)
    return loc, (0.5 * torch.randn(batch, num_slots, 2, dtype=torch.float64, generator=generator)).exp()


PRIOR = dist.Normal(torch.tensor([0.3, -0.5]).double(), torch.tensor([0.7, 1.9]).double()).to_event(1)


def test_weights_score_an_equal_share_as_one_and_sum_to_the_number_of_slots():
    scores = relevance_scores("weights", posterior_of(torch.full((2, 4, 5), 0.25).double()), moments(2), PRIOR)
    assert_close(scores, torch.ones(2, 4))
    assert_close(relevance_scores("weights", drawn_posterior(), moments(), PRIOR).sum(1), torch.full((3,), 4.0))


def test_occupancy_counts_the_tokens_a_slot_owns():
    posterior = drawn_posterior()
    expected = torch.zeros(3, 4)
    for image in range(3):
        for token in range(9):
            column = posterior.responsibilities[image, :, token].tolist()
            expected[image, column.index(max(column))] += 1 / 9
    assert_close(relevance_scores("occupancy", posterior, moments(), PRIOR), expected, FLOAT32)


def test_information_is_the_kl_less_what_the_widest_slot_pays_for_its_width():
    loc, scale = moments()
    at_mean = torch.distributions.kl_divergence(dist.Normal(PRIOR.mean, scale).to_event(1), PRIOR.expand((3, 4)))
    kl = torch.distributions.kl_divergence(dist.Normal(loc, scale).to_event(1), PRIOR.expand((3, 4)))
    assert_close(information((loc, scale), PRIOR), kl - at_mean.min(1, keepdim=True).values)


def test_slots_of_one_width_and_points_score_half_the_squared_distance():
    loc, _ = moments()
    deviations = (loc - PRIOR.mean) / PRIOR.stddev
    for width in (0.0, 0.2, 3.0):
        assert_close(information((loc, torch.full_like(loc, width)), PRIOR), 0.5 * deviations.square().sum(-1))


def test_under_an_aggregate_the_kl_is_that_to_the_gaussian_of_its_moments():
    aggregate = AggregatePrior(
        torch.tensor([0.2, 0.8]).double(),
        torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double(),
        torch.tensor([[0.3, 2.0], [1.5, 0.1]]).double(),
    )
    matched = dist.Normal(aggregate.mean, aggregate.variance.sqrt()).to_event(1)
    assert_close(information(moments(), aggregate), information(moments(), matched))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule must be one of weights, occupancy, information, got 'size'"):
        relevance_scores("size", drawn_posterior(), moments(), PRIOR)
    with pytest.raises(ValueError, match="rule must be one of weights, occupancy, information, got 'size'"):
        Relevance("size", 1.0, tiny.tiny_autoencoder(tiny.WITH_KL).model)


@given(
    scores=st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=1, max_size=4),
    threshold=st.floats(0, 12),
    spare=st.integers(0, 4),
)
def test_slots_at_the_threshold_stay_and_the_best_others(scores, threshold, spare):
    active = kept(torch.tensor(scores, dtype=torch.float64), threshold, spare)
    for row, stays in zip(scores, active.tolist(), strict=True):
        high = sum(score >= threshold for score in row)
        assert sum(stays) == min(3, max(1, high + spare))
        lowest_kept = min(score for score, stay in zip(row, stays, strict=True) if stay)
        assert all(score <= lowest_kept for score, stay in zip(row, stays, strict=True) if not stay)


def test_of_slots_with_equal_scores_the_first_stays():
    assert kept(torch.ones(1, 4), 2.0).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("rule", RULES)
def test_information_alone_keeps_a_slot_for_the_background(rule):
    """However high the threshold: of three slots one stays, and where two say much, the third stays too."""
    posterior = posterior_of(torch.tensor([[[0.8, 0.7], [0.15, 0.2], [0.05, 0.1]]]).double())
    loc = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]]]).double()
    unit = dist.Normal(torch.zeros(2).double(), torch.ones(2).double()).to_event(1)
    for threshold, others in ((1e9, 1), (1.0, 3)):
        active = kept(relevance_scores(rule, posterior, (loc, 0.0 * loc), unit), threshold, SPARE[rule])
        assert int(active.sum()) == (others if rule == "information" else 1)


@pytest.mark.parametrize("rule", RULES)
def test_rules_follow_a_permutation_of_slots(rule):
    order = torch.tensor([2, 0, 3, 1])
    posterior, (loc, scale) = drawn_posterior(), moments()
    permuted = replace(
        posterior, weights=posterior.weights[:, order], responsibilities=posterior.responsibilities[:, order]
    )
    scores = relevance_scores(rule, posterior, (loc, scale), PRIOR)
    assert_close(relevance_scores(rule, permuted, (loc[:, order], scale[:, order]), PRIOR), scores[:, order])


# The program.


def batch(count: int = 4) -> Tensor:
    return tiny.tiny_images(count).batch(slice(None)).double()


def with_rule(rule: str, values: dict, *settings: str) -> SlotAutoencoder:
    """float64, a prior of its own, and a threshold at a quantile of the scores: some slots stay, some go."""
    autoencoder = tiny.tiny_autoencoder(values, f"decoder.relevance={rule}", *settings).double()
    with torch.no_grad():
        autoencoder.model.prior_loc.copy_(torch.linspace(-0.5, 0.5, 8))
        autoencoder.model.prior_log_scale.copy_(torch.linspace(-0.4, 0.6, 8))
        guide = autoencoder.guide
        if guide.log_scale is not None:
            guide.log_scale.copy_(torch.linspace(-2, -1, 8))
        posterior = guide.posterior(batch())
        scores = relevance_scores(rule, posterior, guide.slot_moments(posterior), autoencoder.model.slot_prior)
    guide.relevance = Relevance(rule, float(scores.quantile(0.7 if SPARE[rule] else 0.5)), autoencoder.model)
    return autoencoder


def drawn(autoencoder: SlotAutoencoder) -> tuple[Tensor, Tensor]:
    """The sites active and slot of the guide under seed 5."""
    seed(5)
    with torch.no_grad():
        nodes = pyro.poutine.trace(autoencoder.guide).get_trace(batch()).nodes
    return nodes["active"]["value"].bool(), nodes["slot"]["value"]


def log_likelihood(model: SceneModel, slots: Tensor, active: Tensor) -> float:
    """log p(x | active slots), image by image with the other slots cut out of the tensor."""
    parts = [
        model.observation(model.decoder(slots[b, active[b]][None])).log_prob(batch()[b : b + 1]).item()
        for b in range(len(slots))
    ]
    return sum(parts)


def active_kl(autoencoder: SlotAutoencoder, active: Tensor) -> float:
    """sum_bk a_bk KL(q(s_bk | x_b) || p(s)) from the textbook's formula, one dimension at a time, under seed 5."""
    seed(5)
    loc, scale = (part.detach() for part in autoencoder.guide.slot_moments(autoencoder.guide.posterior(batch())))
    prior = autoencoder.model.slot_prior.base_dist
    total = 0.0
    for b, k in active.nonzero().tolist():
        for d in range(8):
            m, s, m0, s0 = (float(x) for x in (loc[b, k, d], scale[b, k, d], prior.mean[d], prior.stddev[d]))
            total += math.log(s0 / s) + (s**2 + (m - m0) ** 2) / (2 * s0**2) - 0.5
    return total


@pytest.mark.parametrize(
    ("rule", "likelihood", "values", "kl_weight"),
    [
        ("information", "normal", tiny.WITH_KL, 1.0),
        ("information", "mixture", tiny.WITH_KL, 0.3),
        ("weights", "normal", tiny.DRAWN_MEANS, 1.0),
        ("information", "mixture", tiny.DRAWN_MEANS, 1.0),
        ("occupancy", "normal", tiny.WITH_KL, 0.3),
    ],
)
def test_the_objective_is_that_of_the_active_slots_and_the_prior_on_them(rule, likelihood, values, kl_weight):
    settings = (f"objective.likelihood={likelihood}", f"objective.kl_weight={kl_weight}")
    autoencoder = with_rule(rule, values, *settings)
    active, slots = drawn(autoencoder)
    assert 4 < int(active.sum()) < 12  # something stays beyond the best slot, and something goes
    kl = active_kl(autoencoder, active) + 4 * math.log(2**3 - 1)
    expected = -(log_likelihood(autoencoder.model, slots, active) - kl_weight * kl)
    seed(5)
    assert_close(objective(autoencoder)(batch()), expected)


@pytest.mark.parametrize("sample", ["true", "false"])
def test_without_kl_the_objective_is_the_likelihood_of_the_active_slots(sample):
    autoencoder = with_rule("information", tiny.WITHOUT_KL, f"objective.sample={sample}")
    active, slots = drawn(autoencoder)
    assert 4 < int(active.sum()) < 12
    seed(5)
    assert_close(objective(autoencoder)(batch()), -log_likelihood(autoencoder.model, slots, active))


def test_the_bound_of_a_single_draw_has_the_densities_of_the_active_slots_alone():
    """Pyro's Trace_ELBO, which takes no KL in closed form, against scipy's normal at the same draw."""
    autoencoder = with_rule("information", tiny.WITH_KL)
    active, slots = drawn(autoencoder)
    loc, scale = autoencoder.guide.slot_moments(autoencoder.guide.posterior(batch()))
    prior = autoencoder.model.slot_prior.base_dist
    gap = 0.0
    for mean, deviation, sign in ((loc, scale, -1), (prior.mean.expand_as(loc), prior.stddev.expand_as(loc), 1)):
        chosen = (part[active].detach().numpy() for part in (mean, deviation))
        gap += sign * norm(*chosen).logpdf(slots[active].numpy()).sum()
    seed(5)
    bound = -Trace_ELBO()(autoencoder.model, autoencoder.guide)(batch())
    assert_close(bound, log_likelihood(autoencoder.model, slots, active) + gap - 4 * math.log(7))


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_held_out_objective_has_the_active_slots_alone(kl_weight):
    autoencoder = with_rule("information", tiny.WITH_KL, f"objective.kl_weight={kl_weight}")
    active, _ = drawn(autoencoder)
    slots = autoencoder.encode(batch())[1]
    kl = active_kl(autoencoder, active) + 4 * math.log(7)
    expected = -(log_likelihood(autoencoder.model, slots, active) - kl_weight * kl) / batch().numel()
    assert_close(held_out_objective(autoencoder, batch()), expected)


def test_a_threshold_of_zero_costs_the_constant_of_the_prior_on_the_active_slots_alone():
    plain, ruled = tiny.tiny_autoencoder(tiny.WITH_KL).double(), with_rule("weights", tiny.WITH_KL)
    plain.load_state_dict(ruled.state_dict())  # a rule has no parameters
    ruled.guide.relevance = Relevance("weights", 0.0, ruled.model)
    seed(5)
    expected = objective(plain)(batch()) + 4 * math.log(7)
    seed(5)
    assert_close(objective(ruled)(batch()), expected)


def test_without_a_rule_there_is_no_site_for_it():
    plain = tiny.tiny_autoencoder(tiny.WITH_KL)
    images = batch().float()
    assert plain.guide.active(plain.guide.posterior(images)) is None
    guide = pyro.poutine.trace(plain.guide).get_trace(images)
    model = pyro.poutine.trace(pyro.poutine.replay(plain.model, guide)).get_trace(images)
    assert "active" not in guide.nodes
    assert "active" not in model.nodes


def test_no_gradient_flows_through_the_decision_or_into_dropped_slots(monkeypatch):
    autoencoder = with_rule("information", tiny.WITH_KL)
    active, _ = drawn(autoencoder)
    kept = []
    distribution = autoencoder.guide.slot_distribution

    def watched(posterior: SlotPosterior) -> dist.Distribution:
        q = distribution(posterior)
        q.base_dist.loc.retain_grad()
        kept.append(q.base_dist.loc)
        return q

    monkeypatch.setattr(autoencoder.guide, "slot_distribution", watched)
    objective(autoencoder)(batch()).backward()
    assert not autoencoder.guide.active(autoencoder.guide.posterior(batch())).requires_grad
    assert kept[0].grad is not None
    reached = kept[0].grad.abs().sum(-1) > 0
    assert torch.equal(reached, active)


def test_only_active_slots_are_painted(monkeypatch):
    autoencoder = with_rule("occupancy", tiny.WITH_KL)
    painted = []
    paint = autoencoder.model.decoder.paint
    monkeypatch.setattr(autoencoder.model.decoder, "paint", lambda slots: painted.append(len(slots)) or paint(slots))
    active, _ = drawn(autoencoder)
    objective(autoencoder)(batch())
    autoencoder.encode(batch())
    assert painted == [int(active.sum())] * 2


# The run.


def test_encode_leaves_dropped_slots_without_masks_and_decode_agrees():
    autoencoder = with_rule("information", tiny.WITH_KL)
    posterior, slots, masks = autoencoder.encode(batch())
    active = autoencoder.guide.active(posterior)
    assert torch.equal(masks.flatten(2).sum(2) > 0, active)
    assert_close(masks.sum(1), torch.ones(4, 16, 16))
    assert_close(autoencoder.decode(slots, active).masks, masks)
    assert bool((autoencoder.decode(slots).masks > 0).all())
    assert slots.shape == (4, 3, 8)


def test_evaluation_decodes_the_active_slots_and_says_what_share_it_left_out():
    autoencoder = with_rule("information", tiny.WITH_KL)
    images = tiny.tiny_images(20, "test")
    result = evaluate(autoencoder, images)
    posterior, slots, _ = autoencoder.encode(images.images)
    active = autoencoder.guide.active(posterior)
    assert result.share_not_decoded is not None
    assert 0.1 < result.share_not_decoded < 0.9
    assert_close(result.share_not_decoded, 1 - active.double().mean())
    x = images.batch(slice(None)).double()
    assert_close(result.mse, (autoencoder.decode(slots, active).mean - x).square().mean(), FLOAT32)
    assert_close(result.objective, held_out_objective(autoencoder, x), FLOAT32)
    assert result.to_json()["share_not_decoded"] == result.share_not_decoded
    assert "information" in result.description


def test_without_a_rule_the_evaluation_has_no_such_share():
    assert "share_not_decoded" not in evaluate(tiny.tiny_autoencoder(tiny.WITH_KL), tiny.tiny_images(4)).to_json()


@pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.WITHOUT_KL])
def test_a_run_trains_with_a_rule_and_opens_with_it(tmp_path: Path, values):
    settings = ("decoder.relevance=information", "decoder.relevance_threshold=1000.0")
    trainer = tiny.tiny_trainer(values, *settings, path=tmp_path)
    trainer.fit()
    opened = load_run(tmp_path)
    relevance = opened.guide.relevance
    assert relevance is not None
    assert (relevance.rule, relevance.threshold) == ("information", 1000.0)
    assert relevance.model is opened.model
    images = tiny.tiny_images(6, "val")
    assert_close(opened.encode(images.images)[2], trainer.autoencoder.encode(images.images)[2], FLOAT32)
    assert_close(evaluate(opened, images).share_not_decoded, 2 / 3)  # the spare slot alone is left
    if values is tiny.WITH_KL:  # without a KL, p(s) is set after the last row of metrics
        assert_close(trainer.history[-1]["mse"], evaluate(opened, images).mse, FLOAT32)


@pytest.mark.parametrize("rule", RULES)
def test_a_threshold_that_is_left_out_is_the_rules_own(rule):
    relevance = tiny.tiny_autoencoder(tiny.WITH_KL, f"decoder.relevance={rule}").guide.relevance
    assert relevance is not None
    assert relevance.threshold == RULES[rule]


def test_a_copy_of_a_model_asks_its_own_prior():
    autoencoder = copy.deepcopy(tiny.tiny_autoencoder(tiny.WITH_KL, "decoder.relevance=information"))
    assert autoencoder.guide.relevance is not None
    assert autoencoder.guide.relevance.model is autoencoder.model


def test_a_prior_that_is_built_after_training_changes_no_decision():
    autoencoder = with_rule("information", tiny.WITH_KL)
    posterior = autoencoder.guide.posterior(batch())
    before = autoencoder.guide.active(posterior)
    loc = torch.full((1, 8), 9.0).double()
    autoencoder.model.aggregate = AggregatePrior(torch.ones(1).double(), loc, 0.1 * torch.ones_like(loc))
    assert torch.equal(autoencoder.guide.active(posterior), before)


def test_all_slots_are_decoded_in_training_until_the_rule_starts_and_never_in_evaluation():
    settings = ("decoder.relevance=weights", "decoder.relevance_threshold=1.01", "decoder.relevance_start=0.5")
    trainer = tiny.tiny_trainer(tiny.WITH_KL, *settings)
    guide, images = trainer.autoencoder.guide, tiny.tiny_images(4).batch(slice(None))

    def share() -> float:
        return float(guide.active(guide.posterior(images)).float().mean())

    trainer.train_steps(10)  # of 20: the tenth begins with 9 / 20 done
    assert share() == 1.0
    trainer.autoencoder.eval()
    assert share() < 1.0
    trainer.train_steps(1)
    assert trainer.autoencoder.training
    assert share() < 1.0


@pytest.mark.parametrize(
    "setting", ["decoder.relevance=size", "decoder.relevance_threshold=-1", "decoder.relevance_start=2"]
)
def test_settings_outside_their_support_are_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        tiny.tiny_config(tiny.WITH_KL, setting)


def test_the_density_of_a_scene_is_that_of_its_active_slots():
    """The model's own joint at a draw of the guide, against scipy's normal."""
    autoencoder = with_rule("weights", tiny.WITH_KL)
    active, slots = drawn(autoencoder)
    data = {"slot": slots, "active": active.double()}
    trace = pyro.poutine.trace(pyro.condition(autoencoder.model, data=data)).get_trace(batch())
    prior = autoencoder.model.slot_prior.base_dist
    density = norm(prior.mean.detach().numpy(), prior.stddev.detach().numpy()).logpdf(slots[active].numpy()).sum()
    expected = density - 4 * math.log(7) + log_likelihood(autoencoder.model, slots, active)
    assert_close(trace.log_prob_sum().item(), expected)

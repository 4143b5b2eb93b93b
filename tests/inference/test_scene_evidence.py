import itertools
import math

import pytest
import tiny
import torch
from pyro import distributions as dist
from scipy.stats import norm
from tolerances import STANDARD_ERRORS, assert_close, assert_mean_is
from torch import Tensor, nn

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.scene_evidence import BLOCK, SceneEvidence, SlotProposal, estimate, log_joint, log_weights, stream
from psa.models.discretised import discretised_log_prob
from psa.models.scene import LIKELIHOODS
from psa.records import DecodedScene

NUM_SLOTS, NUM_FEATURES, NUM_VALUES, NOISE = 3, 2, 4, 2.0
SETTINGS = {"psa": tiny.WITH_KL, "sa": {"slots": {"variant": "sa"}, "objective": tiny.WITH_KL["objective"]}}


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class LinearGaussian:
    """s_k ~ Normal(m, diag v); x = sum_k W s_k + noise: symmetric in the slots, and p(x) is a Normal."""

    def __init__(self, seed: int = 0) -> None:
        self.matrix = draws(NUM_VALUES, NUM_FEATURES, seed=seed)
        loc = torch.tensor([0.3, -0.2], dtype=torch.float64)
        scale = torch.tensor([1.0, 0.7], dtype=torch.float64)
        self.prior = dist.Normal(loc, scale).to_event(1)
        self.slots = loc + scale * draws(NUM_SLOTS, NUM_FEATURES, seed=seed + 1)
        self.x = self.slots.sum(0) @ self.matrix.T + NOISE * draws(NUM_VALUES, seed=seed + 2)
        covariance = NUM_SLOTS * self.matrix @ scale.square().diag() @ self.matrix.T
        covariance = covariance + NOISE**2 * torch.eye(NUM_VALUES, dtype=torch.float64)
        mean = NUM_SLOTS * self.matrix @ loc
        self.log_evidence = float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(self.x))

    def log_likelihood(self, slots: Tensor) -> Tensor:
        return torch.distributions.Normal(slots.sum(1) @ self.matrix.T, NOISE).log_prob(self.x).sum(-1)

    def proposal(self, rows: int, scale: float = 0.9) -> SlotProposal:
        loc = (0.5 * self.slots + 0.5 * self.prior.mean).expand(rows, -1, -1)
        return SlotProposal(loc, torch.full_like(loc, scale))

    def weights(self, rows: int, seed: int = 5) -> Tensor:
        q = self.proposal(rows)
        return log_weights(q.at(draws(rows, NUM_SLOTS, NUM_FEATURES, seed=seed)), q, self.prior, self.log_likelihood)


def evidence_of(run: str, sigma: float = 0.7, **changes: object) -> SceneEvidence:
    autoencoder = tiny.tiny_autoencoder(SETTINGS[run], *changes.pop("settings", ()))  # type: ignore[misc]
    return SceneEvidence(autoencoder.eval(), sigma, seed=3, **changes)  # type: ignore[arg-type]


def test_the_density_of_q_is_the_mean_over_all_orders_of_the_slots():
    q = SlotProposal(draws(4, 3, 2), draws(4, 3, 2, seed=1).exp())
    slots = draws(4, 3, 2, seed=2)
    orders = [
        torch.distributions.Normal(q.loc, q.scale).log_prob(slots[:, list(order)]).sum((1, 2))
        for order in itertools.permutations(range(3))
    ]
    assert_close(q.log_density(slots), torch.stack(orders).logsumexp(0) - math.log(6))


def test_draws_have_the_proposals_mean_and_scale():
    q = SlotProposal(draws(1, 3, 2).expand(20_000, -1, -1), draws(1, 3, 2, seed=1).exp().expand(20_000, -1, -1))
    drawn = q.at(draws(20_000, 3, 2, seed=2))
    assert_mean_is(drawn, q.loc[0])
    assert_mean_is((drawn - q.loc).square(), q.scale[0].square())


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_weight_is_the_evidence(seed):
    model = LinearGaussian(10 * seed)
    weights = model.weights(40_000)
    assert_mean_is((weights - model.log_evidence).exp(), 1.0)
    value, error = estimate(weights[None], "iwae")
    assert abs(float(value) - model.log_evidence) < STANDARD_ERRORS * float(error)
    assert float(error) < 0.1


def test_elbo_is_below_iwae_is_below_the_evidence_and_iwae_rises_with_its_samples():
    model = LinearGaussian()
    weights = model.weights(32_768)
    bounds = [weights, *(estimate(weights.unflatten(0, (-1, k)), "iwae")[0] for k in (4, 16, 64))]
    assert_close(bounds[0].mean(), estimate(weights[None], "elbo")[0][0])
    for fewer, more in itertools.pairwise(bounds):
        difference = more - fewer.unflatten(0, (len(more), -1)).mean(1)
        error = difference.std() / math.sqrt(len(difference))
        assert float(difference.mean()) > STANDARD_ERRORS * float(error)
    error = bounds[-1].std() / math.sqrt(len(bounds[-1]))
    assert float(bounds[-1].mean()) < model.log_evidence + STANDARD_ERRORS * float(error)
    assert float(bounds[0].mean()) < model.log_evidence - 0.3


def test_errors_are_those_of_the_mean_and_of_its_logarithm():
    weights = draws(1, 4000)
    value, error = estimate(weights, "elbo")
    assert_close(value[0], weights.mean())
    assert_close(error[0], weights.std() / math.sqrt(4000))
    value, error = estimate(weights, "iwae")
    assert_close(value[0], weights.exp().mean().log())
    assert_close(error[0], weights.exp().std() / weights.exp().mean() / math.sqrt(4000))


class TwoPixels(nn.Module):
    """A decoder of slots of one feature onto 1 x 2 pixels, colours and masks bending with the slot."""

    def forward(self, slots: Tensor) -> DecodedScene:
        s = slots[..., 0]
        rgb = torch.stack([s.sigmoid(), 0.5 + 0.3 * s.sin(), 0.2 * s], -1)
        rgb = torch.stack([rgb, 0.8 * rgb], -1)[..., None, :]
        logits = torch.stack([s, -0.5 * s], -1)[:, :, None]
        return DecodedScene(rgb, logits.log_softmax(1))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("ends", ["closed", "open"])
def test_the_discretised_evidence_of_two_slots_is_the_integral_over_them(likelihood, ends):
    levels = torch.tensor([[[10, 120]], [[0, 90]], [[255, 30]]], dtype=torch.uint8)
    decoder, sigma = TwoPixels(), 0.3

    def likelihood_of(slots: Tensor) -> Tensor:
        image = levels.expand(len(slots), -1, -1, -1)
        return discretised_log_prob(decoder(slots), image, likelihood, sigma, ends)

    grid = torch.linspace(-6.0, 6.0, 301, dtype=torch.float64)
    pairs = torch.cartesian_prod(grid, grid)[..., None]
    log_prior = torch.from_numpy(norm(0.4, 1.2).logpdf(pairs[..., 0].numpy())).sum(1)
    joint = (log_prior + likelihood_of(pairs)).unflatten(0, (301, 301))
    peak = joint.max()
    integral = torch.trapezoid(torch.trapezoid((joint - peak).exp(), grid), grid).log() + peak
    prior = dist.Normal(torch.tensor([0.4], dtype=torch.float64), 1.2).to_event(1)
    q = SlotProposal(torch.zeros(1, 2, 1).double().expand(40_000, -1, -1), torch.full((40_000, 2, 1), 1.5).double())
    weights = log_weights(q.at(draws(40_000, 2, 1)), q, prior, likelihood_of)
    value, error = estimate(weights[None], "iwae")
    assert abs(float(value) - float(integral)) < STANDARD_ERRORS * float(error)
    assert float(error) < 0.05


@pytest.mark.parametrize("kind", ["patch", "broadcast"])
def test_the_likelihood_does_not_know_the_order_of_the_slots(kind):
    """What averaging q over orders rests on."""
    scenes = evidence_of("psa", settings=(f"decoder.kind={kind}",))
    levels = tiny.tiny_images(2).images.movedim(-1, 1)
    slots = draws(2, 3, 8)
    found = scenes.log_likelihood(levels)(slots)
    for order in itertools.permutations(range(3)):
        assert_close(scenes.log_likelihood(levels)(slots[:, list(order)]), found, 1e-6)


@pytest.mark.parametrize("run", SETTINGS)
def test_weights_are_joint_less_q_at_draws_from_the_guide(run):
    scenes, image = evidence_of(run), tiny.tiny_images(2).images[1]
    found = scenes.importance_weights(image, 1, 6)
    with torch.no_grad():
        start, noise = (stream(3, 1, purpose, 0, device=torch.device("cpu")) for purpose in (0, 1))
        guide, model = scenes.autoencoder.guide, scenes.autoencoder.model
        tokens = guide.encoder(scenes.autoencoder.prepare(image[None].expand(6, -1, -1, -1)))
        q = guide.slot_distribution(guide.inference(tokens, generator=start))
        slots = (q.mean + q.stddev * torch.randn(6, 3, 8, dtype=torch.float64, generator=noise)).double()
        permuted = torch.stack([q.log_prob(slots[:, list(o)]).sum(-1) for o in itertools.permutations(range(3))])
        levels = image.movedim(-1, 0).expand(6, -1, -1, -1)
        likelihood = discretised_log_prob(model.decoder(slots.float()), levels, model.likelihood, 0.7)
        prior = model.slot_prior.log_prob(slots).sum(-1)
    assert_close(found, likelihood + prior - permuted.logsumexp(0) + math.log(6), 1e-6)


def test_a_random_start_gives_every_draw_a_q_of_its_own_and_queries_give_one():
    image = tiny.tiny_images(1).images[0]
    spread = {
        run: evidence_of(run).proposal(image, 4, torch.Generator().manual_seed(0)).loc.std(0).max() for run in SETTINGS
    }
    assert float(spread["sa"]) > 1e-3
    assert float(spread["psa"]) < 1e-5


def test_random_numbers_belong_to_the_seed_and_the_image():
    scenes, images = evidence_of("sa"), tiny.tiny_images(2).images
    one = scenes.importance_weights(images[0], 0, 8)
    assert torch.equal(one, scenes.importance_weights(images[0], 0, 8))
    other_place = scenes.importance_weights(images[0], 1, 8)
    other_seed = SceneEvidence(scenes.autoencoder, 0.7, seed=4).importance_weights(images[0], 0, 8)
    assert not torch.isclose(one, other_place).any()
    assert not torch.isclose(one, other_seed).any()


def test_more_samples_contain_fewer_and_memory_does_not_change_them(monkeypatch):
    scenes, image = evidence_of("sa"), tiny.tiny_images(1).images[0]
    many = scenes.importance_weights(image, 0, 2 * BLOCK + 3)
    assert len(many) == 2 * BLOCK + 3
    assert len(many.unique()) == len(many)
    assert_close(many[:BLOCK], scenes.importance_weights(image, 0, BLOCK), 1e-6)
    monkeypatch.setattr("psa.inference.scene_evidence.MAX_ENTRIES", 5 * 3 * 3 * 16 * 16)
    assert scenes.rows_at_once() == 5
    assert_close(scenes.importance_weights(image, 0, 2 * BLOCK + 3), many, 1e-6)


def test_points_have_no_density():
    autoencoder: SlotAutoencoder = tiny.tiny_autoencoder(tiny.WITHOUT_KL)
    with pytest.raises(ValueError, match="expected a guide with a density"):
        SceneEvidence(autoencoder, 0.3, 0).importance_weights(tiny.tiny_images(1).images[0], 0, 2)


def test_any_prior_over_one_slot_will_do():
    """Of a mixture the joint is what its formula says, whatever its precision."""
    weights, loc = torch.tensor([0.2, 0.8]), torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    prior = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 0.5).to_event(1))
    slots = draws(4, 3, 2)
    components = [torch.from_numpy(norm(at.numpy(), 0.5).logpdf(slots.numpy()).sum(-1)) for at in loc]
    expected = sum(weight * one.exp() for weight, one in zip(weights, components, strict=True)).log().sum(-1)
    assert_close(log_joint(slots, prior, lambda s: s.new_zeros(len(s))), expected, 1e-6)

import math

import pyro
import pytest
import torch
from scipy.stats import norm
from tolerances import CONVERGED, assert_close, assert_mean_is
from torch import Tensor, nn

from psa.models.decoders import PatchDecoder
from psa.models.scene import LIKELIHOODS, PixelMixture, SceneModel
from psa.records import DecodedScene

SIGMA = 0.3


def scene(batch: int = 2, num_slots: int = 3, size: tuple[int, int] = (2, 3), channels: int = 3) -> DecodedScene:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(batch, num_slots, channels, *size, dtype=torch.float64, generator=generator)
    logits = torch.randn(batch, num_slots, *size, dtype=torch.float64, generator=generator)
    return DecodedScene(rgb, torch.log_softmax(logits, 1))


def images(batch: int = 2, size: tuple[int, int] = (2, 3)) -> Tensor:
    return torch.rand(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_the_pixel_mixture_matches_a_sum_over_assignments_pixel_by_pixel():
    decoded, x = scene(), images()
    expected = torch.zeros(2)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                density = 0.0
                for k in range(3):
                    colours = [
                        norm.pdf(x[b, c, row, column], decoded.rgb[b, k, c, row, column], SIGMA) for c in range(3)
                    ]
                    density += float(decoded.masks[b, k, row, column]) * math.prod(colours)
                expected[b] += math.log(density)
    assert_close(PixelMixture(decoded, SIGMA).log_prob(x), expected, CONVERGED)


def test_on_one_pixel_it_is_a_mixture_of_the_same_family():
    decoded, x = scene(size=(1, 1)), images(size=(1, 1))
    components = torch.distributions.Independent(torch.distributions.Normal(decoded.rgb[..., 0, 0], SIGMA), 1)
    chosen = torch.distributions.Categorical(logits=decoded.log_masks[..., 0, 0])
    expected = torch.distributions.MixtureSameFamily(chosen, components).log_prob(x[..., 0, 0])
    assert_close(PixelMixture(decoded, SIGMA).log_prob(x), expected)


def test_the_density_of_one_pixel_of_one_channel_integrates_to_one():
    decoded = scene(batch=1, size=(1, 1), channels=1)
    grid = torch.linspace(-3, 4, 4001, dtype=torch.float64)
    values = PixelMixture(
        DecodedScene(decoded.rgb.expand(4001, -1, -1, -1, -1), decoded.log_masks.expand(4001, -1, -1, -1)), SIGMA
    ).log_prob(grid[:, None, None, None])
    assert_close(torch.trapezoid(values.exp(), grid), 1.0, CONVERGED)


def test_with_one_slot_the_mixture_is_the_normal_likelihood():
    decoded, x = scene(num_slots=1), images()
    expected = torch.distributions.Normal(decoded.mean, SIGMA).log_prob(x).sum((1, 2, 3))
    assert_close(PixelMixture(decoded, SIGMA).log_prob(x), expected)


def test_draws_have_the_moments_of_the_mixture():
    decoded = scene()
    torch.manual_seed(0)
    draws = PixelMixture(decoded, SIGMA).sample(torch.Size((20_000,)))
    assert draws.shape == (20_000, 2, 3, 2, 3)
    assert_mean_is(draws, decoded.mean)
    second = torch.einsum("bkhw,bkchw->bchw", decoded.masks, decoded.rgb.square()) + SIGMA**2
    assert_mean_is(draws.square(), second)


def test_draws_of_a_pixel_share_their_slot_between_channels():
    """Two slots of opposite colours: a pixel is all of one or all of the other."""
    rgb = torch.stack([torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)], 1)
    decoded = DecodedScene(rgb, torch.full((1, 2, 1, 1), 0.5).log())
    torch.manual_seed(0)
    draws = PixelMixture(decoded, 1e-3).sample(torch.Size((200,)))[..., 0, 0].round()
    assert bool((draws == draws[..., :1]).all())
    assert set(draws.flatten().tolist()) == {0.0, 1.0}


def test_a_draw_of_no_shape_is_a_batch_of_images():
    assert PixelMixture(scene(), SIGMA).sample().shape == (2, 3, 2, 3)


def scene_model(likelihood: str = "mixture", kl_weight: float = 1.0) -> SceneModel:
    torch.manual_seed(0)
    model = SceneModel(PatchDecoder(4, (8, 8), 6, 1), 3, 4, likelihood, SIGMA, kl_weight).double()
    nn.init.normal_(model.prior_loc)
    nn.init.normal_(model.prior_log_scale)
    return model


def parts(model: SceneModel) -> tuple[float, float, float]:
    """The program's log joint, log p(s) and log p(x | s), the last two by hand, at fixed slots."""
    slots = torch.randn(2, 3, 4, dtype=torch.float64)
    x = images(size=(8, 8))
    trace = pyro.poutine.trace(pyro.condition(model, data={"slot": slots})).get_trace(x)
    prior = norm(model.prior_loc.detach().numpy(), model.prior_log_scale.exp().detach().numpy())
    log_prior = prior.logpdf(slots.numpy()).sum()
    decoded = model.decoder(slots)
    if model.likelihood == "normal":
        log_likelihood = torch.distributions.Normal(decoded.mean, SIGMA).log_prob(x).sum()
    else:
        log_likelihood = PixelMixture(decoded, SIGMA).log_prob(x).sum()
    return trace.log_prob_sum().item(), log_prior.item(), log_likelihood.item()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kl_weight", [1.0, 0.25, 0.0])
def test_the_log_joint_is_likelihood_plus_the_weighted_prior(likelihood, kl_weight):
    joint, log_prior, log_likelihood = parts(scene_model(likelihood, kl_weight))
    assert_close(joint, kl_weight * log_prior + log_likelihood)


def test_a_slot_at_zero_density_is_masked_at_weight_zero_and_no_nan():
    model = scene_model(kl_weight=0.0)
    with torch.no_grad():
        model.prior_log_scale.fill_(-1e3)
    slots, x = torch.randn(2, 3, 4, dtype=torch.float64), images(size=(8, 8))
    with pyro.validation_enabled(False):
        trace = pyro.poutine.trace(pyro.condition(model, data={"slot": slots})).get_trace(x)
        assert math.isfinite(float(trace.log_prob_sum()))


def test_the_program_draws_slots_from_the_prior():
    model = scene_model()
    pyro.set_rng_seed(0)
    drawn = pyro.poutine.trace(model).get_trace(torch.zeros(500, 3, 8, 8, dtype=torch.float64)).nodes["slot"]["value"]
    assert drawn.shape == (500, 3, 4)
    assert_mean_is(drawn.flatten(0, 1), model.prior_loc.detach())
    assert_mean_is((drawn.flatten(0, 1) - model.prior_loc).square(), (2 * model.prior_log_scale).exp().detach())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "laplace"}, "likelihood must be one of normal, mixture, got 'laplace'"),
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"sigma": math.nan}, "sigma must be positive, got nan"),
        ({"sigma": math.inf}, "sigma must be positive, got inf"),
    ],
)
def test_settings_outside_their_support_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SceneModel(PatchDecoder(4, (8, 8)), 3, 4, **settings)

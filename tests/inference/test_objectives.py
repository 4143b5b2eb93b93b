import pyro
import pytest
import tiny
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from tolerances import CONVERGED, STANDARD_ERRORS, assert_close
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.objectives import held_out_objective, objective
from psa.inference.training import seed_everything as seed

LIKELIHOODS = ("objective.likelihood=normal", "objective.likelihood=mixture")


def drawn_parts(autoencoder: SlotAutoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """(expected log likelihood at the draw that the seed gives, KL in closed form), by hand."""
    seed(5)
    with torch.no_grad():
        trace = pyro.poutine.trace(autoencoder.guide).get_trace(images)
    slots = trace.nodes["slot"]["value"]
    seed(5)
    posterior = autoencoder.guide.posterior(images)
    mean = autoencoder.guide.inference.slots(posterior)
    log_scale = autoencoder.guide.log_scale
    scale = posterior.var.sqrt() if log_scale is None else log_scale.exp()
    model = autoencoder.model
    prior = Normal(model.prior_loc, model.prior_log_scale.exp())
    return model.observation(model.decoder(slots)).log_prob(images).sum(), kl_divergence(
        Normal(mean, scale), prior
    ).sum()


def spread_prior(autoencoder: SlotAutoencoder) -> SlotAutoencoder:
    """A prior other than the standard normal, float64."""
    with torch.no_grad():
        autoencoder.model.prior_loc.copy_(torch.linspace(-0.5, 0.5, 8))
        autoencoder.model.prior_log_scale.copy_(torch.linspace(-0.4, 0.6, 8))
    return autoencoder.double()


def batch(count: int = 3) -> Tensor:
    return tiny.tiny_images(count).batch(slice(None)).double()


@pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.DRAWN_MEANS], ids=["learned variance", "posterior variance"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_objective_is_minus_expected_log_likelihood_plus_the_weighted_kl(values, likelihood, kl_weight):
    autoencoder = spread_prior(tiny.tiny_autoencoder(values, likelihood, f"objective.kl_weight={kl_weight}"))
    log_likelihood, kl = drawn_parts(autoencoder, batch())
    seed(5)
    assert_close(objective(autoencoder)(batch()), -(log_likelihood - kl_weight * kl))
    assert float(kl.detach()) > 1


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("sample", ["true", "false"])
def test_without_kl_the_objective_is_minus_the_expected_log_likelihood(likelihood, sample):
    values = tiny.WITHOUT_KL
    autoencoder = spread_prior(tiny.tiny_autoencoder(values, likelihood, f"objective.sample={sample}"))
    log_likelihood, _ = drawn_parts(autoencoder, batch())
    seed(5)
    assert_close(objective(autoencoder)(batch()), -log_likelihood)


def test_without_kl_the_prior_does_not_matter():
    autoencoder = tiny.tiny_autoencoder(tiny.WITHOUT_KL).double()
    before = objective(autoencoder)(batch())
    assert_close(objective(spread_prior(autoencoder))(batch()), before)


def test_closed_form_and_sampled_kl_agree_within_six_standard_errors():
    autoencoder = spread_prior(tiny.tiny_autoencoder(tiny.WITH_KL))
    images, draws = batch(), 200
    seed(0)
    means, errors = [], []
    with torch.no_grad():
        for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
            module = elbo(autoencoder.model, autoencoder.guide)
            values = torch.stack([module(images) for _ in range(draws)])
            means.append(float(values.mean()))
            errors.append(float(values.var()) / draws)
    assert abs(means[0] - means[1]) <= STANDARD_ERRORS * sum(errors) ** 0.5


def test_more_particles_estimate_the_same_objective():
    autoencoder = spread_prior(tiny.tiny_autoencoder(tiny.WITH_KL))
    seed(0)
    with torch.no_grad():
        many = TraceMeanField_ELBO(num_particles=100)(autoencoder.model, autoencoder.guide)(batch())
        one = objective(autoencoder)
        values = torch.stack([one(batch()) for _ in range(100)])
    error = (2 * float(values.var()) / 100) ** 0.5
    assert abs(float(many - values.mean())) <= STANDARD_ERRORS * error


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_held_out_objective_is_that_of_the_means_a_dimension(likelihood, kl_weight):
    autoencoder = spread_prior(tiny.tiny_autoencoder(tiny.WITH_KL, likelihood, f"objective.kl_weight={kl_weight}"))
    images, model = batch(), autoencoder.model
    _, kl = drawn_parts(autoencoder, images)
    slots = autoencoder.encode(images)[1]
    log_likelihood = model.observation(model.decoder(slots)).log_prob(images).sum()
    expected = -(log_likelihood - kl_weight * kl) / (3 * 3 * 16 * 16)
    assert_close(held_out_objective(autoencoder, images), expected, CONVERGED)


def test_the_held_out_objective_without_kl_is_the_training_objective_a_dimension():
    autoencoder = tiny.tiny_autoencoder(tiny.WITHOUT_KL).double()
    expected = objective(autoencoder)(batch()) / batch().numel()
    assert_close(held_out_objective(autoencoder, batch()), expected)


def test_the_held_out_objective_has_no_noise_where_the_start_has_none():
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL).double()
    assert held_out_objective(autoencoder, batch()) == held_out_objective(autoencoder, batch())


def test_the_held_out_objective_is_a_mean_over_images():
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL).double()
    each = [held_out_objective(autoencoder, batch(4)[i : i + 1]) for i in range(4)]
    assert_close(held_out_objective(autoencoder, batch(4)), sum(each) / 4)

import pyro
import pytest
import tiny
import torch
from pyro.infer import Trace_ELBO
from tolerances import FLOAT32, assert_close

from psa.inference.config import published
from psa.inference.guide import SceneGuide
from psa.inference.variants import build
from psa.models.scene import SceneModel


def guide_of(readout: str, sample: bool = True, kl_weight: float = 1.0) -> SceneGuide:
    values = {
        "slots": {"variant": "psa", "overrides": {"initialiser": "queries", "readout": readout}},
        "objective": {"sample": sample, "kl_weight": kl_weight},
    }
    return tiny.tiny_autoencoder(values).guide


@pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.WITHOUT_KL, tiny.DRAWN_MEANS, published("smm")])
def test_the_elbo_as_a_module_has_the_parameters_of_model_and_guide(values):
    autoencoder = tiny.tiny_autoencoder(values)
    elbo = Trace_ELBO()(autoencoder.model, autoencoder.guide)
    assert {id(p) for p in elbo.parameters()} == {id(p) for p in autoencoder.parameters()}
    assert len(list(autoencoder.model.parameters())) + len(list(autoencoder.guide.parameters())) == len(
        list(elbo.parameters())
    )


def test_a_normal_readout_is_drawn_with_the_posterior_variance():
    guide = guide_of("normal")
    posterior = guide.posterior(tiny.tiny_images(3).batch(slice(None)))
    q = guide.slot_distribution(posterior)
    assert (q.batch_shape, q.event_shape) == ((3, 3), (8,))
    assert_close(q.mean, posterior.loc)
    assert_close(q.variance, posterior.var, FLOAT32)
    assert guide.log_scale is None


@pytest.mark.parametrize("readout", ["mean", "moments-mlp", "query-mlp"])
def test_other_readouts_are_drawn_with_a_learned_diagonal_variance(readout):
    guide = guide_of(readout)
    assert guide.log_scale is not None
    with torch.no_grad():
        guide.log_scale.copy_(torch.linspace(-1, 1, 8))
    posterior = guide.posterior(tiny.tiny_images(3).batch(slice(None)))
    q = guide.slot_distribution(posterior)
    assert_close(q.mean, guide.inference.slots(posterior))
    assert_close(q.variance, torch.linspace(-1, 1, 8).mul(2).exp().expand(3, 3, 8), FLOAT32)


def test_without_draws_slots_are_points_at_the_readout():
    guide = guide_of("query-mlp", sample=False, kl_weight=0.0)
    assert guide.log_scale is None
    images = tiny.tiny_images(2).batch(slice(None))
    trace = pyro.poutine.trace(guide).get_trace(images)
    assert_close(trace.nodes["slot"]["value"], guide.inference.slots(guide.posterior(images)))


def test_sites_and_plates_of_guide_and_program_agree():
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL)
    images = tiny.tiny_images(2).batch(slice(None))
    with torch.no_grad():
        guide = pyro.poutine.trace(autoencoder.guide).get_trace(images)
        model = pyro.poutine.trace(pyro.poutine.replay(autoencoder.model, guide)).get_trace(images)
    stacks = [[frame.name for frame in trace.nodes["slot"]["cond_indep_stack"]] for trace in (guide, model)]
    assert sorted(stacks[0]) == sorted(stacks[1]) == ["images", "slots"]
    assert model.nodes["slot"]["value"] is guide.nodes["slot"]["value"]


def test_a_kl_of_points_is_refused():
    encoder, inference = torch.nn.Identity(), build("psa", num_slots=2, input_dim=4, slot_dim=4)
    with pytest.raises(ValueError, match=r"kl_weight above 0 needs objective\.sample = true"):
        SceneGuide(encoder, inference, sample=False, kl_weight=0.1)


@pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.WITHOUT_KL, tiny.DRAWN_MEANS])
def test_gradients_reach_encoder_queries_readout_and_decoder(values):
    autoencoder = tiny.tiny_autoencoder(values)
    model: SceneModel = autoencoder.model
    Trace_ELBO()(model, autoencoder.guide)(tiny.tiny_images(3).batch(slice(None))).backward()
    reached = {name for name, p in autoencoder.named_parameters() if p.grad is not None and float(p.grad.abs().sum())}
    for part in ("guide.encoder.convolutions", "guide.encoder.position", "guide.encoder.colour", "model.decoder.mlp"):
        assert any(name.startswith(part) for name in reached), part
    if values is not tiny.DRAWN_MEANS:
        assert {"guide.inference.initialiser.queries"} <= reached
        assert any(name.startswith("guide.inference.readout") for name in reached)
    assert ("model.prior_loc" in reached) == (autoencoder.guide.kl_weight > 0)
    assert ("guide.log_scale" in reached) == (values is tiny.WITH_KL)

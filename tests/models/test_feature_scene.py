"""Maps of features told one position after the other: the density by hand, causality, draws, generation."""

import pyro
import pytest
import torch
from tolerances import STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.models.decoders import BroadcastDecoder, JointDecoder, PatchDecoder, SlotTransformer
from psa.models.decoders.features import FeatureTransformerDecoder
from psa.models.feature_scene import FeatureSequenceModel

SHAPE, SLOT_DIM, SIGMA = (3, 2, 2), 5, 0.4


def decoder() -> FeatureTransformerDecoder:
    torch.manual_seed(0)
    return FeatureTransformerDecoder(SlotTransformer(SLOT_DIM, 4, 8, 2, 2), SHAPE).double().eval()


def slots(batch: int = 2, num_slots: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(batch, num_slots, SLOT_DIM, dtype=torch.float64, generator=generator)


def maps(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def model(kl_weight: float = 1.0) -> FeatureSequenceModel:
    return FeatureSequenceModel(decoder(), 3, SLOT_DIM, "normal", SIGMA, kl_weight).double()


@pytest.mark.parametrize("kl_weight", [1.0, 0.0])
def test_the_log_joint_is_the_sum_over_positions_of_normals_given_those_before(kl_weight):
    """Every mean is from a map whose later positions are made up."""
    program, expected = model(kl_weight), 0.0
    for place in range(4):
        seen = maps().flatten(2)
        seen[:, :, place:] = 7.0
        mean = program.decoder.means(seen.unflatten(2, SHAPE[1:]), slots()).flatten(2)[:, :, place]
        expected += float(torch.distributions.Normal(mean, SIGMA).log_prob(maps().flatten(2)[:, :, place]).sum())
    trace = pyro.poutine.trace(pyro.condition(program, {"slot": slots()})).get_trace(maps())
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(slots()).sum()
    assert_close(trace.log_prob_sum(), expected + kl_weight * log_prior)


@pytest.mark.parametrize("place", range(4))
def test_a_later_position_never_changes_an_earlier_mean(place):
    changed = maps().flatten(2)
    changed[:, :, place] *= -1.0
    with torch.no_grad():
        before, after = (decoder().means(m, slots()).flatten(2) for m in (maps(), changed.unflatten(2, SHAPE[1:])))
    assert torch.equal(after[:, :, : place + 1], before[:, :, : place + 1])
    assert bool(((after - before)[:, :, place + 1 :].abs().amax(1) > 1e-6).all())


def test_a_decoded_map_is_its_own_mean_at_every_position():
    scene = decoder()(slots())
    assert_close(decoder().means(scene.mean, slots()), scene.mean)
    assert_close(scene.masks.sum(1), torch.ones(2, 2, 2))
    assert_close(scene.rgb[:, 0], scene.mean)


def test_draws_have_the_noise_of_the_program():
    torch.manual_seed(0)
    program, many = model(), slots(1).expand(3000, -1, -1)
    drawn = program.draw_images(many)
    residual = (drawn - program.decoder.means(drawn, many)).detach() / SIGMA
    assert_close(residual.square().mean(), 1.0, STANDARD_ERRORS * (2 / residual.numel()) ** 0.5)
    assert_close(residual.mean(), 0.0, STANDARD_ERRORS / residual.numel() ** 0.5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(PatchDecoder, {"patch": 1}), (BroadcastDecoder, {"num_upsamplings": 0}), (JointDecoder, {"patch": 1})],
)
def test_decoders_of_pictures_paint_maps_of_any_number_of_features(kind, settings):
    torch.manual_seed(0)
    painter = kind(SLOT_DIM, (2, 3), hidden_dim=6, channels=7, **settings).double().eval()
    scene = painter(slots(), torch.tensor([[True, True, False], [True, True, True]]))
    assert scene.rgb.shape == (2, 3, 7, 2, 3)
    assert_close(scene.masks.sum(1), torch.ones(2, 2, 3))
    assert not bool(scene.masks[0, 2].any())

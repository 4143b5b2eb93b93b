"""Encoders by their settings: what a token sees, the network below an image's reconstruction, the whole image."""

import copy

import pytest
import tiny
import torch
from compositions import steps
from tolerances import CONVERGED, assert_close

import psa
from psa.errors import ConfigError
from psa.inference.autoencoder import build_autoencoder
from psa.inference.config import override, parse_config
from psa.inference.encoders.cnn import CnnEncoder
from psa.inference.evaluation import mask_kinds
from psa.inference.frozen_network import open_network
from psa.inference.sessions import start_run

FROZEN = ("encoder.kind=frozen", "features.options={size=16, hidden_dim=8, num_layers=1}")


@pytest.mark.parametrize(("kernel", "num_layers"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_a_token_sees_the_pixels_that_its_convolutions_reach(kernel, num_layers):
    torch.manual_seed(0)
    encoder = CnnEncoder(4, num_layers, 1, 4, kernel=kernel).double()
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    encoder(images)[0].unflatten(0, (16, 16))[8, 8].square().sum().backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(0) > 0
    reach = num_layers * (kernel // 2)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[8 - reach : 9 + reach, 8 - reach : 9 + reach] = True
    assert not bool((seen & ~expected).any())
    assert bool(seen[[8 - reach, 8 + reach, 8, 8], [8, 8, 8 - reach, 8 + reach]].all())


def test_an_even_kernel_is_refused():
    values = override({}, ["encoder.kernel=4"])
    with pytest.raises(ConfigError, match=r"encoder\.kernel must be odd, got 4"):
        build_autoencoder(parse_config(values), (16, 16))
    values = override({}, ["decoder.kind=broadcast", "decoder.kernel=2"])
    with pytest.raises(ConfigError, match=r"decoder\.kernel must be odd, got 2"):
        build_autoencoder(parse_config(values), (16, 16))


@pytest.mark.usefixtures("unchecked")
def test_pixels_are_observed_through_a_frozen_network(tmp_path):
    """Its features reach the tokens, its weights are neither trained nor kept, and the checksum is the run's."""
    values = override(tiny.WITHOUT_KL, [*tiny.SETTINGS, *tiny.SPRITES, *FROZEN, "training.steps=2"])
    trainer = start_run(values, tmp_path)
    trainer.fit()
    model = psa.load(tmp_path)
    network = open_network(model.config.features)
    assert model.config.features.checksum == network.checksum
    assert not any("layers" in name for name in model.state_dict())
    images = tiny.tiny_images(3).batch(slice(None))
    encoder = model.guide.encoder
    assert_close(encoder(images), super(type(encoder), encoder).forward(network.maps(images)), CONVERGED)
    assert_close(copy.deepcopy(encoder)(images), encoder(images), CONVERGED)
    assert model.decode(model.encode(images)[1]).mean.shape == images.shape
    assert model.attended(model.encode(images)[0]).shape == (3, 3, 16, 16)
    assert model.has_pixel_density
    steps(model.train())


@pytest.mark.usefixtures("unchecked")
def test_a_plain_autoencoder_is_one_slot_on_one_token_of_the_whole_image():
    model = tiny.tiny_autoencoder(
        {"slots": {"variant": "em", "overrides": {"readout": "mean"}}},
        "encoder.kind=whole",
        "slots.num_slots=1",
        "slots.slot_dim=12",
        "decoder.kind=joint",
    )
    images = tiny.tiny_images(3).batch(slice(None))
    assert_close(model.encode(images)[1], model.guide.encoder(images), CONVERGED)
    posterior, slots, _ = model.encode(images)
    assert set(mask_kinds(model, posterior, model.decode(slots))) == {"decoder"}
    steps(model.train())

"""The study of features: what its network learns from, what its rows share, and a verdict that follows the figures."""

from pathlib import Path

import pytest
import torch
from tolerances import ALGEBRA, FLOAT32, assert_close

from psa.experiments.feature_reconstruction import ROWS, SCALES, FeatureReconstruction, _verdict
from psa.experiments.masked_autoencoding import MaskedAutoencoder, MaskedAutoencoding, kept_weights, learn, waves
from psa.experiments.over_seeds import gain
from psa.inference.config import FeaturesConfig
from psa.inference.frozen_network import open_network, weights_checksum

TINY = MaskedAutoencoding(size=16, hidden_dim=8, num_layers=1, steps=3, batch_size=4)
NUM_SEEN = 6


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_hidden_pixels_do_not_reach_what_is_told_of_them_and_seen_ones_do():
    torch.manual_seed(0)
    model, order = MaskedAutoencoder(TINY), torch.randperm(16)[None].expand(2, -1)
    batch = images(2)
    told = model(batch, order, NUM_SEEN)
    assert told.shape == (2, 10, 48)
    for place, reached in ((order[0, NUM_SEEN], False), (order[0, -1], False), (order[0, 0], True)):
        row, column = divmod(int(place), 4)
        changed = batch.clone()
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
        assert torch.equal(model(changed, order, NUM_SEEN), told) != reached


def test_the_loss_is_that_of_the_hidden_patches_laid_out_as_the_network_sees_them():
    """With a head that tells zeros, it is the mean square of the hidden pixels."""
    model, order = MaskedAutoencoder(TINY).double(), torch.arange(16)[None].expand(2, -1)
    for parameter in model.head[1].parameters():
        parameter.data.zero_()
    batch = images(2).double()
    hidden = batch.clone()
    hidden[:, :, :4], hidden[:, :, 4:8, :8] = 0.0, 0.0  # patches 0 to 5, row-major
    assert_close(model.loss(batch, order, NUM_SEEN), hidden.square().sum() / (2 * 10 * 48), ALGEBRA)


def test_near_positions_are_more_alike_than_far_ones():
    positions = waves(4, 16).double()
    products = positions @ positions.mT
    assert products[0, 1] > products[0, 3]
    assert products[0, 4] > products[0, 12]
    assert_close(products.diagonal(), torch.full((16,), 8.0, dtype=torch.float64), FLOAT32)


def test_weights_are_a_function_of_settings_and_images_and_are_made_once(tmp_path: Path):
    state = torch.random.get_rng_state()
    path = kept_weights(TINY, images(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, when = path.read_bytes(), path.stat().st_mtime_ns
    assert kept_weights(TINY, images(), tmp_path).stat().st_mtime_ns == when
    path.unlink()
    assert kept_weights(TINY, images(), tmp_path).read_bytes() == first
    assert kept_weights(TINY, images(7), tmp_path) != path
    network = open_network(FeaturesConfig(options=TINY.options, weights=str(path)))
    assert network.checksum == weights_checksum(learn(TINY, images()).network.state_dict())
    assert network.checksum != open_network(FeaturesConfig(options=TINY.options)).checksum


def test_what_is_hidden_is_told_better_after_learning():
    settings = MaskedAutoencoding(size=16, hidden_dim=16, num_layers=1, steps=150, batch_size=8, learning_rate=3e-3)
    plain = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16).contiguous()
    torch.manual_seed(settings.seed)
    model, order = MaskedAutoencoder(settings), torch.randperm(16)[None].expand(16, -1)
    before = float(model.loss(2 * plain - 1, order, NUM_SEEN))
    assert float(learn(settings, plain).loss(2 * plain - 1, order, NUM_SEEN)) < 0.2 * before


def test_rows_differ_in_what_they_name_alone(tmp_path: Path):
    study = SCALES["smoke"]
    assert isinstance(study, FeatureReconstruction)
    found = {name: study.config(row, 0, tmp_path).model_dump() for name, row in ROWS.items()}
    base = found["patch"]
    for name, row in ROWS.items():
        values = found[name]
        assert values["slots"].pop("slot_dim") == (16 if row.large else 8)
        assert (values["bottleneck"].pop("covariance") > 0) == row.covariance
        assert values["decoder"].pop("kind") == row.decoder
        values["decoder"].pop("num_layers")
        assert (values["features"].pop("weights") is not None) == row.learned
        values["features"].pop("checksum")
    assert all(values == base for values in found.values())


@pytest.mark.parametrize(
    ("usual", "large", "regularised", "verdict"),
    [
        ((0.8, 0.81, 0.79), (0.3, 0.31, 0.29), (0.6, 0.61, 0.59), "holds"),
        ((0.8, 0.81, 0.79), (0.8, 0.81, 0.79), (0.8, 0.81, 0.79), "not decided at this scale"),
        ((0.8, 0.81, 0.79), (0.3, 0.31, 0.29), (0.3, 0.31, 0.29), "not decided at this scale"),
        ((0.8, 0.81, 0.79), (0.9, 0.91, 0.89), (0.95, 0.96, 0.94), "fails"),
        ((0.8, 0.81, 0.79), (0.3, 0.31, 0.29), (0.1, 0.11, 0.09), "fails"),
    ],
)
def test_the_verdict_follows_the_scores(usual, large, regularised, verdict):
    assert _verdict(gain(usual, large), gain(regularised, large)) == verdict

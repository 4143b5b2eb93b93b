import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import tiny
import torch
from tolerances import ALGEBRA, FLOAT32, assert_close
from torch import Tensor

import psa
from psa.inference.bottleneck import Bottleneck, cosine_loss, covariance_loss, variance_loss
from psa.inference.config import BottleneckConfig, published
from psa.inference.evaluation import describe_objective
from psa.inference.held_out import held_out_row
from psa.inference.objectives import held_out_objective, objective
from psa.inference.training import seed_everything as seed
from psa.metrics import mean_squared_correlation
from psa.runs import load_tensors

ALL = ("bottleneck.covariance=3", "bottleneck.variance=5", "bottleneck.cosine=2", "bottleneck.projection_dim=6")
MEMBERS = {
    "kl": tiny.WITH_KL,
    "point": tiny.WITHOUT_KL,
    "sa": published("sa"),
    "psa-proj": published("psa-proj"),
}


def rows(count: int = 7, features: int = 4) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1


def test_losses_by_hand():
    """Deviations (-2, -2), (0, 2), (2, 0): variances 4, covariance 2."""
    z = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]], dtype=torch.float64)
    assert_close(covariance_loss(z), 2 * 2**2 / 2)
    assert_close(variance_loss(z, 3.0, epsilon=0.0), 1.0)
    assert_close(variance_loss(z, 3.0, epsilon=0.41), 3 - 2.1)
    assert_close(variance_loss(z, 1.0), 0.0)
    slots = torch.tensor([[[1.0, 0.0], [3.0, 3.0], [0.0, -2.0]]], dtype=torch.float64)
    assert_close(cosine_loss(slots), torch.tensor([2 * (math.sqrt(0.5) - 0.2)], dtype=torch.float64))


def test_variance_and_covariance_match_numpy():
    z = rows()
    matrix = np.cov(z.numpy(), rowvar=False)
    off = [matrix[i, j] ** 2 for i in range(4) for j in range(4) if i != j]
    assert_close(covariance_loss(z), sum(off) / 4)
    assert_close(variance_loss(z, 2.0), np.maximum(0, 2.0 - np.sqrt(np.diag(matrix) + 1e-4)).mean())


def test_one_row_has_no_covariance_and_lacks_all_variance():
    assert covariance_loss(rows(1)) == 0
    assert_close(variance_loss(rows(1)), 1 - 0.01)


def test_the_cosine_loss_matches_torchs_embedding_loss_over_ordered_pairs():
    slots = rows(15).view(3, 5, 4)
    apart = torch.nn.CosineEmbeddingLoss(margin=0.2, reduction="sum")
    for image, came in zip(slots, cosine_loss(slots), strict=True):
        pairs = [(image[i], image[j]) for i in range(5) for j in range(5) if i != j]
        one, other = (torch.stack(side) for side in zip(*pairs, strict=True))
        assert_close(came, apart(one, other, -torch.ones(len(pairs), dtype=torch.float64)), 1e-7)


def test_the_cosine_loss_is_of_directions_and_of_active_slots():
    slots = rows(15).view(3, 5, 4)
    assert_close(cosine_loss(slots * torch.rand(3, 5, 1).double().add(0.1)), cosine_loss(slots))
    active = torch.tensor([[True, True, True, False, False]]).expand(3, 5)
    assert_close(cosine_loss(slots, active), cosine_loss(slots[:, :3]))


def test_decorrelated_features_have_no_covariance_loss_and_equal_ones_the_largest():
    z = rows(20)
    whitened = torch.linalg.qr(z - z.mean(0)).Q
    assert_close(covariance_loss(whitened), 0.0)
    assert_close(mean_squared_correlation(whitened), 0.0)
    equal = z[:, :1].expand(-1, 4)
    assert_close(covariance_loss(equal), 3 * z[:, 0].var() ** 2)
    assert_close(mean_squared_correlation(equal), 1.0)


def test_correlation_matches_numpy_and_knows_no_scale():
    z = rows()
    matrix = np.corrcoef(z.numpy(), rowvar=False)
    assert_close(mean_squared_correlation(z), (np.square(matrix).sum() - 4) / 12)
    assert_close(mean_squared_correlation(z * torch.tensor([1e-6, 1.0, -3.0, 50.0]) - 4), mean_squared_correlation(z))
    with_constant = torch.cat([z[:, :2], torch.full((7, 1), 0.1, dtype=torch.float64)], dim=1)
    assert_close(mean_squared_correlation(with_constant), matrix[0, 1] ** 2 / 3)
    assert math.isnan(mean_squared_correlation(z[:, :1]))


def losses(autoencoder, images: Tensor) -> Tensor:
    """What the factors cost a batch, by hand, at the draw that the generator's state gives."""
    with torch.no_grad(), torch.random.fork_rng():
        slots = pyro.poutine.trace(autoencoder.guide).get_trace(images).nodes["slot"]["value"]
    z = autoencoder.model.factors.head(slots.flatten(0, 1))
    return len(images) * (3 * covariance_loss(z) + 5 * variance_loss(z)) + 2 * cosine_loss(slots).sum()


@pytest.mark.parametrize("values", MEMBERS.values(), ids=MEMBERS)
def test_the_objective_gains_the_weighted_losses_of_each_image(values):
    with_losses, without = (tiny.tiny_autoencoder(values, *extra).double() for extra in (ALL, ()))
    images = tiny.tiny_images(4).batch(slice(None)).double()
    found = []
    for autoencoder in (with_losses, without):
        seed(3)
        found.append(objective(autoencoder)(images))
    seed(3)
    expected = losses(with_losses, images)
    assert expected > 1
    assert_close(found[0] - found[1], expected, 1e-8)


def test_the_other_weights_start_as_without_the_losses():
    with_losses, without = tiny.tiny_autoencoder(tiny.WITH_KL, *ALL), tiny.tiny_autoencoder(tiny.WITH_KL)
    weights = with_losses.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in without.state_dict().items())
    extra = weights.keys() - without.state_dict().keys()
    assert extra == {f"model.factors.head.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}


def test_only_the_factors_asked_for_are_there_and_the_cosine_needs_no_head():
    slots = torch.randn(2, 3, 4)
    for name in ("variance", "covariance", "cosine"):
        bottleneck = Bottleneck(BottleneckConfig(**{name: 1.0}), 4)
        assert (bottleneck.head is None) == (name == "cosine")
        with pyro.poutine.trace() as trace:
            bottleneck(slots)
        assert list(trace.trace.nodes) == [name]
    assert not BottleneckConfig().is_on
    assert tiny.tiny_autoencoder(tiny.WITH_KL).model.factors is None


def test_in_evaluation_mode_the_program_is_the_story_alone():
    autoencoder, without = (tiny.tiny_autoencoder(tiny.WITH_KL, *extra).double().eval() for extra in (ALL, ()))
    images = tiny.tiny_images(3).batch(slice(None)).double()
    values = []
    for one in (autoencoder, without):
        seed(1)
        values.append(objective(one)(images))
    assert_close(*values)
    assert held_out_objective(autoencoder, images) == held_out_objective(without, images)


def test_slots_that_are_not_decoded_do_not_count():
    bottleneck = Bottleneck(BottleneckConfig(covariance=1.0, variance=1.0, cosine=1.0), 4)
    slots, active = torch.randn(3, 5, 4), torch.rand(3, 5) < 0.6
    active[:, 0] = True

    def factors(values: Tensor) -> list[Tensor]:
        with pyro.poutine.trace() as trace:
            bottleneck(values, active)
        return [node["fn"].log_factor for node in trace.trace.nodes.values()]

    other = torch.where(active[:, :, None], slots, torch.randn(3, 5, 4))
    for one, two in zip(factors(slots), factors(other), strict=True):
        assert_close(one, two, FLOAT32)


def test_a_rule_for_empty_slots_passes_on_which_are_decoded():
    settings = ("decoder.relevance=weights", "decoder.relevance_threshold=1.0", "decoder.relevance_start=0")
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL, *ALL, *settings)
    seen = []
    autoencoder.model.factors.register_forward_hook(lambda module, given, output: seen.append(given[1]))
    images = tiny.tiny_images(4).batch(slice(None))
    objective(autoencoder)(images)
    assert torch.equal(seen[0], autoencoder.guide.active(autoencoder.guide.posterior(images)))
    assert not seen[0].all()


class Cut(Exception):
    pass


def cut_after_the_checkpoint(step: int, row: dict[str, float]) -> None:
    if step == 11:
        raise Cut


@pytest.mark.parametrize("variant", ["sa", "psa-proj"])
def test_training_lowers_the_losses_and_resumes_with_the_head_bit_by_bit(tmp_path, variant):
    """Weights that outweigh the picture, which 20 steps hardly improve."""
    weights = ("bottleneck.covariance=300", "bottleneck.variance=500", "bottleneck.cosine=200")
    values, settings = published(variant), (*weights, "bottleneck.projection_dim=6", "training.learning_rate=0.01")
    whole = tiny.tiny_trainer(values, *settings, path=tmp_path / "whole")
    before = losses(whole.autoencoder, whole.images.batch(slice(None)))
    whole.fit()
    assert losses(whole.autoencoder, whole.images.batch(slice(None))) < 0.9 * before
    with pytest.raises(Cut):
        tiny.tiny_trainer(values, *settings, path=tmp_path / "cut", progress=cut_after_the_checkpoint).fit()
    resumed = tiny.tiny_trainer(values, *settings, path=tmp_path / "cut")
    resumed.resume()
    assert resumed.step == 10
    resumed.fit()
    assert tiny.same_weights(resumed.autoencoder, whole.autoencoder)
    assert "model.factors.head.0.weight" in load_tensors(whole.run.checkpoint)[0]
    assert tiny.same_weights(psa.load(tmp_path / "whole"), whole.autoencoder)


def test_the_held_out_row_has_the_projections_correlation():
    autoencoder, images = tiny.tiny_autoencoder(tiny.WITH_KL, *ALL).eval(), tiny.tiny_images(6)
    slots = autoencoder.encode(images.images)[1]
    expected = mean_squared_correlation(autoencoder.model.factors.head(slots.flatten(0, 1)))
    assert_close(held_out_row(autoencoder, images)["projection_correlation"], expected, ALGEBRA)
    for extra in ((), ("bottleneck.cosine=1",)):
        other = tiny.tiny_autoencoder(tiny.WITH_KL, *extra).eval()
        assert "projection_correlation" not in held_out_row(other, replace(images, masks=None))


def test_a_run_says_which_losses_were_added():
    words = describe_objective(tiny.tiny_autoencoder(tiny.WITH_KL, "bottleneck.covariance=0.5", "bottleneck.cosine=2"))
    assert words.endswith("training added losses on slots (covariance 0.5, cosine 2), which are no part of the figure")
    assert "losses" not in describe_objective(tiny.tiny_autoencoder(tiny.WITH_KL))

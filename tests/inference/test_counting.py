"""The number of objects: frequencies of draws, their smoothing against SciPy's Dirichlet, and scores by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FLOAT32, assert_close, assert_mean_is
from torch import Tensor, nn

from psa.inference import counting
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.counting import count_frequencies, count_objects, log_score, smoothed
from psa.records import DecodedScene

NUM_DRAWS = 6


class Squares(nn.Module):
    """Slot 0 paints a background; each other slot a square of its own, if its first feature is above a number."""

    def __init__(self, above: Tensor) -> None:
        super().__init__()
        self.above = above

    def forward(self, slots: Tensor, active: Tensor | None = None) -> DecodedScene:
        batch, num_slots, _ = slots.shape
        rgb = torch.ones(batch, num_slots, 3, tiny.SIZE, tiny.SIZE)
        rgb[:, 0] = 0.5
        logits = torch.full((batch, num_slots, tiny.SIZE, tiny.SIZE), -20.0)
        logits[:, 0] = 0.0
        for k in range(1, num_slots):
            logits[:, k, 5 * k - 3 : 5 * k + 1, 2:6] = torch.where(slots[:, k, 0] > self.above[k], 20.0, -20.0)[
                :, None, None
            ]
        if active is not None:
            logits = logits.masked_fill(~active[:, :, None, None], -math.inf)
        return DecodedScene(rgb, logits.log_softmax(1))


def painter(values: dict, count: int = 8) -> SlotAutoencoder:
    """A run of squares: of the images' point slots about half are seen."""
    autoencoder = tiny.tiny_autoencoder(values).eval()
    with torch.no_grad():
        posterior = autoencoder.guide.posterior(tiny.tiny_images(count).batch(slice(None)))
        autoencoder.model.decoder = Squares(autoencoder.guide.slot_moments(posterior)[0][:, :, 0].quantile(0.5, 0))
    return autoencoder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies_of(autoencoder: SlotAutoencoder, seed: int = 0, count: int = 8) -> Tensor:
    return count_frequencies(autoencoder, tiny.tiny_images(count).batch(slice(None)), NUM_DRAWS, seeded(seed))


def test_frequencies_are_shares_of_the_draws_and_sum_to_1():
    found = frequencies_of(painter(tiny.WITH_KL))
    assert found.shape == (8, 4)
    assert_close(found.sum(1), torch.ones(8), FLOAT32)
    assert_close(NUM_DRAWS * found, (NUM_DRAWS * found).round(), FLOAT32)
    assert bool(((found > 0) & (found < 1)).any()), "draws that do not differ test nothing"
    assert not found[:, 3].any(), "the background is no object"


def test_each_draw_counts_anew():
    autoencoder, copies = painter(tiny.WITH_KL, 1), tiny.tiny_images(1).batch(slice(None)).expand(64, -1, -1, -1)
    found = count_frequencies(autoencoder, copies, 16, seeded())
    # each of two squares is seen in half the draws, for the number that it must be above is its slot's mean
    assert_mean_is(found, torch.tensor([0.25, 0.5, 0.25, 0.0]))


def test_all_draws_of_points_are_alike():
    found = frequencies_of(painter(tiny.WITHOUT_KL))
    assert set(found.flatten().tolist()) == {0.0, 1.0}
    assert_close(found.sum(1), torch.ones(8))
    assert len(found.unique(dim=0)) > 1, "images that do not differ test nothing"


@pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.DRAWN_MEANS], ids=["queries", "drawn means"])
def test_draws_repeat_by_their_generator_and_leave_the_global_one_alone(values: dict):
    autoencoder = painter(values)
    state = torch.get_rng_state()
    first = frequencies_of(autoencoder)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(frequencies_of(autoencoder), first)
    assert not torch.equal(frequencies_of(autoencoder, seed=1), first)


def test_slots_that_the_runs_rule_drops_are_not_counted(monkeypatch: pytest.MonkeyPatch):
    autoencoder = painter(tiny.WITH_KL)
    assert bool((frequencies_of(autoencoder)[:, 0] < 1).any())
    only_one = torch.tensor([[False, True, False]]).expand(8, -1)
    monkeypatch.setattr(autoencoder.guide, "active", lambda posterior: only_one)
    assert_close(frequencies_of(autoencoder)[:, 0], torch.ones(8))


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        count_frequencies(painter(tiny.WITH_KL), tiny.tiny_images(2).batch(slice(None)), 0)


@given(
    tallies=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any), min_size=1, max_size=3),
    strength=st.floats(0.1, 10.0),
    seed=st.integers(0, 10_000),
)
def test_smoothing_is_the_posterior_mean_under_a_dirichlet_prior(tallies: list[list[int]], strength: float, seed: int):
    overall = torch.rand(4, generator=seeded(seed), dtype=torch.float64) * torch.tensor([1.0, 0.0, 1.0, 1.0])
    overall /= overall.sum()
    for tally in tallies:
        num_draws = sum(tally)
        frequencies = torch.tensor([tally], dtype=torch.float64) / num_draws
        found = smoothed(frequencies, overall, num_draws, strength)
        prior = strength * (0.99 * overall.numpy() + 0.01 * np.full(4, 0.25))
        assert_close(found[0], torch.tensor(scipy.stats.dirichlet(prior + np.array(tally)).mean()))
        assert bool((found > 0).all())


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_counts_of_points_do_not_depend_on_how_images_are_cut(chunk: int, monkeypatch: pytest.MonkeyPatch):
    autoencoder, images, done = painter(tiny.WITHOUT_KL, 12), tiny.tiny_images(12), []
    monkeypatch.setattr(counting, "CHUNK", chunk)
    found = count_objects(autoencoder, images, NUM_DRAWS, progress=done.append)
    assert done == [*range(chunk, 12, chunk), 12]
    one_by_one = torch.cat([count_frequencies(autoencoder, images.batch(slice(m, m + 1)), 1) for m in range(12)])
    assert_close(found, smoothed(one_by_one, one_by_one.mean(0), NUM_DRAWS), FLOAT32)
    assert len(found.unique(dim=0)) > 1, "images that do not differ test nothing"


def test_counts_sum_to_1_are_never_0_and_repeat_by_their_generator():
    autoencoder, images = painter(tiny.WITH_KL), tiny.tiny_images(6)
    found = count_objects(autoencoder, images, NUM_DRAWS, seeded())
    assert found.shape == (6, 4)
    assert_close(found.sum(1), torch.ones(6), FLOAT32)
    assert bool((found > 0).all())
    assert torch.equal(count_objects(autoencoder, images, NUM_DRAWS, seeded()), found)


def test_the_score_is_the_log_probability_of_the_true_count():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.125, 0.875, 0.0]], dtype=torch.float64)
    found = log_score(probabilities, torch.tensor([1, 1, 0]))
    assert_close(found, torch.tensor([math.log(0.25), 0.0, math.log(0.125)], dtype=torch.float64))


def test_more_objects_than_slots_have_probability_zero():
    found = log_score(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([1, 2]))
    assert found.tolist() == [pytest.approx(math.log(0.5)), -math.inf]

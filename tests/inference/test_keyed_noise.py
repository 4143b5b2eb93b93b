"""Noise that is a function of seed, epoch and image: its distribution by scipy, its keys, and who uses it."""

import itertools

import numpy as np
import pyro.distributions as dist
import pytest
import tiny
import torch
from scipy import stats
from tolerances import ALGEBRA, FLOAT32, assert_close

from psa.inference.config import published
from psa.inference.initialisers import KMeansPlusPlus, TokenView
from psa.inference.keyed_noise import ImageNoise, KeyedNormal, Purpose, Site, keyed_dropout
from psa.inference.scene_priors import slot_posteriors
from psa.models.decoders.dropout import GivenDropout

LEAST_P = 1e-3  # of a test on numbers that never change: chance plays no part when it is run again
COUNT = 20_000


def noise(*index: int, seed: int = 0, epoch: int = 0, purpose: Purpose = Purpose.TRAINING) -> ImageNoise:
    return ImageNoise(seed, epoch, torch.tensor(index), purpose)


def reference(seed: int, epoch: int, purpose: int, site: int, image: int, count: int) -> float:
    """The same hash in Python's integers, which do not wrap around by themselves."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def scrambled(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    key = 0
    for part in (seed, epoch, purpose, site, image, count):
        key = scrambled((key + golden * (part + 1)) & mask)
    return ((key >> 12) + 0.5) / 2**52


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_uniform_numbers_are_the_hash_computed_in_whole_numbers(seed):
    found = noise(0, 3, 2**33, seed=seed, epoch=5, purpose=Purpose.PRIOR).uniform(Site.SLOTS, (2, 4))
    expected = [[reference(seed, 5, 1, 1, image, count) for count in range(8)] for image in (0, 3, 2**33)]
    assert found.dtype == torch.float64
    assert found.flatten(1).tolist() == expected


def test_normal_numbers_are_normal_by_a_kolmogorov_smirnov_test_and_their_moments():
    draws = noise(*range(100), seed=3).normal(Site.START, (COUNT // 100,), torch.float64).flatten().numpy()
    assert stats.kstest(draws, "norm").pvalue > LEAST_P
    assert stats.normaltest(draws).pvalue > LEAST_P
    assert_close(
        noise(4).normal(Site.START, (6,), torch.float64)[0].numpy(),
        stats.norm.ppf(noise(4).uniform(Site.START, (6,))[0].numpy()),
        ALGEBRA,
    )


KEYS = {
    "seed": lambda place: noise(0, seed=place),
    "epoch": lambda place: noise(0, epoch=place),
    "image": lambda place: noise(3 + place),
    "purpose": lambda place: noise(0, purpose=Purpose(place % 3), epoch=place // 3),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("part", KEYS)
def test_one_number_a_key_is_normal_and_neighbouring_keys_are_independent(part):
    """Each key's first number: a hash that lets neighbours through shows here and not within one key."""
    draws = np.array([float(KEYS[part](place).normal(Site.START, (1,), torch.float64)) for place in range(300)])
    assert stats.kstest(draws, "norm").pvalue > LEAST_P
    for lag in (1, 2, 3):
        assert stats.pearsonr(draws[lag:], draws[:-lag]).pvalue > LEAST_P
        assert stats.pearsonr(draws[lag:] ** 2, draws[:-lag] ** 2).pvalue > LEAST_P
    quarter = np.digitize(draws, stats.norm.ppf([0.25, 0.5, 0.75]))
    table = np.zeros((4, 4))
    np.add.at(table, (quarter[1:], quarter[:-1]), 1)
    assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_sites_of_an_image_are_independent():
    draws = [noise(*range(2000)).normal(site, (1,), torch.float64).flatten() for site in Site]
    for one, other in itertools.combinations(draws, 2):
        assert stats.pearsonr(one, other).pvalue > LEAST_P
        assert not torch.equal(one, other)


def test_numbers_depend_on_their_own_image_and_place_alone():
    whole = noise(5, 1, 9).normal(Site.SLOTS, (3, 4), torch.float32)
    torch.rand(3)
    parts = [noise(image).normal(Site.SLOTS, (3, 4), torch.float32) for image in (5, 1, 9)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[:, :2], noise(5, 1, 9).normal(Site.SLOTS, (2, 4), torch.float32))


def test_the_ends_of_the_uniform_range_are_finite_normals():
    ends = torch.tensor([0, (1 << 52) - 1]).double().add(0.5) * 2.0**-52
    assert bool((2 * ends - 1).erfinv().isfinite().all())
    assert 0 < float(ends[0]) < float(ends[1]) < 1


def test_a_keyed_normal_has_the_density_and_the_divergence_of_a_normal():
    loc, scale = torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.1
    keyed, plain = KeyedNormal(loc, scale, noise(0, 1)).to_event(1), dist.Normal(loc, scale).to_event(1)
    draw = keyed.rsample()
    assert torch.equal(keyed.log_prob(draw), plain.log_prob(draw))
    prior = dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1).expand((2, 3))
    kl = torch.distributions.kl_divergence
    assert torch.equal(kl(keyed, prior), kl(plain, prior))
    assert torch.equal(draw, loc + scale * noise(0, 1).normal(Site.SLOTS, (3, 4), torch.float32))


def test_a_keyed_normal_draws_once_an_image_and_no_more():
    keyed = KeyedNormal(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), noise(0, 1))
    assert keyed.expand((2, 3, 4)) is keyed
    with pytest.raises(ValueError, match="batch_shape"):
        keyed.expand((5, 2, 3, 4))
    with pytest.raises(ValueError, match="one draw an image"):
        keyed.sample((2,))


INITIALISERS = ("standard-normal", "learned-gaussian", "noisy-queries", "kmeans++")


@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_the_start_of_an_image_does_not_depend_on_the_batch_it_is_in(initialiser):
    model = tiny.tiny_autoencoder(published("psa"), f"slots.overrides.initialiser={initialiser}").train()
    images = tiny.tiny_images(6)
    starts = []
    for part in (torch.arange(6), torch.tensor([4, 1]), torch.tensor([1])):
        torch.rand(5)
        with model.guide.drawing(noise(*part.tolist(), seed=2, epoch=1)):
            starts.append(model.guide.posterior(images.batch(part)).initial_loc)
    assert_close(starts[0][[4, 1]], starts[1], FLOAT32)
    assert_close(starts[1][1:], starts[2], FLOAT32)
    with model.guide.drawing(noise(1, seed=2, epoch=2)):
        other = model.guide.posterior(images.batch(torch.tensor([1]))).initial_loc
    assert not torch.allclose(other, starts[2])


def test_k_means_plus_plus_draws_tokens_in_proportion_to_their_weights():
    """The first slot is a token drawn by weight: padding, of weight 0, never; the others alike."""
    values = torch.arange(4.0).reshape(1, 4, 1).expand(3000, -1, -1)
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0]).expand(3000, -1)
    chosen = KMeansPlusPlus(1, 1)(TokenView(values, weights), 1, noise(*range(3000))).flatten().long()
    counts = torch.bincount(chosen, minlength=4).numpy()
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], [750, 1500, 750]).pvalue > LEAST_P


DROPPING = ("decoder.kind=transformer", "decoder.dropout=0.3", "code.vocabulary=4", "decoder.num_heads=2")


def test_what_is_dropped_of_an_image_does_not_depend_on_the_batch_it_is_in():
    model = tiny.tiny_autoencoder(published("bo-qsa"), *DROPPING).train().model
    slots = torch.randn(10, 3, 8, generator=torch.Generator().manual_seed(0))
    words = torch.arange(160).reshape(10, 16) % 4
    found = []
    for part in (torch.arange(10), torch.tensor([9, 1])):
        torch.rand(3)
        with keyed_dropout(model, noise(*part.tolist(), seed=2, epoch=1)):
            found.append(model.decoder.log_probs(words[part], slots[part]))
    assert_close(found[0][[9, 1]], found[1], FLOAT32)
    with keyed_dropout(model, noise(9, 1, seed=2, epoch=2)):
        assert not torch.allclose(model.decoder.log_probs(words[part], slots[part]), found[1])
    assert not torch.allclose(model.decoder.log_probs(words[part], slots[part]), found[1])


def test_places_drop_independently_and_as_often_as_they_should():
    network = torch.nn.Sequential(GivenDropout(0.3), torch.nn.Linear(1, 1), GivenDropout(0.3)).train()
    with keyed_dropout(network, noise(*range(100))):
        first, other = (network[i](torch.ones(100, 200)) > 0 for i in (0, 2))
    table = torch.bincount(2 * first.flatten() + other.flatten(), minlength=4).numpy()
    expected = 20_000 * np.outer([0.3, 0.7], [0.3, 0.7]).ravel()
    assert stats.chisquare(table, expected).pvalue > LEAST_P
    assert all(place.keep is None for place in (network[0], network[2]))


@pytest.mark.usefixtures("unchecked")
def test_training_neither_reads_nor_moves_the_global_generator():
    for values, settings in ((tiny.DRAWN_MEANS, ()), (published("bo-qsa"), ()), (published("bo-qsa"), DROPPING)):
        losses = []
        for start in (1, 2):
            trainer = tiny.tiny_trainer(values, "training.evaluate_every=2", "training.steps=2", *settings)
            torch.manual_seed(start)
            before = torch.random.get_rng_state()
            trainer.fit()
            assert torch.equal(before, torch.random.get_rng_state())
            losses.append([(row["loss"], row["held_out"], row["mse"]) for row in trainer.history])
        assert losses[0] == losses[1]


def test_each_epoch_and_seed_draws_other_slots():
    model = tiny.tiny_autoencoder(tiny.WITH_KL).train()
    images = tiny.tiny_images(3).batch(slice(None))
    posterior = model.guide.posterior(images)
    draws = []
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        with model.guide.drawing(noise(0, 1, 2, seed=seed, epoch=epoch)):
            draws.append(model.guide.slot_distribution(posterior).rsample())
    for one, other in itertools.combinations(draws, 2):
        assert not torch.allclose(one, other)


def test_outside_training_draws_are_those_of_the_global_generator():
    model = tiny.tiny_autoencoder(published("psa"))
    images = tiny.tiny_images(3).batch(slice(None))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(model.guide.posterior(images).initial_loc)
    assert torch.equal(*found)
    assert not torch.equal(found[0], model.guide.posterior(images).initial_loc)


def test_the_slots_that_a_prior_is_built_from_do_not_depend_on_chunks_or_the_global_generator():
    model = tiny.tiny_autoencoder(published("psa"))
    images = tiny.tiny_images(6)
    whole, _ = slot_posteriors(model, images.images)
    torch.rand(3)
    part, _ = slot_posteriors(model, images.images[4:], 4)
    assert_close(whole.loc[4:], part.loc, FLOAT32)

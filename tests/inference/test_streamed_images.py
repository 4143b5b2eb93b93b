"""Runs whose images are not in memory: the same numbers, whoever reads them and wherever they begin."""

from pathlib import Path

import pytest
import tiny
import torch
from largest_tensor import largest_tensor

from psa.data import Hdf5Scenes
from psa.inference import evaluation, images, reduction, scene_priors, sessions
from psa.inference.data_config import DataConfig
from psa.inference.evaluation import evaluate, evaluate_baselines
from psa.inference.images import Batches, Images, ImageSet, ImageStream, StepImages
from psa.inference.scene_priors import build_scene_prior, fit_slot_prior, slot_aggregate
from psa.inference.sessions import training_images
from psa.inference.training import Trainer

NUM_IMAGES = 14  # batches of 4, so that an epoch is 3 steps and leaves 2 images out


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tiny.write_hdf5(tmp_path_factory.mktemp("data") / "scenes.h5", NUM_IMAGES)


@pytest.fixture(scope="module")
def held(file) -> ImageSet:
    return stream(file).in_memory()


def stream(file: Path, workers: int = 0) -> ImageStream:
    return ImageStream(Hdf5Scenes(file, "all"), workers=workers)


def same(one: ImageSet, other: ImageSet) -> bool:
    masks = (one.masks is None) == (other.masks is None) and (one.masks is None or torch.equal(one.masks, other.masks))
    return torch.equal(one.images, other.images) and masks and one.background == other.background


def test_what_is_read_into_memory_is_the_data_set(file, held):
    expected = tiny.tiny_images(NUM_IMAGES)
    assert same(held, expected)
    assert same(images.read_images(Hdf5Scenes(file, "all"), 3), expected.first(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_as_a_set_in_memory(file, held, workers):
    read = stream(file, workers)
    assert (len(read), read.size, read.has_masks) == (len(held), held.size, held.has_masks)
    for length in (1, 5, 100):
        with read.chunks(length) as some, held.chunks(length) as others:
            assert all(same(one, other) for one, other in zip(some, others, strict=True))
    assert same(read.pick([9, 2]), held.pick([9, 2]))
    assert len(read.first(5)) == len(read.first(7).first(5)) == 5
    assert len(read.first(100)) == NUM_IMAGES
    assert same(read.first(5).in_memory(), held.first(5))


def test_bytes_are_those_of_the_set_in_memory(file, held):
    assert stream(file).num_bytes == held.images.nbytes + held.masks.nbytes
    plain = tiny.write_hdf5(file.with_name("plain.h5"), 3, masks=False)
    assert stream(plain).num_bytes == stream(plain).in_memory().images.nbytes


def test_images_that_fit_the_budget_are_kept_and_others_are_not(file):
    gib = stream(file).num_bytes / sessions.GIB
    dataset = Hdf5Scenes(file, "all")
    assert isinstance(training_images(dataset, DataConfig(memory=gib)), ImageSet)
    kept_out = training_images(dataset, DataConfig(memory=gib * 0.999, workers=3))
    assert isinstance(kept_out, ImageStream)
    assert kept_out.workers == 3


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_step_sees_the_same_images_whoever_reads_them(file, held, workers):
    batches = Batches(NUM_IMAGES, 4, seed=3)
    with StepImages(stream(file, workers), Batches(NUM_IMAGES, 4, seed=3)) as source:
        for step in (*range(7), 20, 2, 3):  # also after a jump
            batch = source.batch(step)
            assert torch.equal(batch.index, batches(step))
            assert torch.equal(batch.images, held.batch(batches(step)))
            assert batch.epoch == step // 3


def weights_after(source: Images, path: Path, *stops: int) -> dict[str, torch.Tensor]:
    """Of a run of 7 steps that is stopped, and gone on with by another trainer, at each of some."""
    for stop in (*stops, 7):
        trainer = tiny.tiny_trainer(tiny.WITH_KL, "training.steps=7", path=path)
        trainer = Trainer(trainer.autoencoder, source, trainer.held_out, trainer.config, trainer.run)
        if trainer.run is not None and trainer.run.state.exists():
            trainer.resume()
        trainer.fit(until=stop)
    return trainer.autoencoder.state_dict()


@pytest.fixture(scope="module")
def expected(held, tmp_path_factory) -> dict[str, torch.Tensor]:
    return weights_after(held, tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("workers", [0, 1])
def test_training_from_a_stream_is_bit_by_bit_training_from_memory(file, expected, workers, tmp_path):
    found = weights_after(stream(file, workers), tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("stop", range(1, 7))
def test_resuming_at_any_step_gives_the_batches_that_were_left(file, expected, stop, tmp_path):
    found = weights_after(stream(file), tmp_path, stop)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_all_that_is_computed_of_images_is_the_same_from_a_stream(file, held, monkeypatch):
    for module in (evaluation, scene_priors):
        monkeypatch.setattr(module, "CHUNK", 5)
    run = tiny.tiny_autoencoder(tiny.WITH_KL).eval()
    assert evaluate(run, stream(file)) == evaluate(run, held)
    assert evaluate_baselines(stream(file), 3) == evaluate_baselines(held, 3)
    aggregates = [slot_aggregate(run, source, 4, 9) for source in (stream(file), held)]
    priors = [build_scene_prior(run, source, 4) for source in (stream(file), held)]
    assert torch.equal(priors[0].roles, priors[1].roles)
    for one, other in (aggregates, (prior.aggregate for prior in priors)):
        for name in ("weights", "loc", "var"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    plain = [tiny.tiny_autoencoder(tiny.WITHOUT_KL).eval() for _ in range(2)]
    for model, source in zip(plain, (stream(file), held), strict=True):
        fit_slot_prior(model, source)
    assert tiny.same_weights(*plain)


@pytest.mark.parametrize(
    "work",
    [
        evaluate,
        lambda run, source: evaluate_baselines(source, 3),
        lambda run, source: build_scene_prior(run, source, 4),
    ],
    ids=["evaluate", "baselines", "prior"],
)
def test_no_tensor_grows_with_the_number_of_images(work, monkeypatch):
    for module in (evaluation, scene_priors):
        monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(reduction, "START_SLOTS", 12)
    monkeypatch.setattr(reduction, "CACHED_BYTES", 1 << 12)
    run = tiny.tiny_autoencoder(tiny.WITH_KL).eval()
    largest = []
    for count in (8, 40):
        source = tiny.tiny_images(count)
        with largest_tensor() as probe:
            work(run, source)
        largest.append(probe.largest)
    assert largest[0] == largest[1]

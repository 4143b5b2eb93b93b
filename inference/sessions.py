"""A whole run from a configuration: open the data, train, evaluate, write the page."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from psa.allocator import keep_freed_memory
from psa.data import DATASETS, SceneDataset, open_dataset
from psa.errors import ConfigError, DataError, RunError
from psa.files import NO_ROOM
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.classed_images import ClassedImages
from psa.inference.config import RunConfig, override, parse_config
from psa.inference.data_config import READING, DataConfig
from psa.inference.encoders.cnn import MIN_IMAGE_SIZE
from psa.inference.evaluation import Evaluation, evaluate, evaluate_baselines
from psa.inference.feature_cache import with_features
from psa.inference.frozen_network import open_network
from psa.inference.images import Images, ImageSet, ImageStream, read_images
from psa.inference.processes import Processes
from psa.inference.reporting import write_run_report
from psa.inference.scene_priors import build_scene_prior
from psa.inference.training import Progress, Trainer, seed_everything
from psa.metrics import SegmentationSummary
from psa.progress import long_work
from psa.report import RunsTable
from psa.runs import RunDirectory, load_tensors

GIB = 1 << 30
NUM_TRAINING = 16_000
# About three quarters of the sprite scenes have two objects or more: 1,400 hold over 1,000 of them.
NUM_EVALUATED = 1_400


def open_split(data: DataConfig, split: str) -> SceneDataset:
    """A split of the configured data; the generators make as many scenes as training or evaluation needs.

    Raises:
        DataError: If it cannot be read, or its images are smaller than the encoder allows.
        ConfigError: If an option does not fit the source.
    """
    options = data.arguments()
    if data.source in DATASETS.own:
        wanted = options.get("num_scenes", NUM_TRAINING)
        options["num_scenes"] = wanted if split == "train" else min(wanted, NUM_EVALUATED)
    dataset = open_dataset(data.source, split, **options)
    size = dataset.info.size
    if not isinstance(dataset, SceneDataset) or size is None:
        raise DataError(f"{data.source}: expected images, found {dataset.info.kind}")
    if min(size) < MIN_IMAGE_SIZE:
        raise DataError(
            f"{dataset.source(0)}: expected at least {MIN_IMAGE_SIZE} pixels a side, found {size[0]} x {size[1]} "
            "(data.size=N resizes)"
        )
    return dataset


def prepared_as(autoencoder: SlotAutoencoder, source: str | None) -> DataConfig:
    """A run's own data, or another source with its images prepared as the run's are.

    Args:
        autoencoder: The run.
        source: A generator, a folder or a file; None for the run's own.
    """
    own = autoencoder.config.data
    if source is None or source == own.source:
        return own
    reading = own.model_dump(include=set(READING))
    if source == "sprites":  # square, and never cropped
        return DataConfig(source=source, size=autoencoder.size[0], **reading)
    takes = DATASETS[source].options if source in DATASETS else None
    size = autoencoder.size if takes is None or "size" in takes else None
    crop = own.crop if takes is None or "crop" in takes else None
    return DataConfig(source=source, size=size, crop=crop, **reading)


def kept_features(images: Images, config: RunConfig) -> Images:
    """The images with their features, where these are what a run observes, in memory; otherwise the images.

    Raises:
        PsaError: If the network of the features is not to be had, or their file cannot be read or written.
    """
    if config.encoder.kind != "features":
        return images
    return with_features(images.in_memory(), open_network(config.features), Path(config.features.cache))


def with_network(config: RunConfig) -> RunConfig:
    """The configuration with the shape of its features and the checksum of their network's weights.

    Raises:
        PsaError: If the network is not to be had.
    """
    if config.encoder.kind not in ("features", "frozen"):
        return config
    network = open_network(config.features)
    found = config.features.model_copy(update={"shape": network.shape, "checksum": network.checksum})
    return config.model_copy(update={"features": found})


def training_images(dataset: SceneDataset, data: DataConfig) -> Images:
    """All images of a data set: in memory where they fit ``data.memory``, otherwise read whenever they are needed."""
    images = ImageStream(dataset, workers=data.workers)
    return images.in_memory() if images.num_bytes <= data.memory * GIB else images


def stream_images(autoencoder: SlotAutoencoder, data: DataConfig, split: str, limit: int | None = None) -> Images:
    """The first images of a split, which a run must be able to encode, read whenever they are needed.

    Args:
        autoencoder: The run.
        data: Where the images come from; see :func:`prepared_as`.
        split: train, val, test, or all of a folder or file.
        limit: The most images; None for all.

    Raises:
        DataError: If the images cannot be read, or are not of the run's size.
        ConfigError: If an option does not fit the source.
    """
    images = kept_features(ImageStream(open_split(data, split), limit, data.workers), autoencoder.config)
    if images.size != tuple(autoencoder.size):
        (height, width), (rows, columns) = autoencoder.size, images.size
        raise DataError(f"{data.source}: expected images of {height} x {width} as the run's, got {rows} x {columns}")
    return images


def with_classes(images: Images, data: DataConfig, split: str) -> Images:
    """The images with the masks of their classes too, where the data set has them beside those of its objects."""
    if images.label_kind == "class" or "class" not in open_split(data, split).mask_options:
        return images
    other = open_split(data.model_copy(update={"masks": "class"}), split)
    return ClassedImages(images, ImageStream(other, len(images), data.workers))


def run_images(autoencoder: SlotAutoencoder, data: DataConfig, split: str, limit: int | None = None) -> ImageSet:
    """The same in memory."""
    return stream_images(autoencoder, data, split, limit).in_memory()


def open_trainer(
    config: RunConfig,
    run: RunDirectory | None,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> Trainer:
    """A trainer at step 0, its weights drawn from training.seed; on each of the processes, if there are several."""
    training, held_out = open_split(config.data, "train"), open_split(config.data, "val")
    open_split(config.data, "test")  # what the end needs is looked for at the start
    seed_everything(config.training.seed)
    torch.set_num_threads(config.training.threads)
    keep_freed_memory()
    size = training.info.size
    assert size is not None
    autoencoder = build_autoencoder(config, size)
    try:
        autoencoder.to(config.training.device if processes is None else processes.device(config.training))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"training.device: {config.training.device!r} is not to be had here ({error})") from None
    images = kept_features(training_images(training, config.data), config)
    held = kept_features(read_images(held_out, config.training.num_held_out, config.data.workers), config).in_memory()
    return Trainer(autoencoder, images, held, config.training, run, progress, processes)


def start_run(
    values: Mapping[str, Any], path: Path, progress: Progress | None = None, processes: Processes | None = None
) -> Trainer:
    """A trainer for a new run directory.

    Raises:
        RunError: If the directory holds a run already.
    """
    config = with_network(parse_config(values))
    run, first = RunDirectory(path), processes is None or processes.first
    if first and run.config.exists():
        raise RunError(f"{path}: holds a run already; --resume goes on with it, another --out starts a new one")
    trainer = open_trainer(config, run, progress, processes)
    if first:
        run.create()
        run.write_config(config.to_toml())
    return trainer


def resume_run(
    path: Path, settings: Sequence[str], progress: Progress | None = None, processes: Processes | None = None
) -> Trainer:
    """A trainer at the last checkpoint of a run directory; settings may lengthen it.

    Raises:
        RunError: If there is no run, or its state is not to be read.
    """
    run = RunDirectory(path)
    config = parse_config(override(run.read_config(), settings), str(run.config))
    trainer = open_trainer(config, run, progress, processes)
    if run.state.exists() or run.checkpoint.exists():  # else it was killed before there was anything: step 0
        trainer.resume()
    if processes is None or processes.first:
        run.write_config(config.to_toml())
    return trainer


def build_prior(
    autoencoder: SlotAutoencoder, run: RunDirectory, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Build the prior over scenes from all training images, give it to the run, and write prior.safetensors.

    Args:
        autoencoder: The run, as its checkpoint has it.
        run: Where it is from.
        progress: Called with the number of images done, and of all.

    Raises:
        PsaError: If the training images cannot be read, or the file cannot be written.
    """
    images = stream_images(autoencoder, autoencoder.config.data, "train")
    seed = autoencoder.config.training.seed
    try:
        prior = build_scene_prior(autoencoder, images, seed=seed, progress=lambda done: progress(done, len(images)))
    except OSError as error:
        raise RunError(
            f"{tempfile.gettempdir()}: expected room for the slots of {len(images)} images "
            f"({error.strerror or error}); TMPDIR names another folder"
        ) from None
    autoencoder.use_prior(prior)
    try:
        prior.save(run.prior, load_tensors(run.checkpoint)[1].get("step"))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise RunError(f"{run.prior}: cannot be written ({error.strerror or error})") from None


@dataclass(frozen=True)
class Outcome:
    """An evaluated run."""

    evaluation: Evaluation
    baselines: Mapping[str, SegmentationSummary]


def evaluate_run(
    autoencoder: SlotAutoencoder,
    run: RunDirectory,
    data: DataConfig,
    split: str,
    runs: RunsTable | None = None,
) -> Outcome:
    """Score a run on a split, and write its page and picture."""
    images = with_classes(stream_images(autoencoder, data, split), data, split)
    once, num_slots = len(images), autoencoder.model.num_slots
    with long_work(f"scoring {data.source}", once * (1 + images.has_masks)) as tell:
        evaluation = evaluate(autoencoder, images, tell)
        outcome = Outcome(evaluation, evaluate_baselines(images, num_slots, lambda done: tell(once + done)))
    title = f"{autoencoder.config.slots.variant} on {data.source} ({split})"
    write_run_report(run, autoencoder, images, outcome.evaluation, outcome.baselines, title=title, runs=runs)
    return outcome


def summary(outcome: Outcome, run: RunDirectory) -> dict[str, object]:
    """An outcome as plain values for ``--json``: the main figure first, baselines beside it."""
    baselines = {name: scores.foreground_ari for name, scores in outcome.baselines.items()}
    return outcome.evaluation.to_json() | {"baselines": baselines, "report": str(run.report)}

"""`psa bench --suite train`: what a training step costs, at three sizes.

The prototype's: 32 x 32 images, batch 16, 16 x 16 tokens, five slots of 16 features, three E/M steps, patch decoder of
width 64. The demo's: the same with eight E/M steps and two layers of width 96. CLEVR's: 128 x 128 images of 3 to 6
objects, a token a pixel, seven slots of 64 features, convolutions of 64 channels, broadcast decoder from 8 x 8
positions: about Slot Attention's model for CLEVR6 (Locatello et al. 2020), but batch 2 in place of 64 and
convolutions of 3 x 3 in place of 5 x 5.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time

import torch

from psa.data import SpriteOptions, Sprites
from psa.inference.autoencoder import build_autoencoder
from psa.inference.config import RECIPE, override, parse_config, published
from psa.inference.images import ImageSet, read_images
from psa.inference.training import Trainer, seed_everything

MEMBERS = ("recipe", "sa", "bo-qsa", "smm", "psa", "psa-proj")
VARIANTS = (*MEMBERS, "vb")
NUM_IMAGES = 512


@dataclass(frozen=True)
class StepProblem:
    """What is trained, and how often it is timed.

    Attributes:
        name: Of the size.
        settings: Of every variant, as ``key=value``; they win over the variant's own.
        scenes: What the images look like.
        variants: ``recipe`` or names of the family.
        blocks: Timed blocks a variant, after one that is not counted.
        steps: Steps a block.
    """

    name: str
    settings: tuple[str, ...]
    scenes: SpriteOptions = field(default_factory=SpriteOptions)
    variants: tuple[str, ...] = MEMBERS
    blocks: int = 7
    steps: int = 10

    @property
    def num_blocks(self) -> int:
        """Of all variants, those that are not counted included."""
        return len(self.variants) * (self.blocks + 1)


PROTOTYPE = StepProblem(
    "prototype",
    ("slots.num_iterations=3", "decoder.hidden_dim=64", "training.batch_size=16", "training.steps=100000"),
    variants=VARIANTS,
)
DEMO = StepProblem(
    "demo",
    (
        "slots.num_iterations=8",
        "decoder.hidden_dim=96",
        "decoder.num_layers=2",
        "training.batch_size=16",
        "training.steps=100000",
    ),
    blocks=5,
    steps=6,
)
CLEVR = StepProblem(
    "clevr",
    (
        "encoder.channels=64",
        "encoder.stride=1",
        "slots.num_slots=7",
        "slots.slot_dim=64",
        "slots.num_iterations=3",
        "decoder.kind=broadcast",
        "decoder.hidden_dim=64",
        "decoder.num_upsamplings=4",
        "training.batch_size=2",
        "training.steps=100000",
    ),
    SpriteOptions(size=128, min_objects=3, max_objects=6, min_visible=0.0),
    blocks=3,
    steps=1,
)
PROBLEMS = (PROTOTYPE, DEMO, CLEVR)


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step: medians over blocks of steps.

    Attributes:
        variant: ``recipe`` is the demo's objective and slots; the others are as published, all at the problem's size.
        cpu_ms: Processor time of a step, all threads, in ms.
        cpu_ms_low, cpu_ms_high: Fastest and slowest block.
        wall_ms: Wall time of a step.
        images_per_second, images_per_second_low, images_per_second_high: By wall time.
    """

    variant: str
    cpu_ms: float
    cpu_ms_low: float
    cpu_ms_high: float
    wall_ms: float
    images_per_second: float
    images_per_second_low: float
    images_per_second_high: float


def step_images(problem: StepProblem) -> ImageSet:
    """Sprite scenes of the problem's size, in memory."""
    return read_images(Sprites(problem.scenes, "train", NUM_IMAGES))


def step_trainer(
    problem: StepProblem, images: ImageSet, variant: str, device: str = "cpu", settings: Sequence[str] = ()
) -> Trainer:
    """A trainer of the problem's size, the weights from seed 0."""
    values = RECIPE if variant == "recipe" else published(variant)
    config = parse_config(override(values, [*problem.settings, *settings]))
    seed_everything(0)
    autoencoder = build_autoencoder(config, images.size).to(device)
    return Trainer(autoencoder, images, images, config.training)


def bench_train(
    problem: StepProblem = PROTOTYPE, device: str = "cpu", progress: Callable[[str], None] = lambda variant: None
) -> list[StepCost]:
    """Time training steps on one thread, blocks of the variants taking turns so that a noisy minute hits all.

    Args:
        problem: What is trained.
        device: A torch device.
        progress: Called with a variant's name before each of its blocks.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = step_images(problem)
    trainers = {variant: step_trainer(problem, images, variant, device) for variant in problem.variants}
    cpu: dict[str, list[float]] = {variant: [] for variant in trainers}
    wall: dict[str, list[float]] = {variant: [] for variant in trainers}
    try:
        for block, variant in itertools.product(range(problem.blocks + 1), trainers):
            progress(variant)
            cpu_ms, wall_ms = _time_steps(trainers[variant], problem.steps)
            if block:
                cpu[variant].append(cpu_ms)
                wall[variant].append(wall_ms)
    finally:
        torch.set_num_threads(threads)
    return [_cost(name, cpu[name], wall[name], trainer.config.batch_size) for name, trainer in trainers.items()]


def _time_steps(trainer: Trainer, steps: int) -> tuple[float, float]:
    """CPU and wall time of a step, in ms."""
    cpu_start, wall_start = process_time(), perf_counter()
    trainer.train_steps(steps)
    if trainer.autoencoder.model.prior_loc.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (process_time() - cpu_start) / steps, 1e3 * (perf_counter() - wall_start) / steps


def _cost(variant: str, cpu: Sequence[float], wall: Sequence[float], batch_size: int) -> StepCost:
    step = statistics.median(wall)
    return StepCost(
        variant=variant,
        cpu_ms=statistics.median(cpu),
        cpu_ms_low=min(cpu),
        cpu_ms_high=max(cpu),
        wall_ms=step,
        images_per_second=1e3 * batch_size / step,
        images_per_second_low=1e3 * batch_size / max(wall),
        images_per_second_high=1e3 * batch_size / min(wall),
    )

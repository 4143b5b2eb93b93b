"""`psa bench --suite train`: what a training step costs.

The prototype's size: 32 x 32 images, batch 16, 16 x 16 tokens, five slots of 16 features, three E/M steps, patch
decoder of width 64.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

import torch

from psa.data import SpriteOptions, Sprites
from psa.inference.autoencoder import build_autoencoder
from psa.inference.config import RECIPE, override, parse_config, published
from psa.inference.images import read_images
from psa.inference.training import Trainer, seed_everything

PROTOTYPE = ("slots.num_iterations=3", "decoder.hidden_dim=64", "training.batch_size=16", "training.steps=100000")
VARIANTS = ("recipe", "sa", "bo-qsa", "smm", "psa", "psa-proj", "vb")


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step: medians over blocks of steps.

    Attributes:
        variant: ``recipe`` is the demo's configuration at the prototype's size; the others are as published.
        cpu_ms: Processor time of a step, all threads, in ms.
        cpu_ms_low, cpu_ms_high: Fastest and slowest block.
        wall_ms: Wall time of a step.
        images_per_second: By wall time.
    """

    variant: str
    cpu_ms: float
    cpu_ms_low: float
    cpu_ms_high: float
    wall_ms: float
    images_per_second: float


def prototype_trainer(variant: str, device: str, settings: Sequence[str] = ()) -> Trainer:
    """A trainer of the prototype's size on 512 sprite scenes."""
    values = RECIPE if variant == "recipe" else published(variant)
    config = parse_config(override(values, [*PROTOTYPE, *settings]))
    seed_everything(0)
    images = read_images(Sprites(SpriteOptions(), "train", 512))
    autoencoder = build_autoencoder(config, images.size).to(device)
    return Trainer(autoencoder, images, images, config.training)


def bench_train(
    device: str = "cpu",
    variants: Sequence[str] = VARIANTS,
    blocks: int = 7,
    steps: int = 10,
    progress: Callable[[str], None] = lambda variant: None,
) -> list[StepCost]:
    """Time training steps on one thread, blocks of the variants taking turns so that a noisy minute hits all.

    Args:
        device: A torch device.
        variants: ``recipe`` or names of the family.
        blocks: Blocks a variant, after one that is not counted.
        steps: Steps a block.
        progress: Called with a variant's name before each of its blocks.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainers = {variant: prototype_trainer(variant, device) for variant in variants}
    cpu: dict[str, list[float]] = {variant: [] for variant in variants}
    wall: dict[str, list[float]] = {variant: [] for variant in variants}
    try:
        for block, variant in itertools.product(range(blocks + 1), variants):
            progress(variant)
            cpu_ms, wall_ms = _time_steps(trainers[variant], steps)
            if block:
                cpu[variant].append(cpu_ms)
                wall[variant].append(wall_ms)
    finally:
        torch.set_num_threads(threads)
    return [_cost(variant, cpu[variant], wall[variant], trainers[variant].config.batch_size) for variant in variants]


def _time_steps(trainer: Trainer, steps: int) -> tuple[float, float]:
    """CPU and wall time of a step, in ms."""
    cpu_start, wall_start = process_time(), perf_counter()
    trainer.train_steps(steps)
    if trainer.autoencoder.model.prior_loc.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (process_time() - cpu_start) / steps, 1e3 * (perf_counter() - wall_start) / steps


def _cost(variant: str, cpu: Sequence[float], wall: Sequence[float], batch_size: int) -> StepCost:
    wall_ms = statistics.median(wall)
    return StepCost(variant, statistics.median(cpu), min(cpu), max(cpu), wall_ms, 1e3 * batch_size / wall_ms)

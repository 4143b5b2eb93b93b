"""What a training step costs. Bounds are three times what was measured (40 ms), so that a busy machine passes."""

import statistics
from time import process_time

import pytest
import torch

from psa.experiments.bench.train import VARIANTS, bench_train, prototype_trainer
from psa.inference.training import Trainer
from psa.inference.variants import VARIANTS as FAMILY

pytestmark = pytest.mark.usefixtures("unchecked")
MAX_STEP_MS = 120
MAX_SLOWDOWN = 2.0
TINY = torch.finfo(torch.float32).tiny


def test_every_variant_timed_exists():
    assert set(VARIANTS) <= {"recipe", *FAMILY}


def test_a_step_of_the_recipe_costs_at_most_three_times_40_ms():
    seen: list[str] = []
    (cost,) = bench_train("cpu", ("recipe",), blocks=5, steps=4, progress=seen.append)
    assert cost.cpu_ms_low <= cost.cpu_ms <= cost.cpu_ms_high
    assert cost.cpu_ms < MAX_STEP_MS
    assert seen == ["recipe"] * 6


def test_timing_leaves_the_number_of_threads_alone():
    torch.set_num_threads(2)
    try:
        bench_train("cpu", ("sa",), blocks=1, steps=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def trainer_with_tokens_scaled(scale: float) -> Trainer:
    """The recipe with untempered E-steps and no floor to speak of; tokens at a scale where var = 1 is far too small."""
    still = ("training.learning_rate=1e-12", "slots.overrides.power=1.0", "slots.overrides.variance_floor=1e-8")
    trainer = prototype_trainer("recipe", "cpu", still)
    trainer.autoencoder.guide.encoder.register_forward_hook(lambda module, given, tokens: tokens * scale)
    trainer.train_steps(3)
    return trainer


def test_responsibilities_too_small_for_a_float_do_not_slow_the_step():
    """A denormal number costs a processor a hundred times a normal one: none may reach the products."""
    trainers = {scale: trainer_with_tokens_scaled(scale) for scale in (1.0, 5.0)}
    posterior = trainers[5.0].autoencoder.guide.posterior(trainers[5.0].images.batch(slice(16)))
    small = posterior.responsibilities.detach() < TINY
    assert float(small.float().mean()) > 0.01, "the responsibilities are not small: this tests nothing"
    times: dict[float, list[float]] = {scale: [] for scale in trainers}
    for _ in range(7):
        for scale, trainer in trainers.items():
            start = process_time()
            trainer.train_steps(2)
            times[scale].append(process_time() - start)
    assert statistics.median(times[5.0]) < MAX_SLOWDOWN * statistics.median(times[1.0])

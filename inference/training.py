"""Training on Pyro's ELBO: the loop."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time

import pyro
import torch

from psa.errors import TrainingFailed
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.checkpoints import TrainingState, finite_weights, load_checkpoint, save_checkpoint
from psa.inference.config import TrainingConfig
from psa.inference.held_out import held_out_row
from psa.inference.images import Batches, Images, ImageSet, StepImages
from psa.inference.interrupts import Interrupted, deferred_interrupts
from psa.inference.keyed_noise import ImageNoise
from psa.inference.objectives import objective
from psa.inference.optimisation import build_optimiser, learning_rate, set_learning_rate
from psa.inference.scene_priors import fit_slot_prior, slot_aggregate
from psa.runs import RunDirectory

Progress = Callable[[int, dict[str, float]], None]

DIVERGED = (
    "the {what} not finite at step {step}; the last good checkpoint is kept. Try a lower training.learning_rate "
    "(half of it), a higher slots.overrides.variance_floor, or a larger objective.sigma; see docs/failures.md"
)


@contextmanager
def _nan_is_counted() -> Iterator[None]:
    """Without Pyro's warnings of a NaN: a step that has one is skipped and counted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield


@dataclass
class Trainer:
    """One training run: its model, its optimiser and the step it has reached.

    Attributes:
        autoencoder: Trained in place.
        images: What it is trained on.
        held_out: Images that training never sees; their objective chooses between runs.
        config: Steps, batch size, learning rate and the rest.
        run: Where checkpoints and metrics go; None keeps them in memory.
        progress: Called after every step with its number and, after an evaluation, that row of metrics.
    """

    autoencoder: SlotAutoencoder
    images: Images
    held_out: ImageSet
    config: TrainingConfig
    run: RunDirectory | None = None
    progress: Progress | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loss = objective(self.autoencoder)
        self._parameters = list(self.autoencoder.parameters())
        self._state = TrainingState(self.autoencoder, build_optimiser(self._parameters, self.config))
        batches = Batches(len(self.images), self.config.batch_size, self.config.seed)
        self._source = StepImages(self.images, batches)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._state.step

    @_nan_is_counted()
    def fit(self, until: int | None = None) -> None:
        """Train to the configured number of steps, or only ``until`` one of them on the same schedule.

        Raises:
            TrainingFailed: After ``max_skipped`` steps in a row whose loss or gradient was not finite, at one more; at
                weights or a held-out objective that are not; where a checkpoint cannot be written. Nothing is written
                over the last one.
            Interrupted: After SIGINT or SIGTERM, with the checkpoint written.
        """
        self.autoencoder.train()
        start = process_time()
        last = self.config.steps if until is None else min(until, self.config.steps)
        with deferred_interrupts() as caught, self._source:
            if self.step == 0:
                self.save()  # so that a run that fails early can be gone on with
            while self.step < last:
                self._train_step()
                row: dict[str, float] = {}
                if self.step % self.config.evaluate_every == 0 or self.step == last:
                    row = self.evaluate(process_time() - start)
                if self.progress is not None:
                    self.progress(self.step, row)
                if caught or self.step % self.config.checkpoint_every == 0:
                    self.save()
                if caught:
                    raise Interrupted(f"interrupted at step {self.step} of {self.config.steps}")
        if self.autoencoder.guide.kl_weight == 0:
            fit_slot_prior(self.autoencoder, self.images)
        self.save()
        self.autoencoder.eval()

    @_nan_is_counted()
    def train_steps(self, count: int) -> None:
        """Some steps and nothing else, for measurements."""
        self.autoencoder.train()
        with self._source:
            for _ in range(count):
                self._train_step()

    def _require(self, finite: bool, what: str) -> None:
        if not finite:
            raise TrainingFailed(DIVERGED.format(what=what, step=self.step))

    @property
    def skipped(self) -> int:
        """Steps whose loss or gradient was not finite: they changed nothing."""
        return self._state.skipped

    @pyro.validation_enabled(False)  # a NaN is counted below, and is not torch's error about a constraint
    def _train_step(self) -> None:
        state = self._state
        set_learning_rate(state.optimiser, state.step, self.config)
        self.autoencoder.guide.anneal(state.step / self.config.steps)
        self._refresh_prior()
        batch, device = self._source.batch(state.step), self.autoencoder.model.prior_loc.device
        images = batch.images.to(device)
        # Nats per image: the clip then normalises almost every step, which is what keeps 2e-3 stable.
        with self.autoencoder.guide.drawing(ImageNoise(self.config.seed, batch.epoch, batch.index.to(device))):
            loss = self._loss(images) / len(images)
        state.optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        if bool(loss.isfinite()) and bool(norm.isfinite()):
            state.optimiser.step()
            state.loss_sum += float(loss.detach()) / images[0].numel()
            state.loss_steps += 1
            state.skipped_running = 0
        else:
            self._skip()
        state.step += 1

    def _skip(self) -> None:
        """Count a step that must not reach the weights."""
        state, before = self._state, self._state.skipped_running
        again = f" (as in {before} steps before it, which were skipped)" if before else ""
        self._require(before < self.config.max_skipped, f"loss or its gradient{again} is")
        state.skipped, state.skipped_running = state.skipped + 1, before + 1

    def _refresh_prior(self) -> None:
        """Every ``objective.prior_refresh`` steps, where the aggregate prior is in the loop."""
        model, settings = self.autoencoder.model, self.autoencoder.config.objective
        if model.refreshed and self.step > 0 and self.step % settings.prior_refresh == 0:
            limit = min(settings.prior_images, len(self.images))
            prior = slot_aggregate(self.autoencoder, self.images, settings.prior_components, limit, self.step)
            model.refresh_prior(prior)

    @pyro.validation_enabled(False)
    def evaluate(self, seconds: float) -> dict[str, float]:
        """A row of metrics on the held-out images; written to metrics.jsonl."""
        state = self._state
        row: dict[str, float] = {
            "step": state.step,
            "skipped": state.skipped,
            "learning_rate": learning_rate(state.step, self.config),
            "cpu_seconds": seconds,
        }
        self.autoencoder.eval()
        if state.loss_steps > 0:
            row["loss"] = state.loss_sum / state.loss_steps
        row |= held_out_row(self.autoencoder, self.held_out)
        self.autoencoder.train()
        self._require(math.isfinite(row["held_out"]), "held-out objective is")
        state.loss_sum, state.loss_steps = 0.0, 0
        self.history.append(row)
        if self.run is not None:
            self.run.append_metrics(row)
        return row

    def save(self) -> None:
        """Write a checkpoint, whose weights are finite.

        Raises:
            TrainingFailed: If they are not, or it cannot be written.
        """
        if self.run is not None:
            self._require(finite_weights(self._state), "weights are")
            save_checkpoint(self.run, self._state)

    def resume(self) -> None:
        """Go back to the last checkpoint of ``run``.

        Raises:
            RunError: If there is none, or it is of another model.
        """
        assert self.run is not None
        load_checkpoint(self.run, self._state)
        self.history = self.run.read_metrics()


def fit(
    autoencoder: SlotAutoencoder,
    images: Images,
    held_out: ImageSet,
    config: TrainingConfig,
    run: RunDirectory | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train a model in place on Pyro's ELBO, as a module under a torch optimiser.

    Arguments and exceptions are those of :class:`Trainer`.

    Returns:
        The metrics of every evaluation, the last one at the last step.
    """
    trainer = Trainer(autoencoder, images, held_out, config, run, progress)
    trainer.fit()
    return trainer.history


def seed_everything(seed: int) -> None:
    """Seed what pyro.sample and initial weights draw from."""
    pyro.set_rng_seed(seed)

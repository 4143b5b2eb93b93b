"""Training on Pyro's ELBO: the loop."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time

import pyro
import torch
from torch import Tensor

from psa.errors import ConfigError, TrainingFailed
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.checkpoints import TrainingState, finite_weights, load_checkpoint, save_checkpoint
from psa.inference.config import TrainingConfig
from psa.inference.event_log import EventLog
from psa.inference.held_out import held_out_row
from psa.inference.images import Batch, Batches, Images, ImageSet, StepImages
from psa.inference.interrupts import Interrupted, deferred_interrupts
from psa.inference.keyed_noise import ImageNoise, keyed_dropout
from psa.inference.objectives import objective
from psa.inference.optimisation import (
    averaged,
    build_optimiser,
    code_parameters,
    compile_networks,
    learning_rate,
    set_learning_rate,
)
from psa.inference.processes import Processes, this_process
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
        processes: That train this run together, each with a trainer; the first one writes, evaluates and reports.

    Raises:
        ConfigError: If there are fewer images than processes, or something the settings ask for is not installed.
    """

    autoencoder: SlotAutoencoder
    images: Images
    held_out: ImageSet
    config: TrainingConfig
    run: RunDirectory | None = None
    progress: Progress | None = None
    processes: Processes | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.config
        self._processes = this_process(config) if self.processes is None else self.processes
        rank, size = self._processes.rank, self._processes.size
        self._loss = objective(self.autoencoder)
        self._parameters = list(self.autoencoder.parameters())
        optimiser = build_optimiser(self._parameters, config, code_parameters(self.autoencoder))
        self._state = TrainingState(self.autoencoder, optimiser, average=averaged(self.autoencoder, config.ema))
        if config.compile:
            compile_networks(self.autoencoder)
        if len(self.images) < size:
            raise ConfigError(f"training.devices: expected at most the {len(self.images)} images, got {size}")
        together = config.batch_size * config.accumulate * size
        self._batches = Batches(len(self.images), together, config.seed, (rank, size))
        self._source = StepImages(self.images, self._batches)
        self._log: EventLog | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self._state.step

    @property
    def trained(self) -> SlotAutoencoder:
        """The model that is evaluated and kept: of the averaged weights, if there are any."""
        return self._state.trained

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
                if self._processes.first:
                    self._report(process_time() - start, self.step == last)
                stop = self._processes.any(bool(caught))
                if stop or self.step % self.config.checkpoint_every == 0:
                    self.save()
                if stop:
                    raise Interrupted(f"interrupted at step {self.step} of {self.config.steps}")
        if self.autoencoder.guide.kl_weight == 0 and self._processes.first:
            fit_slot_prior(self.trained, self.images)
        self.save()
        self.autoencoder.eval()

    def _report(self, seconds: float, last: bool) -> None:
        row: dict[str, float] = {}
        if self.step % self.config.evaluate_every == 0 or last:
            row = self.evaluate(seconds)
        if self.progress is not None:
            self.progress(self.step, row)

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
        state, config = self._state, self.config
        set_learning_rate(state.optimiser, state.step, config)
        with_noise = config.noise_steps or config.steps
        self.autoencoder.guide.anneal(state.step / config.steps, min(1.0, state.step / with_noise))
        self._refresh_prior()
        state.optimiser.zero_grad()
        batch = self._source.batch(state.step)
        loss = self._gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
        if bool(loss.isfinite()) and bool(norm.isfinite()):
            state.optimiser.step()
            if state.average is not None:
                state.average.update_parameters(self.autoencoder)
            state.loss_sum += float(loss) / batch.images[0].numel()
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

    def _gradients(self, batch: Batch) -> Tensor:
        """Leave the gradient of the whole step's loss, a batch of all processes, in the weights; return that loss.

        Nats per image: the clip then normalises almost every step, which is what keeps 2e-3 stable.
        """
        device, size = self.autoencoder.model.prior_loc.device, self.config.batch_size
        total = torch.zeros((), device=device)
        for images, index in zip(batch.images.split(size), batch.index.split(size), strict=True):
            noise = ImageNoise(self.config.seed, batch.epoch, index.to(device))
            drawing = self.autoencoder.guide.drawing(noise)
            with drawing, keyed_dropout(self.autoencoder.model, noise), self._processes.autocast():
                loss = self._loss(images.to(device)) / self._batches.batch_size
            loss.backward()
            total += loss.detach()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._processes.add([total, *gradients])
        return total

    def _refresh_prior(self) -> None:
        """Every ``objective.prior_refresh`` steps, where the aggregate prior is in the loop."""
        model, settings = self.autoencoder.model, self.autoencoder.config.objective
        if model.refreshed and self.step > 0 and self.step % settings.prior_refresh == 0:
            limit, prior = min(settings.prior_images, len(self.images)), None
            if self._processes.first:
                prior = slot_aggregate(self.autoencoder, self.images, settings.prior_components, limit, self.step)
            prior = self._processes.told(prior)
            assert prior is not None
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
        self.trained.eval()
        if state.loss_steps > 0:
            row["loss"] = state.loss_sum / state.loss_steps
        row |= held_out_row(self.trained, self.held_out)
        self.autoencoder.train()
        self._require(math.isfinite(row["held_out"]), "held-out objective is")
        state.loss_sum, state.loss_steps = 0.0, 0
        self.history.append(row)
        if self.run is not None:
            self.run.append_metrics(row)
            self._write_events(row)
        return row

    def _write_events(self, row: dict[str, float]) -> None:
        assert self.run is not None
        if self.config.tensorboard:
            self._log = self._log or EventLog(self.run.path / "tensorboard", self.step)
            self._log.write(row)

    def save(self) -> None:
        """Write a checkpoint, whose weights are finite.

        Raises:
            TrainingFailed: If they are not, or it cannot be written.
        """
        if self.run is not None and self._processes.first:
            self._require(finite_weights(self._state), "weights are")
            save_checkpoint(self.run, self._state)

    def resume(self) -> None:
        """Go back to the last checkpoint of ``run``; metrics past it are dropped.

        Raises:
            RunError: If there is none, or it is of another model.
        """
        assert self.run is not None
        load_checkpoint(self.run, self._state)
        if self._processes.first:
            self.run.keep_metrics_before(self.step)
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

"""Training on Pyro's ELBO: one loop, with checkpoints that can be resumed to the same numbers."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time
from types import FrameType
from typing import Any

import pyro
import torch
from torch import Tensor

from psa.errors import RunError, TrainingFailed
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.config import TrainingConfig
from psa.inference.images import Batches, ImageSet
from psa.inference.objectives import held_out_objective, objective
from psa.inference.scene_priors import slot_aggregate
from psa.metrics import foreground_ari, mean_squared_error, num_objects
from psa.runs import RunDirectory, load_tensors, save_tensors

Progress = Callable[[int, dict[str, float]], None]

DIVERGED = (
    "the loss is not finite at step {step}; the last good checkpoint is kept. Try a lower training.learning_rate "
    "(half of it), a higher slots.overrides.variance_floor, or a larger objective.sigma; see docs/failures.md"
)


class Interrupted(Exception):
    """Training was stopped by a signal after a step was complete and its checkpoint written."""


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to 0 over all steps."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * step / config.steps))


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that a step is never cut in two; a second signal acts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


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
    images: ImageSet
    held_out: ImageSet
    config: TrainingConfig
    run: RunDirectory | None = None
    progress: Progress | None = None
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loss = objective(self.autoencoder)
        self._parameters = list(self.autoencoder.parameters())
        self._optimiser = torch.optim.Adam(self._parameters, lr=self.config.learning_rate)
        self._batches = Batches(len(self.images), self.config.batch_size, self.config.seed)
        self._sums = {"loss": 0.0, "steps": 0.0}

    def fit(self, until: int | None = None) -> None:
        """Train to the configured number of steps, or only ``until`` one of them on the same schedule.

        Raises:
            TrainingFailed: At a loss or gradient that is not finite; nothing is written over the last checkpoint.
            Interrupted: After SIGINT or SIGTERM, with the checkpoint written.
        """
        self.autoencoder.train()
        start = process_time()
        last = self.config.steps if until is None else min(until, self.config.steps)
        with deferred_interrupts() as caught:
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
                    raise Interrupted
        if self.autoencoder.guide.kl_weight == 0:
            fit_slot_prior(self.autoencoder, self.images)
        self.save()
        self.autoencoder.eval()

    def train_steps(self, count: int) -> None:
        """Some steps and nothing else, for measurements."""
        self.autoencoder.train()
        for _ in range(count):
            self._train_step()

    def _require(self, finite: bool) -> None:
        if not finite:
            raise TrainingFailed(DIVERGED.format(step=self.step))

    @pyro.validation_enabled(False)  # a NaN must come out as TrainingFailed, not as torch's error about a constraint
    def _train_step(self) -> None:
        device = self.autoencoder.model.prior_loc.device
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        self.autoencoder.guide.anneal(self.step / self.config.steps)
        self._refresh_prior()
        images = self.images.batch(self._batches(self.step)).to(device)
        # Nats per image: the clip then normalises almost every step, which is what keeps 2e-3 stable.
        loss = self._loss(images) / len(images)
        self._optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self._require(bool(loss.isfinite()) and bool(norm.isfinite()))
        self._optimiser.step()
        self.step += 1
        self._sums["loss"] += float(loss.detach()) / images[0].numel()
        self._sums["steps"] += 1

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
        self.autoencoder.eval()
        device = self.autoencoder.model.prior_loc.device
        images = self.held_out.batch(slice(None)).to(device)
        row: dict[str, float] = {
            "step": self.step,
            "loss": self._sums["loss"] / max(1.0, self._sums["steps"]),
            "held_out": held_out_objective(self.autoencoder, images),
            "learning_rate": learning_rate(self.step, self.config),
            "cpu_seconds": seconds,
        }
        self._require(math.isfinite(row["held_out"]))
        posterior, slots, _ = self.autoencoder.encode(images)
        scene = self.autoencoder.decode(slots, self.autoencoder.guide.active(posterior))
        row["mse"] = float(mean_squared_error(scene.mean, images).mean())
        if self.held_out.masks is not None:
            several = num_objects(self.held_out.masks, self.held_out.background) >= 2
            score = foreground_ari(scene.labels.cpu(), self.held_out.masks, self.held_out.background)[several]
            if len(score):
                row["foreground_ari"] = float(score.mean())
        self._sums = {"loss": 0.0, "steps": 0.0}
        self.history.append(row)
        if self.run is not None:
            self.run.append_metrics(row)
        self.autoencoder.train()
        return row

    def save(self) -> None:
        """Write the weights, and beside them all that resuming needs; each file whole or not at all."""
        if self.run is None:
            return
        weights = self.autoencoder.state_dict()
        self._require(all(bool(value.isfinite().all()) for value in weights.values()))
        notes: dict[str, Any] = {"size": list(self.autoencoder.size), "step": self.step}
        tensors = {f"weights.{name}": value for name, value in weights.items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["random"] = torch.random.get_rng_state()
        save_tensors(self.run.state, tensors, notes | {"sums": self._sums})
        save_tensors(self.run.checkpoint, weights, notes)

    def resume(self) -> None:
        """Go back to the last checkpoint of ``run``.

        Raises:
            RunError: If there is none, or it is of another model.
        """
        assert self.run is not None
        tensors, notes = load_tensors(self.run.state)
        weights = {name[8:]: value for name, value in tensors.items() if name.startswith("weights.")}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        try:
            self.autoencoder.load_state_dict(weights)
            groups = self._optimiser.state_dict()["param_groups"]
            self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"{self.run.state}: not of this configuration ({str(error).splitlines()[-1].strip()})"
            ) from None
        torch.random.set_rng_state(tensors["random"])
        self.step, self._sums = notes["step"], notes["sums"]
        self.run.keep_metrics_before(self.step)
        self.history = [row for row in self.run.read_metrics() if "step" in row]


def fit(
    autoencoder: SlotAutoencoder,
    images: ImageSet,
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


@torch.no_grad()
def fit_slot_prior(autoencoder: SlotAutoencoder, images: ImageSet, limit: int = 2048) -> None:
    """Set p(s) to the mean and variance of the training images' slots: what a run without a KL leaves untrained."""
    device = autoencoder.model.prior_loc.device
    slots = torch.cat(
        [
            autoencoder.encode(images.batch(slice(start, start + 256)).to(device))[1].flatten(0, 1)
            for start in range(0, min(limit, len(images)), 256)
        ]
    )
    autoencoder.model.prior_loc.copy_(slots.mean(0))
    autoencoder.model.prior_log_scale.copy_(slots.std(0, correction=0).clamp(min=1e-6).log())


def seed_everything(seed: int) -> None:
    """Seed what pyro.sample and initial weights draw from."""
    pyro.set_rng_seed(seed)

"""Sprite scenes, one small model and equal training: all that experiments about variants hold fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from psa.errors import TrainingFailed
from psa.experiments.experiment import Progress
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.config import RunConfig, parse_config
from psa.inference.evaluation import evaluate
from psa.inference.interrupts import Interrupted
from psa.inference.sessions import open_trainer, run_images
from psa.report.over_seeds import band_of_curves, bands_figure


@dataclass(frozen=True)
class SpriteRun:
    """What is the same in every row of an experiment. Sprites, unless other data is asked for, are whole and on black.

    Attributes:
        size: Pixels a side.
        max_objects: Of a scene; the fewest is 1.
        num_scenes: To train on.
        num_slots: K.
        slot_dim: D, of slots and tokens.
        num_iterations: E/M steps, the last one included.
        channels: Of the encoder's four convolutions.
        hidden_dim: Of the patch decoder's MLP.
        steps: Of training.
        batch_size: Images a step.
        learning_rate: After the warm-up; a cosine takes it to 0.
        warmup_steps: Of a linear warm-up.
        evaluations: Points of the learning curve.
    """

    size: int = 16
    max_objects: int = 3
    num_scenes: int = 8192
    num_slots: int = 4
    slot_dim: int = 16
    num_iterations: int = 3
    channels: int = 32
    hidden_dim: int = 64
    steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 4e-3
    warmup_steps: int = 200
    evaluations: int = 10

    def config(
        self,
        slots: Mapping[str, Any],
        seed: int,
        device: str,
        objective: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """A run's whole configuration.

        Args:
            slots: The row: ``variant``, ``overrides``.
            seed: Of weights, draws and the order of the images.
            device: A torch device.
            objective: Left out, the papers': no KL, slots a point.
            data: Left out, sprites as above; otherwise all of the table but its size and number of scenes.
        """
        return parse_config(
            {
                "data": {"size": self.size, "num_scenes": self.num_scenes}
                | dict({"max_objects": self.max_objects, "min_visible": 1.0} if data is None else data),
                "encoder": {"channels": self.channels},
                "slots": {
                    "num_slots": self.num_slots,
                    "slot_dim": self.slot_dim,
                    "num_iterations": self.num_iterations,
                    **slots,
                },
                "decoder": {"kind": "patch", "hidden_dim": self.hidden_dim},
                "objective": {"sample": False, "kl_weight": 0.0} if objective is None else dict(objective),
                "training": {
                    "steps": self.steps,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "warmup_steps": self.warmup_steps,
                    "seed": seed,
                    "max_skipped": 0,  # that it diverges is a result: nothing is skipped, and it stops
                    "evaluate_every": max(1, self.steps // self.evaluations),
                    "threads": 1,
                    "device": device,
                },
            }
        )


SMOKE = SpriteRun(
    max_objects=2, num_scenes=64, num_slots=3, slot_dim=8, num_iterations=2, channels=8, hidden_dim=16,
    steps=6, batch_size=4, warmup_steps=2, evaluations=2,
)  # fmt: skip
# BO-QSA's schedule (table 11) on sprites: ShapeStacks itself is not among the data sets here.
PAPER_SIZE = SpriteRun(
    size=64, max_objects=6, num_scenes=50_000, num_slots=8, slot_dim=64, channels=64, hidden_dim=256,
    steps=250_000, batch_size=128, learning_rate=4e-4, warmup_steps=5000, evaluations=50,
)  # fmt: skip


@dataclass(frozen=True)
class TrainedRun:
    """A run trained in memory.

    Attributes:
        autoencoder: As training left it.
        failed_at: The step at which the loss was not finite; None where it always was.
        curve: (step, foreground ARI, error, objective) of the held-out batch at every evaluation; where training
            projects slots, the correlation of projections too.
    """

    autoencoder: SlotAutoencoder
    failed_at: int | None
    curve: list[list[float]]

    def scores(self) -> dict[str, Any]:
        """Plain values: the test split's scores, None where training failed, and how training went.

        ``foreground_ari`` is the mean over scenes of at least two objects, ``msc`` the mean segmentation covering,
        ``objective`` minus the training objective, nats per channel of a pixel.
        """
        found: dict[str, Any] = {"failed_at": self.failed_at, "curve": self.curve}
        if self.failed_at is not None:
            return found | {"foreground_ari": None, "msc": None, "mse": None, "objective": None}
        images = run_images(self.autoencoder, self.autoencoder.config.data, "test")
        outcome = evaluate(self.autoencoder, images)
        assert outcome.segmentation is not None
        segmentation = outcome.segmentation
        return found | {
            "foreground_ari": segmentation.foreground_ari,
            "msc": segmentation.msc,
            "mse": outcome.mse,
            "objective": outcome.objective,
        }


def train(config: RunConfig, progress: Progress) -> TrainedRun:
    """Train a run in memory; that it diverges is a result.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
    """
    trainer = open_trainer(config, None, lambda step, row: progress(step, config.training.steps))
    failed_at = None
    try:
        trainer.fit()
    except Interrupted:
        raise KeyboardInterrupt from None
    except TrainingFailed:
        failed_at = trainer.step
    names = ("step", "foreground_ari", "mse", "held_out", "projection_correlation")
    curve = [[row[name] for name in names if name in row] for row in trainer.history]
    return TrainedRun(trainer.trained, failed_at, curve)


def learning_curves(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Held-out foreground ARI and error over training; a seed's curve ends where it diverged.

    Args:
        found: Scores of runs by row, as :meth:`TrainedRun.scores` gives them.
    """
    titles = ("foreground ARI, held-out", "mean squared error, held-out")
    panels = {
        title: [
            band_of_curves(row, [[(point[0], point[place]) for point in run["curve"]] for run in runs])
            for row, runs in found.items()
        ]
        for place, title in enumerate(titles, start=1)
    }
    return bands_figure(panels, "step", "", share_y=False)

"""Claim: scene draws keep what independent draws ignore, one background and a number of objects (docs/sampling.md).

Samples of a trained run by several schemes, each looked at with the run's own inference, beside the held-out images
themselves. ``python -m psa.experiments.scene_samples RUN`` prints the table and saves the pictures.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import psa
from psa.experiments.tables import markdown
from psa.inference.aggregate import from_posteriors
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.feature_extractors import encoder_features
from psa.inference.images import ImageSet
from psa.inference.posterior_stream import joined
from psa.inference.scene_priors import slot_posteriors, with_variance
from psa.inference.scene_structure import SceneStructure, find_structure, total_variation
from psa.inference.sessions import build_prior, run_images
from psa.metrics import num_objects
from psa.metrics.generation import frechet_distance
from psa.models.scene_prior import SlotDraw
from psa.report.samples import samples_figure
from psa.runs import RunDirectory

CHUNK = 64
SHOWN = 8


@dataclass(frozen=True)
class Quality:
    """Pictures of one kind.

    Attributes:
        pictures: What they are.
        temperature: Of the draws; NaN where nothing is drawn.
        objects: Mean number of objects found.
        variation: Total variation of their distribution from that found in the held-out images.
        variation_true: The same from the true distribution, which labels give.
        one_background: Share with one background.
        accuracy: Share with one background and 1 to 4 objects.
        frechet: Frechet distance of the run's own features from those of the held-out images.
    """

    pictures: str
    temperature: float
    objects: float
    variation: float
    variation_true: float
    one_background: float
    accuracy: float
    frechet: float


def paper_draws(run: SlotAutoencoder, images: ImageSet) -> Callable[[int, torch.Generator, float], SlotDraw]:
    """Independent draws from all M K components with the paper's weights pi_bk / M (PSA eq. 10)."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), CHUNK):
            parts.append(slot_posteriors(run, images.batch(slice(start, start + CHUNK)), start)[0])
    chunk = with_variance(joined(parts))
    prior = from_posteriors(lambda: [chunk])

    def draw(n: int, generator: torch.Generator, temperature: float) -> SlotDraw:
        slots, component = prior.sample_components((n, run.model.num_slots), generator, temperature)
        return SlotDraw(slots, torch.ones_like(component, dtype=torch.bool), component)

    return draw


def gaussian_draws(run: SlotAutoencoder) -> Callable[[int, torch.Generator, float], SlotDraw]:
    """Independent draws from the diagonal Gaussian that was trained."""

    def draw(n: int, generator: torch.Generator, temperature: float) -> SlotDraw:
        model = run.model
        noise = torch.randn(n, model.num_slots, len(model.prior_loc), generator=generator)
        slots = model.prior_loc + temperature**0.5 * model.prior_log_scale.exp() * noise
        every = torch.ones(slots.shape[:2], dtype=torch.bool)
        return SlotDraw(slots.detach(), every, torch.zeros_like(every, dtype=torch.int64))

    return draw


@dataclass(frozen=True)
class Study:
    """Samples of a run against held-out images.

    Attributes:
        run: With its prior over scenes.
        held_out: Images with masks.
        seed: Of the draws.
    """

    run: SlotAutoencoder
    held_out: ImageSet
    seed: int = 0

    def schemes(self, training: ImageSet) -> Mapping[str, Callable[[int, torch.Generator, float], SlotDraw]]:
        """What is compared."""
        prior = self.run.scene_prior
        assert prior is not None
        return {
            "scene": lambda n, generator, temperature: self.run.draw(n, "scene", temperature, generator),
            "scene, unseen objects not redrawn": prior.draw_scenes,
            "independent, equal weights": prior.draw_independent,
            "independent, the paper's weights": paper_draws(self.run, training),
            "independent, one Gaussian": gaussian_draws(self.run),
        }

    def pictures(self, draw: SlotDraw) -> Tensor:
        """(n, 3, H, W) in [0, 1]."""
        parts = zip(draw.slots.split(CHUNK), draw.active.split(CHUNK), strict=True)
        return torch.cat([self.run.decode(slots, active).mean.clamp(0, 1) for slots, active in parts])

    def qualities(self, training: ImageSet) -> list[Quality]:
        """As many samples by every scheme as there are held-out images; first the images and their reconstructions."""
        images = self.held_out.batch(slice(None))
        found = find_structure(self.run, images)
        rebuilt = torch.cat(
            [self.run.decode(self.run.encode(part)[1]).mean.clamp(0, 1) for part in images.split(CHUNK)]
        )
        rows = [self._quality("held-out images", torch.nan, images, found)]
        rows.append(self._quality("their reconstructions", torch.nan, rebuilt, found))
        for name, draw in self.schemes(training).items():
            for temperature in (1.0, 0.0):
                generator = torch.Generator().manual_seed(self.seed)
                pictures = self.pictures(draw(len(images), generator, temperature))
                rows.append(self._quality(name, temperature, pictures, found))
        return rows

    def _quality(self, name: str, temperature: float, pictures: Tensor, reference: SceneStructure) -> Quality:
        found = find_structure(self.run, pictures)
        assert self.held_out.masks is not None
        true = torch.bincount(
            num_objects(self.held_out.masks, self.held_out.background), minlength=self.run.model.num_slots + 1
        )
        number = len(true) - 1
        counts = found.count_distribution(number)
        images = self.held_out.batch(slice(None))
        features = encoder_features(self.run)
        return Quality(
            name,
            temperature,
            float(found.num_objects.double().mean()),
            total_variation(counts, reference.count_distribution(number)),
            total_variation(counts, true / len(images)),
            float(found.one_background.double().mean()),
            float(found.accurate().mean()),
            frechet_distance(images.split(CHUNK), pictures.split(CHUNK), features),
        )

    def save_pictures(self, training: ImageSet, folder: Path) -> None:
        """A grid for every scheme at temperature 1 and 0."""
        for name, draw in self.schemes(training).items():
            drawn = [draw(SHOWN, torch.Generator().manual_seed(self.seed), temperature) for temperature in (1.0, 0.0)]
            slots, active = torch.cat([one.slots for one in drawn]), torch.cat([one.active for one in drawn])
            scene = self.run.decode(slots, active)
            shown = (scene.mean.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).contiguous()
            path = folder / f"samples-{name.replace(', ', '-').replace(' ', '-').replace(chr(39), '')}.png"
            samples_figure(shown.numpy(), scene.labels.numpy(), slots.shape[1], path)


def open_study(path: Path, num_held_out: int = 1000, seed: int = 0) -> tuple[Study, ImageSet]:
    """A run directory's run with its prior (built if it has none), test images, and the training images."""
    run = psa.load(path)
    if run.scene_prior is None:
        build_prior(run, RunDirectory(path))
    data = run.config.data
    return Study(run, run_images(run, data, "test", num_held_out), seed), run_images(run, data, "train", 4096)


if __name__ == "__main__":
    torch.set_num_threads(1)
    study, training = open_study(Path(sys.argv[1]))
    print(markdown([asdict(row) for row in study.qualities(training)]))
    if len(sys.argv) > 2:
        study.save_pictures(training, Path(sys.argv[2]))

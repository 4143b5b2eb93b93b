"""Claim: with large slots, reconstructing features loses the objects, and the covariance loss wins some of them back.

DINOSAUR with the covariance loss (Stange et al., table 3): ARI on COCO 43.86 without and 42.64 with the loss at the
usual slot size, 15.25 and 35.35 at 1024. Here features of a small vision transformer on generated sprites take the
place of DINO's on COCO. The transformer learned from the training images by masked autoencoding, without labels
(:mod:`psa.experiments.masked_autoencoding`), and is frozen; so the figures do not compare, their order may.

Both of DINOSAUR's decoders, the MLP on every position (``patch``) and the autoregressive transformer, at two slot
sizes, each with and without the loss; all else is equal. Beside them, at the usual size, features of the same
transformer with random weights. Both masks are scored: the decoder's and the slots' attention.

Verdict, by foreground ARI of the MLP decoder's own masks on test scenes of at least two objects, Welch tests over
seeds: ``holds`` if large slots are below usual ones, and with the loss above without, each one-sided at 5 %; ``fails``
if one of the two is contradicted at 2.5 %; else not decided. A run that diverges scores 0.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from psa.data import as_float
from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, Verdict
from psa.experiments.feature_pictures import masks_of_rows
from psa.experiments.masked_autoencoding import MaskedAutoencoding, kept_weights
from psa.experiments.over_seeds import LEVEL, Gain, gain, spread
from psa.experiments.sprite_runs import learning_curves, train
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.config import RunConfig, parse_config
from psa.inference.evaluation import evaluate, evaluate_baselines, mask_kinds
from psa.inference.images import read_images
from psa.inference.sessions import open_split, run_images, with_network

KINDS = ("decoder", "attention")  # whose masks
SHOWN = 8  # images in the picture


@dataclass(frozen=True)
class Row:
    """What a row has of its own.

    Attributes:
        decoder: ``decoder.kind``.
        large: Whether slots are large.
        covariance: Whether the loss is on.
        learned: Whether the network learned; else its weights are random.
        published: ARI on COCO.
    """

    decoder: str
    large: bool = False
    covariance: bool = False
    learned: bool = True
    published: float | None = None


ROWS: Mapping[str, Row] = {
    "patch": Row("patch", published=0.4386),
    "patch+cov": Row("patch", covariance=True, published=0.4264),
    "patch-large": Row("patch", large=True, published=0.1525),
    "patch-large+cov": Row("patch", large=True, covariance=True, published=0.3535),
    "transformer": Row("transformer"),
    "transformer+cov": Row("transformer", covariance=True),
    "transformer-large": Row("transformer", large=True),
    "transformer-large+cov": Row("transformer", large=True, covariance=True),
    "patch-random": Row("patch", learned=False),
    "transformer-random": Row("transformer", learned=False),
}
REFERENCES = "references"


@dataclass(frozen=True)
class FeatureReconstruction(Experiment):
    """What all rows share, and their seeds.

    Attributes:
        network: The frozen one, and how it learns.
        max_objects: Of a scene; the fewest is 1, all are seen whole on black.
        num_scenes: To train on, the network and the runs.
        num_slots: K.
        slot_dim, large_slot_dim: D, usual and large.
        token_dim: Of the encoder's tokens, at both sizes.
        hidden_dim: Of encoder and decoders.
        variant: The slot module.
        weight: ``bottleneck.covariance``, nats an image.
        steps, batch_size, learning_rate: Of training, after a warm-up of a tenth.
        noise_share: Of the steps, until queries have no noise; BO-QSA's, 30,000 of 250,000.
        evaluations: Points of the learning curve.
        num_scored: Test images.
        cache: The folder of features and weights, which all units share; None: each makes its own.
        seeds: Of training, 0 and up.
    """

    name: ClassVar[str] = "feature_reconstruction"
    claim: ClassVar[str] = (
        "With large slots, reconstructing features of a frozen network loses the objects, and the covariance loss wins "
        "some of them back."
    )
    source: ClassVar[str] = "Stange et al., covariance regularisation, table 3 (DINOSAUR on COCO)"
    network: MaskedAutoencoding = field(default_factory=MaskedAutoencoding)
    max_objects: int = 3
    num_scenes: int = 4096
    num_slots: int = 4
    slot_dim: int = 32
    large_slot_dim: int = 256
    token_dim: int = 32
    hidden_dim: int = 64
    variant: str = "bo-qsa"
    weight: float = 100.0
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    noise_share: float = 0.12
    evaluations: int = 5
    num_scored: int = 512
    cache: str | None = "runs/features"
    seeds: int = 3

    def units(self) -> Sequence[str]:
        """The references, then seed by seed."""
        return [REFERENCES, *(f"{row}.seed-{seed}" for seed in range(self.seeds) for row in ROWS)]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Train one row with one seed: its scores, its learning curve, and masks of the first test images."""
        torch.set_num_threads(1)
        with self._folder() as folder:
            if unit == REFERENCES:
                return self._references(folder)
            row, _, seed = unit.partition(".seed-")
            config = self.config(ROWS[row], int(seed), folder)
            trained = train(config, progress)
            figures: dict[str, Any] = {
                "failed_at": trained.failed_at, "curve": trained.curve, "features": config.features.checksum,
            }  # fmt: skip
            if trained.failed_at is not None:
                return Outcome(figures)
            return self._scored(trained.autoencoder.eval(), figures)

    def config(self, row: Row, seed: int, folder: Path) -> RunConfig:
        """A run's whole configuration; the network's weights are made if they are missing in the folder."""
        data = {"size": self.network.size, "max_objects": self.max_objects, "num_scenes": self.num_scenes}
        values: dict[str, Any] = {
            "data": {**data, "min_visible": 1.0},
            "encoder": {"kind": "features", "channels": self.hidden_dim, "token_dim": self.token_dim},
            "features": {"architecture": "small", "options": self.network.options, "cache": str(folder)},
            "slots": {
                "variant": self.variant,
                "num_slots": self.num_slots,
                "slot_dim": self.large_slot_dim if row.large else self.slot_dim,
            },
            "decoder": {
                "kind": row.decoder,
                "hidden_dim": self.hidden_dim,
                "num_layers": 3 if row.decoder == "patch" else 1,
            },
            "objective": {"sample": False, "kl_weight": 0.0, "sigma": 1.0},
            "bottleneck": {"covariance": self.weight if row.covariance else 0.0},
            "training": {
                "steps": self.steps,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "warmup_steps": self.steps // 10,
                "noise_steps": max(1, round(self.noise_share * self.steps)),
                "seed": seed,
                "max_skipped": 0,  # that it diverges is a result
                "evaluate_every": max(1, self.steps // self.evaluations),
                "threads": 1,
                "device": self.device,
            },
        }
        config = parse_config(values)
        if row.learned:
            images = as_float(read_images(open_split(config.data, "train")).images)
            weights = str(kept_weights(self.network, images, folder, self.device))
            config = config.model_copy(update={"features": config.features.model_copy(update={"weights": weights})})
        return with_network(config)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.cache is not None:
            yield Path(self.cache)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def _scored(self, model: SlotAutoencoder, figures: Mapping[str, Any]) -> Outcome:
        images = run_images(model, model.config.data, "test", self.num_scored)
        outcome = evaluate(model, images)
        assert outcome.masks is not None
        maps = images.batch(slice(None))
        scores: dict[str, Any] = {"mse": outcome.mse, "mean_map_mse": float((maps - maps.mean(0)).square().mean())}
        for kind, summary in outcome.masks.items():
            scores |= {f"{kind}_foreground_ari": summary.foreground_ari, f"{kind}_mbo": summary.mbo_instance}
        with torch.no_grad():
            posterior, slots, _ = model.encode(maps[:SHOWN].to(model.model.prior_loc))
            kinds = mask_kinds(model, posterior, model.decode(slots))
        labels = {kind: masks.argmax(1).to(torch.uint8).cpu() for kind, masks in kinds.items()}
        return Outcome({**figures, **scores}, labels)

    def _references(self, folder: Path) -> Outcome:
        """Segmentations that need no learning, true labels on the grid of patches, and the images of the picture."""
        data = self.config(Row("patch", learned=False), 0, folder).data
        images = read_images(open_split(data, "test"), self.num_scored)
        assert images.masks is not None
        found = evaluate_baselines(images, self.num_slots)
        figures = {name: {"foreground_ari": one.foreground_ari} for name, one in found.items()}
        return Outcome(figures, {"images": images.images[:SHOWN], "masks": images.masks[:SHOWN].to(torch.uint8)})

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """The verdict by the rule above."""
        runs = {row: [outcomes[f"{row}.seed-{seed}"] for seed in range(self.seeds)] for row in ROWS}
        scores = {row: _scores(found, "decoder_foreground_ari") for row, found in runs.items()}
        lost = gain(scores["patch"], scores["patch-large"])
        won = gain(scores["patch-large+cov"], scores["patch-large"])
        means = {row: float(np.mean(values)) for row, values in scores.items()}
        reason = (
            f"MLP decoder, its masks: {means['patch']:.3f} at {self.slot_dim} features a slot, "
            f"{means['patch-large']:.3f} at {self.large_slot_dim} ({lost} lost), {means['patch-large+cov']:.3f} there "
            f"with the covariance loss ({won} won). Without large slots the loss takes "
            f"{gain(scores['patch'], scores['patch+cov'])}. Of a random network {means['patch-random']:.3f}."
        )
        names = {row: row.replace("-", "_").replace("+", "_") for row in ROWS}
        figures = {names[row]: mean for row, mean in means.items()} | {"lost": lost.mean, "won": won.mean}
        table = [self._row(row, runs[row]) for row in ROWS]
        references = [
            {"segmentation": name, "foreground ARI": one["foreground_ari"]}
            for name, one in outcomes[REFERENCES].figures.items()
        ]
        tables = {"Features from slots, one row a model": table, "Beside it, on the same images": references}
        shown = outcomes[REFERENCES].tensors
        pictures = {"curves": learning_curves({row: [one.figures for one in found] for row, found in runs.items()})}
        pictures |= masks_of_rows({row: found[0].tensors for row, found in runs.items()}, shown, self.num_slots)
        return Conclusion(_verdict(lost, won), reason, figures, tables, pictures)

    def _row(self, name: str, runs: Sequence[Outcome]) -> dict[str, object]:
        row, done = ROWS[name], [one.figures for one in runs if one.figures["failed_at"] is None]
        mean = {key: float(np.mean([one[key] for one in done])) if done else None for key in _MEANS}
        return {
            "row": name,
            "features a slot": self.large_slot_dim if row.large else self.slot_dim,
            "network": "learned" if row.learned else "random",
            "decoder masks' foreground ARI": spread(_scores(runs, "decoder_foreground_ari"))["mean ± sd"],
            "each seed": spread(_scores(runs, "decoder_foreground_ari"))["each seed"],
            "their mBO": mean["decoder_mbo"],
            "attention masks' foreground ARI": spread(_scores(runs, "attention_foreground_ari"))["mean ± sd"],
            "of mBO": mean["attention_mbo"],
            "MSE": mean["mse"],
            "MSE of the mean map": mean["mean_map_mse"],
            "diverged": len(runs) - len(done),
            "paper (COCO) ARI": row.published,
        }


_MEANS = ("decoder_mbo", "attention_mbo", "mse", "mean_map_mse")


def _scores(runs: Sequence[Outcome], key: str) -> list[float]:
    return [one.figures.get(key) or 0.0 for one in runs]


def _verdict(lost: Gain, won: Gain) -> Verdict:
    if lost.p_above < LEVEL and won.p_above < LEVEL:
        return "holds"
    if lost.p_below < LEVEL / 2 or won.p_below < LEVEL / 2:
        return "fails"
    return "not decided at this scale"


# Size, slots, batch, learning rate, weight and read-out of the cpu scale were chosen by runs with a seed that is not
# used. (At 48 x 48 pixels, 144 positions, the objects were not found in 600 steps.)
SCALES: Mapping[str, Experiment] = {
    "smoke": FeatureReconstruction(
        network=MaskedAutoencoding(size=16, hidden_dim=8, num_layers=1, steps=2, batch_size=4), max_objects=2,
        num_scenes=24, num_slots=3, slot_dim=8, large_slot_dim=16, token_dim=8, hidden_dim=8, steps=2, batch_size=4,
        evaluations=2, num_scored=16, cache=None, seeds=1,
    ),
    "cpu": FeatureReconstruction(),
    "gpu": FeatureReconstruction(
        network=MaskedAutoencoding(size=64, hidden_dim=192, num_layers=6, steps=50_000, batch_size=256), max_objects=6,
        num_scenes=50_000, num_slots=7, slot_dim=256, large_slot_dim=1024, token_dim=256, hidden_dim=512,
        steps=100_000, batch_size=64, learning_rate=4e-4, evaluations=20, num_scored=1400, device="cuda",
    ),
}  # fmt: skip

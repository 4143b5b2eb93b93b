"""Claim: trained on one data set, BO-QSA segments others without further training better than Slot Attention (table 8).

Every row is trained on one kind of generated scenes (at the gpu scale on each of two), and scored on test scenes of all
kinds (:mod:`psa.experiments.transfer_scenes`). The kind that a run was trained on is its home; all else is transfer.
The paper's data sets are photographs and its measures AP, PQ, precision and recall; here the score is foreground ARI on
scenes of at least two objects.

All rows have the same encoder, decoder, optimiser, number of steps, slots K and data. ``recipe`` is what ``psa train``
starts from; the others have the slots and objective of their papers, but for what the fields below change.

A slot with a learned start cannot be added after training. On scenes of more objects than the K slots can hold every
row is scored with its K; where slots start at random, with more slots too. That column has no figure for the others,
and no part in the verdict.

Verdict, at more than one seed and if BO-QSA finds objects at home (mean foreground ARI of at least 0.5), on the mean
over all transfers at K slots: ``holds`` if BO-QSA's is above that of each of the paper's other rows that are here
(``sa``, ``i-sa``), one-sided Welch tests at 5 %; ``fails`` if one of theirs is above BO-QSA's at 5 % over their number;
else not decided. A run that diverges scores 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, Verdict
from psa.experiments.over_seeds import best_of_all, gain, spread
from psa.experiments.segmented import segment
from psa.experiments.sprite_runs import PAPER_SIZE, SMOKE, SpriteRun, learning_curves, train
from psa.experiments.transfer_scenes import (
    DOMAINS,
    HOMES,
    MORE,
    MORE_SLOTS,
    scenes_of,
    segment_without_learning,
    with_slots,
)
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.config import RECIPE, RunConfig, published
from psa.inference.variants import specify
from psa.metrics import BASELINES
from psa.report.over_seeds import Strip, strips_figure
from psa.report.picture_rows import picture_rows
from psa.report.pictures import label_picture, labels_like, scene_colours

CLAIMED, RIVALS, LEAST_ARI = "bo-qsa", ("sa", "i-sa"), 0.5
WIDER = f"{MORE}, {MORE_SLOTS} slots"
BASELINE = "without-learning"
# AP / PQ in %, trained on YCB and scored on ScanNet, and on COCO.
PAPER = {
    "sa": ("1.37 / 4.90", "1.20 / 4.97"),
    "i-sa": ("21.62 / 21.81", "18.39 / 18.47"),
    "bo-qsa": ("28.24 / 25.93", "24.23 / 21.65"),
}


@dataclass(frozen=True)
class Transfer(Experiment):
    """What is trained on what, and where it is scored.

    Attributes:
        run: Model and training of all rows; data is the home's.
        homes: Kinds of scenes to train on.
        rows: Members as published, and ``recipe``.
        readout: Of the members with the dot agreement, as in ``query_initialisation``; their own is ``mean``.
        noise_share: Of the steps, with noise on learned queries; 30,000 of 250,000 in the paper.
        sigma: Of the recipe's likelihood: 0.8 is for 32 x 32 pixels, 0.6 keeps the KL's weight on 24 x 24.
        num_scenes: Test scenes of each kind.
        num_clustered: Those of them that the segmentations without learning see.
        seeds: Of training, 0 and up.
    """

    name: ClassVar[str] = "transfer"
    claim: ClassVar[str] = (
        "Trained on one data set, BO-QSA segments others without further training better than Slot Attention."
    )
    source: ClassVar[str] = "BO-QSA (arXiv 2210.08990), tables 8 and 14"
    run: SpriteRun = field(default_factory=SpriteRun)
    homes: tuple[str, ...] = ("sprites",)
    rows: tuple[str, ...] = ("sa", "bo-qsa", "psa-proj", "recipe")
    readout: str = "query-mlp"
    noise_share: float = 0.12
    sigma: float = 0.6
    num_scenes: int = 500
    num_clustered: int = 100
    seeds: int = 3

    def units(self) -> Sequence[str]:
        """The baselines, then seed by seed each row on each home."""
        runs = [f"{row}.{home}.seed-{seed}" for seed in range(self.seeds) for row in self.rows for home in self.homes]
        return [BASELINE, *runs]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Train one row on one home; its scores on every kind of scenes, and its masks of a scene of each."""
        if unit == BASELINE:
            return Outcome(self._baselines())
        row, home, seed = unit.split(".")
        trained = train(self.run_config(row, home, int(seed.removeprefix("seed-"))), progress)
        figures: dict[str, Any] = {"failed_at": trained.failed_at, "curve": trained.curve, "foreground_ari": {}}
        if trained.failed_at is not None:
            return Outcome(figures)
        figures["foreground_ari"], labels = self._scores(trained.autoencoder)
        return Outcome(figures, {"labels": labels})

    def run_config(self, row: str, home: str, seed: int) -> RunConfig:
        """A row with one seed on one home."""
        if row == "recipe":
            slots: dict[str, Any] = {name: RECIPE["slots"][name] for name in ("variant", "num_iterations", "overrides")}
            objective: dict[str, Any] = {**RECIPE["objective"], "sigma": self.sigma}
        else:
            slots, objective = published(row)["slots"], published(row)["objective"]
            if specify(row).agreement == "dot":
                slots = {**slots, "overrides": {"readout": self.readout}}
        config = self.run.config(slots, seed, self.device, objective, HOMES[home])
        noisy = max(1, round(self.noise_share * self.run.steps))
        return config.model_copy(update={"training": config.training.model_copy(update={"noise_steps": noisy})})

    def _scores(self, autoencoder: SlotAutoencoder) -> tuple[dict[str, float | None], Tensor]:
        """Foreground ARI by kind of scenes, and labels (kinds, H, W) of the first scene of each."""
        scores: dict[str, float | None] = {}
        first = []
        for domain in DOMAINS:
            scenes = scenes_of(domain, self.run.size, self.num_scenes)
            found = segment(autoencoder, scenes)
            scores[domain] = found.foreground_ari
            first.append(found.labels[0])
            if domain == MORE:
                wider = with_slots(autoencoder, MORE_SLOTS)
                scores[WIDER] = None if wider is None else segment(wider, scenes).foreground_ari
        return scores, torch.stack(first)

    def _baselines(self) -> dict[str, Any]:
        found: dict[str, dict[str, float]] = {}
        for domain in DOMAINS:
            scenes = scenes_of(domain, self.run.size, min(self.num_scenes, self.num_clustered))
            for name in BASELINES:
                found.setdefault(name, {})[domain] = segment_without_learning(name, scenes, self.run.num_slots)
        return {"foreground_ari": found}

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """The verdict by the rule above; every row's scores, and what it loses against its home."""
        found = {
            (row, home): [outcomes[f"{row}.{home}.seed-{seed}"].figures for seed in range(self.seeds)]
            for row in self.rows
            for home in self.homes
        }
        away = {row: [self._away(row, seed, outcomes) for seed in range(self.seeds)] for row in self.rows}
        home = {row: self._at_home(row, found) for row in self.rows}
        gains = ", ".join(f"{row} by {gain(away[CLAIMED], away[row])}" for row in RIVALS if row in away)
        best = max(away, key=lambda row: float(np.mean(away[row])))
        reason = (
            f"On kinds of scenes that they were not trained on, "
            f"{', '.join(f'{row} {np.mean(scores):.3f}' for row, scores in away.items())}; at home "
            f"{', '.join(f'{row} {np.mean(scores):.3f}' for row, scores in home.items())}. Away, {CLAIMED} is above "
            f"{gains}; best is {best}."
        )
        figures = {f"{row.replace('-', '_')}_away": float(np.mean(scores)) for row, scores in away.items()}
        figures |= {f"{row.replace('-', '_')}_home": float(np.mean(scores)) for row, scores in home.items()}
        tables = {
            "Foreground ARI away from home, one row a model": [self._row(row, away, home) for row in self.rows],
            "Foreground ARI by what a model was trained on and what it is shown": [
                *(_matrix_row(*key, runs) for key, runs in found.items()),
                *(_baseline_row(name, scores) for name, scores in outcomes[BASELINE].figures["foreground_ari"].items()),
            ],
            "Lost against home": [_loss_row(*key, runs) for key, runs in found.items()],
        }
        pictures = {
            "away": strips_figure(
                [Strip(row, found) for row, found in away.items()], "foreground ARI, a dot a seed", ""
            ),
            "curves": learning_curves({f"{row}, {home}": runs for (row, home), runs in found.items()}),
            "scenes": self._pictures(outcomes),
        }
        return Conclusion(verdict(away, home), reason, figures, tables, pictures)

    def _away(self, row: str, seed: int, outcomes: Mapping[str, Outcome]) -> float:
        """The mean over homes, and over the kinds that are not the home, each home as much as the other."""
        means = []
        for home in self.homes:
            scores = outcomes[f"{row}.{home}.seed-{seed}"].figures["foreground_ari"]
            means.append(np.mean([scores.get(domain, 0.0) for domain in DOMAINS if domain != home]))
        return float(np.mean(means))

    def _at_home(self, row: str, found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[float]:
        each = [[run["foreground_ari"].get(home, 0.0) for run in found[row, home]] for home in self.homes]
        return np.mean(each, axis=0).tolist()

    def _row(
        self, row: str, away: Mapping[str, Sequence[float]], home: Mapping[str, Sequence[float]]
    ) -> dict[str, object]:
        less, paper = gain(away[CLAIMED], away[row]), PAPER.get(row, (None, None))
        return {
            "row": row,
            **spread(away[row]),
            "at home": float(np.mean(home[row])),
            "lost": float(np.mean(home[row]) - np.mean(away[row])),
            f"{CLAIMED} above it, away": None if row == CLAIMED else str(less),
            "p": None if row == CLAIMED else less.p_above,
            "paper, YCB to ScanNet, AP / PQ": paper[0],
            "paper, YCB to COCO": paper[1],
        }

    def _pictures(self, outcomes: Mapping[str, Outcome]) -> Figure:
        """The first scene of each kind, its true segments, and those of every row's first seed."""
        images, true = [], []
        for domain in DOMAINS:
            scenes = scenes_of(domain, self.run.size, 1)
            assert scenes.masks is not None
            images.append(scenes.images[0].numpy())
            true.append(scenes.masks[0].numpy())
        rows = {"scene": np.stack(images), "true": np.stack([_painted(mask, mask) for mask in true])}
        for row in self.rows:
            for home in self.homes:
                tensors = outcomes[f"{row}.{home}.seed-0"].tensors
                if tensors:
                    found = zip(tensors["labels"].numpy(), true, strict=True)
                    rows[f"{row}, {home}"] = np.stack([_painted(labels, mask) for labels, mask in found])
        return picture_rows(rows)


def verdict(away: Mapping[str, Sequence[float]], home: Mapping[str, Sequence[float]]) -> Verdict:
    """By the rule above, from every row's scores away and at home, a seed each."""
    if np.mean(home[CLAIMED]) < LEAST_ARI:
        return "not decided at this scale"
    return best_of_all(away[CLAIMED], {row: away[row] for row in RIVALS if row in away})


def _painted(labels: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Segments in the colours of the true ones that they cover."""
    num_true = int(true.max()) + 1
    return label_picture(labels_like(labels, true, num_true), scene_colours(true, num_true))


def _matrix_row(row: str, home: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Means over seeds, and their standard deviation."""
    cells: dict[str, object] = {"row": row, "trained on": home}
    for domain in (*DOMAINS, WIDER):
        scores = [run["foreground_ari"].get(domain, 0.0) for run in runs]
        refused = any(score is None for score in scores)
        cells[domain] = None if refused else spread(scores)["mean ± sd"]
    return cells


def _baseline_row(name: str, scores: Mapping[str, float]) -> dict[str, object]:
    return {"row": name, "trained on": "nothing", **scores, WIDER: None}


def _loss_row(row: str, home: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Each run's own home less its score elsewhere, the mean over seeds."""
    cells: dict[str, object] = {"row": row, "trained on": home}
    for domain in DOMAINS:
        scores = [run["foreground_ari"] for run in runs]
        lost = [score.get(home, 0.0) - score.get(domain, 0.0) for score in scores]
        cells[domain] = None if domain == home else float(np.mean(lost))
    return cells


SCALES: Mapping[str, Experiment] = {
    "smoke": Transfer(run=SMOKE, num_scenes=8, num_clustered=4, seeds=1, rows=("sa", "bo-qsa")),
    "cpu": Transfer(
        run=SpriteRun(size=24, num_slots=5, num_scenes=8192, batch_size=16, learning_rate=2e-3, steps=1200),
        rows=("sa", "bo-qsa", "psa-proj"),
    ),
    "gpu": Transfer(
        run=PAPER_SIZE,
        homes=tuple(HOMES),
        rows=("sa", "i-sa", "bo-qsa", "psa-proj", "recipe"),
        readout="mean",
        sigma=0.8,
        num_scenes=1400,
        num_clustered=1400,
        device="cuda",
    ),
}

"""Claim: slots that are components of a mixture agree better between seeds, and additive decoders make them (PSA).

PSA's figure 5 and table 2 on sprite scenes of known factors: exactly two objects on black, every one of its own hue,
and one slot more than objects. All rows have the encoder, the optimiser, the number of steps and, at equal seeds, the
batches in common; additive rows share one decoder that paints slots alone, the others one that paints them together.
Slot Attention, PSA and PSA-PROJ start, attend and update as published. No row has a KL, and every row decodes slots at
their means: PSA draws them in training, but drawn slots put all tokens into one slot at this length of training. The
row psa-proj-drawn, which has no part in the verdict, shows it. The plain autoencoder's latent is cut into K parts.

Agreement of two seeds is SMCC, the mean of both directions, on the same test images, no slot left out. Slots are
matched by the overlap of their responsibilities over tokens (the attention, in every row alike, also where decoders
have masks), and beside it by the alternating fit, which needs no masks: the autoencoder's parts have none. What each
matching finds in unrelated images is its null, so rows are compared by SMCC less its null.

Verdict, from three seeds on: a row is above another if every pair of its seeds is above every pair of the other's, by
the alternating fit against the autoencoder and by overlap else. ``holds`` if psa and psa-proj are above sa and ae, sa
above sa-noa, and psa-proj above psa-noa; ``fails`` if any of these is the other way round; else not decided.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, Verdict
from psa.experiments.over_training import over_training
from psa.experiments.sprite_factors import independent_features
from psa.experiments.sprite_slots import Row, SpriteSlots
from psa.metrics.identifiability import smcc
from psa.report.identifiability import Learning, SeedPoint, contrast_figure, learning_figure

ROWS: Mapping[str, Row] = {
    "ae": Row(None, additive=False),
    "sa": Row("sa", additive=True),
    "sa-noa": Row("sa", additive=False),
    "psa": Row("psa", additive=True),
    "psa-proj": Row("psa-proj", additive=True),
    "psa-noa": Row("psa-proj", additive=False),
    "psa-proj-drawn": Row("psa-proj", additive=True, drawn=True),
}
# SMCC and R2 across seeds on CLEVR: PSA, table 2.
PAPER = {
    "ae": (0.43, 0.26),
    "sa": (0.56, 0.55),
    "sa-noa": (0.23, 0.24),
    "psa": (0.58, 0.48),
    "psa-proj": (0.66, 0.62),
    "psa-noa": (0.56, 0.42),
}
# The first of each pair is said to be above the second.
CLAIMED = (
    ("psa", "sa"),
    ("psa-proj", "sa"),
    ("psa", "ae"),
    ("psa-proj", "ae"),
    ("sa", "sa-noa"),
    ("psa-proj", "psa-noa"),
)
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Agreement:
    """Of two seeds under one matching; smcc and r2 are means of both directions."""

    seeds: tuple[int, int]
    smcc: float
    r2: float
    null_smcc: float
    null_r2: float

    @property
    def excess(self) -> float:
        """SMCC less its null."""
        return self.smcc - self.null_smcc


Pairs = Mapping[str, Sequence[Agreement]]
"""All pairs of seeds that did not fail, by matching."""


@dataclass(frozen=True)
class SpritesIdentifiability(Experiment):
    """What all rows share, and their seeds.

    Attributes:
        shared: Data, model and training.
        seeds: How many of training, from 1: settings were chosen by looking at runs of seed 0.
        checkpoints: At how many steps, evenly spaced from 0 on, the figures are taken; at least 2.
    """

    name: ClassVar[str] = "sprites_identifiability"
    claim: ClassVar[str] = (
        "Slots of PSA and PSA-PROJ agree better between seeds, up to order and one affine map, than those of Slot "
        "Attention and of a plain autoencoder, and additive decoders do better than joint ones."
    )
    source: ClassVar[str] = "PSA (arXiv 2406.07141), figures 5 and 8, table 2"
    shared: SpriteSlots = field(default_factory=SpriteSlots)
    seeds: int = 3
    checkpoints: int = 5

    def units(self) -> Sequence[str]:
        """Seed by seed, so that an interrupted experiment has whole comparisons."""
        return [f"{row}.seed-{seed}" for seed in range(1, self.seeds + 1) for row in ROWS]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Train one row with one seed: its figures over training, and at the end its slots of the test images."""
        name, _, seed = unit.partition(".seed-")
        row, test = ROWS[name], self.shared.scenes("test")
        trainer = self.shared.trainer(row, int(seed), self.device)

        def look(step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
            found, seen = self.shared.look(row, trainer.autoencoder, test)
            return found, {name if step else f"untrained_{name}": value for name, value in seen.items()}

        return over_training(trainer, self.shared.steps, self.checkpoints, look, progress)

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """Agreement of all pairs of seeds, the factors told, and the verdict by the rule above."""
        found = {row: [outcomes[f"{row}.seed-{seed}"] for seed in range(1, self.seeds + 1)] for row in ROWS}
        pairs = {row: agreements(runs) for row, runs in found.items()}
        floor = {row: agreements(runs, "untrained_") for row, runs in found.items()}
        last = {row: [run.figures["curve"][-1] for run in runs if run.tensors] for row, runs in found.items()}
        verdict, reason = decide(pairs, self.seeds)
        return Conclusion(
            verdict=verdict,
            reason=reason,
            figures={f"{row}_{name}": value for row in ROWS for name, value in _main(pairs[row], last[row]).items()},
            tables={
                "Agreement between seeds, all pairs (paper: CLEVR)": [
                    _between(row, pairs[row], floor[row]) for row in ROWS
                ],
                "True factors told (test scenes)": [_told(row, last[row]) for row in ROWS],
                "Reconstruction and decoder (test scenes)": [_decoded(row, last[row]) for row in ROWS],
            },
            pictures=_pictures(found, pairs),
        )


def agreements(runs: Sequence[Outcome], state: str = "") -> Pairs:
    """SMCC of all pairs of runs that did not fail, by matching: ``overlap`` where slots have masks, ``alternate``.

    Args:
        runs: Of the seeds.
        state: ``untrained_`` for the slots before training.
    """
    found: dict[str, list[Agreement]] = {"overlap": [], "alternate": []}
    whole = [(seed, run.tensors) for seed, run in enumerate(runs, start=1) if run.tensors]
    for (i, a), (j, b) in itertools.combinations(whole, 2):
        for matching, some in found.items():
            if matching == "overlap" and "masks" not in a:
                continue
            one = smcc(
                independent_features(a[f"{state}slots"]),
                independent_features(b[f"{state}slots"]),
                masks_a=a.get(f"{state}masks"),
                masks_b=b.get(f"{state}masks"),
                matching=matching,
                generator=torch.Generator().manual_seed(0),
            )
            means = (one.smcc + one.smcc_reverse) / 2, (one.r2 + one.r2_reverse) / 2
            some.append(Agreement((i, j), *means, one.null_smcc, one.null_r2))
    return found


def decide(pairs: Mapping[str, Pairs], seeds: int) -> tuple[Verdict, str]:
    """The verdict by the rule of this module, and the comparisons behind it."""
    above, below = [], []
    for first, second in CLAIMED:
        matching = "alternate" if "ae" in (first, second) else "overlap"
        one, other = ([pair.excess for pair in pairs[row][matching]] for row in (first, second))
        if one and other and min(one) > max(other):
            above.append((first, second))
        if one and other and max(one) < min(other):
            below.append((first, second))
    open_ = [pair for pair in CLAIMED if pair not in above + below]
    said = f"As claimed: {_listed(above)}. The other way: {_listed(below)}. Seeds overlap: {_listed(open_)}."
    if seeds < ENOUGH_SEEDS:
        return "not decided at this scale", f"Of {seeds} seeds there is no spread of pairs. {said}"
    if below:
        return "fails", said
    return ("not decided at this scale" if open_ else "holds"), said


def _listed(some: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{first} above {second}" for first, second in some) or "none"


def _shown(pairs: Pairs) -> Sequence[Agreement]:
    """The matching that a row is known by."""
    return pairs["overlap"] or pairs["alternate"]


def _main(pairs: Pairs, last: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for name in ("smcc", "r2", "null_smcc", "null_r2") if _shown(pairs) else ():
        found[name] = float(np.mean([getattr(pair, name) for pair in _shown(pairs)]))
    for name in ("smcc", "r2", "sis") if last else ():
        found[f"truth_{name}"] = float(np.mean([one[name] for one in last]))
    for name in ("mse", "contrast") if last else ():
        found[name] = float(np.mean([one[name] for one in last]))
    return found


def _range(values: Sequence[float], digits: int = 2) -> str:
    """The mean, then the least and the largest."""
    if not values:
        return "\N{EN DASH}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _between(row: str, pairs: Pairs, floor: Pairs) -> Mapping[str, object]:
    overlap, alternate = pairs["overlap"], pairs["alternate"]
    smcc_paper, r2_paper = PAPER.get(row, (None, None))
    return {
        "row": row,
        "SMCC": _range([pair.smcc for pair in overlap]),
        "its null": _range([pair.null_smcc for pair in overlap]),
        "R2": _range([pair.r2 for pair in overlap]),
        "R2's null": _range([pair.null_r2 for pair in overlap]),
        "SMCC, alternating": _range([pair.smcc for pair in alternate]),
        "null, alternating": _range([pair.null_smcc for pair in alternate]),
        "SMCC untrained": _range([pair.smcc for pair in _shown(floor)]),
        "paper SMCC": "\N{EN DASH}" if smcc_paper is None else f"{smcc_paper:.2f}",
        "paper R2": "\N{EN DASH}" if r2_paper is None else f"{r2_paper:.2f}",
    }


def _told(row: str, last: Sequence[Mapping[str, Any]]) -> Mapping[str, object]:
    names = {
        "SMCC": "smcc",
        "its null": "null_smcc",
        "R2": "r2",
        "R2's null": "null_r2",
        "SIS": "sis",
        "SIS's null": "null_sis",
        "R2 from the own slot": "matched",
    }
    return {"row": row} | {title: _range([one[name] for one in last]) for title, name in names.items()}


def _decoded(row: str, last: Sequence[Mapping[str, Any]]) -> Mapping[str, object]:
    return {
        "row": row,
        "squared error": _range([one["mse"] for one in last], 4),
        "compositional contrast": _range([one["contrast"] for one in last]),
        "foreground ARI of the attention": _range([one["foreground_ari"] for one in last if "foreground_ari" in one]),
    }


def _pictures(found: Mapping[str, Sequence[Outcome]], pairs: Mapping[str, Pairs]) -> dict[str, Figure]:
    points, curves = [], []
    for row, runs in found.items():
        whole = [(seed, run.figures["curve"]) for seed, run in enumerate(runs, start=1) if run.tensors]
        for seed, curve in whole:
            shared = [pair.smcc for pair in _shown(pairs[row]) if seed in pair.seeds]
            agreed = float(np.mean(shared)) if shared else None
            points.append(SeedPoint(row, curve[-1]["contrast"], curve[-1]["mse"], agreed, curve[-1]["sis"]))
        curves.append(Learning(row, [curve for _, curve in whole]))
    return {"contrast": contrast_figure(points), "over_training": learning_figure([c for c in curves if c.curves])}


_TINY = SpriteSlots(
    size=16,
    num_training=256,
    num_test=128,
    num_contrast=2,
    steps=4,
    batch_size=4,
    slot_dim=4,
    channels=4,
    hidden_dim=8,
    num_iterations=2,
)

SCALES: Mapping[str, Experiment] = {
    "smoke": SpritesIdentifiability(shared=_TINY, seeds=2, checkpoints=2),
    "cpu": SpritesIdentifiability(),
    # CLEVR and ObjectsRoom are not to be had here: the same scenes, more of them, and the length of Slot Attention's
    # training (500,000 steps of 64).
    "gpu": SpritesIdentifiability(
        device="cuda",
        shared=SpriteSlots(size=64, num_training=50_000, steps=500_000, batch_size=64, slot_dim=64, channels=64),
        seeds=5,
    ),
}

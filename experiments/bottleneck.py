"""Claim: variance and covariance losses decorrelate the projection of slots ten times over, and segmentation stays.

Rows (Stange et al., tables 1 and 2): ``slot-attention``; ``covariance``, COVLOSS, c(Z) on a projection Z = h(slots);
``vicreg``, v(Z) and c(Z) with one weight, as the paper writes its loss; ``cosine``, COSINELOSS on the slots. The paper
states no weight, so the projected losses run at several; ``cosine`` has the one of the field below.

What is compared. Figures are mean squared correlations of two features (docs/scene.md) on the test scenes' slots: of
the slots themselves, and of their projection. ``slot-attention`` has no projection: its slots are put through the head
that the run of its seed with the loss started from, of the same architecture and the same weights, untrained. So a fall
has two sources, the head and the slots. At the smallest weight slots hardly feel the loss, while Adam, to which the
scale of a gradient is nothing, trains the head at its full rate: that is what the head does alone.

Verdict, of ``vicreg``, at more than one seed and if the runs without find objects (mean foreground ARI of at least
0.5). The weight is the smallest at which the mean correlation of the projection is a tenth of that without; none:
``fails``.
``holds`` if foreground ARI there is above that without less 0.05, one-sided Welch test at 5 %; ``fails`` if it is
below; else not decided. A run that diverges scores 0 and its correlation counts as 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, Verdict
from psa.experiments.over_seeds import LEVEL, gain, spread
from psa.experiments.segmented import segment
from psa.experiments.slot_probes import FACTORS, probe_objects, sprite_factors
from psa.experiments.sprite_runs import PAPER_SIZE, SMOKE, SpriteRun, learning_curves, train
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.bottleneck import Bottleneck
from psa.inference.config import RunConfig, parse_config
from psa.inference.images import read_images
from psa.inference.sessions import open_split
from psa.inference.training import seed_everything
from psa.metrics import mean_squared_correlation
from psa.report.over_seeds import Band, bands_figure

PLAIN, COSINE = "slot-attention", "cosine"
FALL, MARGIN, LEAST_ARI = 10.0, 0.05, 0.5
# Foreground ARI on Coloured Multi-dSprites; shape (accuracy), colour, scale, x, y (R2).
PAPER = {
    PLAIN: (0.9071, (0.8472, 0.9485, 0.7865, 0.9734, 0.9726)),
    "covariance": (0.8742, (0.8438, 0.9359, 0.7675, 0.9641, 0.9694)),
    COSINE: (0.8882, (0.8984, 0.9199, 0.8124, 0.9592, 0.9626)),
}


@dataclass(frozen=True)
class SlotBottleneck(Experiment):
    """Rows, weights and seeds.

    Attributes:
        run: Data, model and training of all rows, but for what the next fields say.
        data: Of the table ``data``, beside the run's.
        member: Of the family. Slot Attention is ``sa``; ``i-qsa`` is the same with learned queries and implicit
            gradients (BO-QSA, table 7), which finds objects in fewer steps.
        readout: Of the member; its own is ``mean``.
        weights: Of each projected loss, ``covariance`` and ``vicreg``, nats an image, rising; the second is needed.
        cosine: Weight of the cosine loss, nats an image.
        projection_dim: Features of a projection. A batch has batch_size times num_slots slots; with fewer of them than
            features their covariance has no full rank.
        probe_dim: Hidden width of the probes.
        num_scenes: Test scenes.
        seeds: Of training, 0 and up.
    """

    name: ClassVar[str] = "bottleneck"
    claim: ClassVar[str] = (
        "Variance and covariance losses on projected slots make the projection's mean squared correlation ten times "
        "smaller, and foreground ARI stays within 0.05."
    )
    source: ClassVar[str] = "Stange et al., covariance regularisation, tables 1 and 2; issue 8"
    run: SpriteRun = field(default_factory=SpriteRun)
    data: Mapping[str, Any] = field(default_factory=lambda: {"hues": "continuous"})
    member: str = "sa"
    readout: str = "mean"
    weights: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {"covariance": (1.0, 1e3, 1e6), "vicreg": (1.0, 30.0)}
    )
    cosine: float = 1.0
    projection_dim: int = 64
    probe_dim: int = 64
    num_scenes: int = 1400
    seeds: int = 3

    @property
    def rows(self) -> Mapping[str, Mapping[str, float]]:
        """The table ``bottleneck`` of every row, without the size of its projection."""
        rows: dict[str, Mapping[str, float]] = {PLAIN: {}, COSINE: {"cosine": self.cosine}}
        for loss in self.weights:
            parts = ("covariance", "variance")[: 1 + (loss == "vicreg")]
            rows |= {row: dict.fromkeys(parts, weight) for row, weight in self._weighted(loss).items()}
        return rows

    def units(self) -> Sequence[str]:
        """Seed by seed, so that an interrupted experiment has whole comparisons."""
        return [f"{row}.seed-{seed}" for seed in range(self.seeds) for row in self.rows]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Train one row with one seed; its scores, correlations and probes on the test split."""
        row, _, number = unit.rpartition(".seed-")
        seed = int(number)
        trained = train(self.run_config(self.rows[row], seed), progress)
        figures: dict[str, Any] = {"failed_at": trained.failed_at, "curve": trained.curve}
        if trained.failed_at is None:
            figures |= self._figures(trained.autoencoder, self.head(trained.autoencoder, seed))
        return Outcome(figures)

    def run_config(self, losses: Mapping[str, float], seed: int) -> RunConfig:
        """With one seed and these weights of ``bottleneck``."""
        slots = {"variant": self.member, "overrides": {"readout": self.readout}}
        data = {"max_objects": self.run.max_objects, "min_visible": 1.0, **self.data}
        config = self.run.config(slots, seed, self.device, data=data)
        return parse_config({**config.to_toml(), "bottleneck": {**losses, "projection_dim": self.projection_dim}})

    def head(self, autoencoder: SlotAutoencoder, seed: int) -> Bottleneck:
        """The run's own projection, or where it has none, the one that a run of its seed with the loss starts from."""
        own = autoencoder.model.factors
        if isinstance(own, Bottleneck) and own.head is not None:
            return own
        seed_everything(seed)
        started = build_autoencoder(self.run_config({"covariance": 1.0}, seed), autoencoder.size).model.factors
        assert isinstance(started, Bottleneck)
        return started.to(autoencoder.model.prior_loc.device)

    @torch.no_grad()
    def _figures(self, autoencoder: SlotAutoencoder, head: Bottleneck) -> dict[str, Any]:
        test = open_split(autoencoder.config.data.model_copy(update={"num_scenes": self.num_scenes}), "test")
        scenes = read_images(test)
        assert scenes.masks is not None
        seen = segment(autoencoder, scenes)
        projected = head.project(seen.slots.to(autoencoder.model.prior_loc))
        assert projected is not None
        factors = sprite_factors([test[i] for i in range(len(test))])
        return {
            "foreground_ari": seen.foreground_ari,
            "mse": seen.mse,
            "projection_correlation": mean_squared_correlation(projected),
            "projection_deviation": float(projected.std(0).mean()),
            "slot_correlation": mean_squared_correlation(seen.slots.flatten(0, 1)),
            "probes": probe_objects(seen.slots, seen.labels, scenes.masks, factors, self.probe_dim),
        }

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """The verdict by the rule above, with what each loss does at each weight."""
        found = {row: [outcomes[f"{row}.seed-{seed}"].figures for seed in range(self.seeds)] for row in self.rows}
        scores = {row: [run.get("foreground_ari", 0.0) for run in runs] for row, runs in found.items()}
        correlation = {
            row: float(np.mean([run.get("projection_correlation", 1.0) for run in runs])) for row, runs in found.items()
        }
        chosen = {loss: self._smallest(loss, correlation) for loss in self.weights}
        figures = {"foreground_ari_without": float(np.mean(scores[PLAIN])), "correlation_without": correlation[PLAIN]}
        for loss in self.weights:
            falls = [correlation[PLAIN] / correlation[row] for row in self._weighted(loss)]
            figures[f"largest_fall_{loss}"] = max(falls)
        figures |= {f"weight_{loss}": weight for loss, weight in chosen.items() if weight is not None}
        reason = " ".join(self._words(loss, chosen[loss], correlation, scores) for loss in self.weights)
        tables = {
            "Table 1: segmentation and correlation": [self._row(row, found[row], scores, correlation) for row in found],
            "Table 2: probes of slots": [*_probe_rows(found)],
        }
        pictures = {"curves": learning_curves(found)}
        if any(len(weights) > 1 for weights in self.weights.values()):
            pictures["weights"] = self._trade_off(found)
        return Conclusion(self._verdict(chosen["vicreg"], scores), reason, figures, tables, pictures)

    def _smallest(self, loss: str, correlation: Mapping[str, float]) -> float | None:
        """The smallest weight whose correlation is a tenth of that without, chosen without labels."""
        rows = self._weighted(loss).items()
        return min((weight for row, weight in rows if FALL * correlation[row] <= correlation[PLAIN]), default=None)

    def _weighted(self, loss: str) -> Mapping[str, float]:
        """The rows of a projected loss, and their weights."""
        return {f"{loss}={weight:g}": weight for weight in self.weights[loss]}

    def _verdict(self, weight: float | None, scores: Mapping[str, Sequence[float]]) -> Verdict:
        if self.seeds < 2 or np.mean(scores[PLAIN]) < LEAST_ARI:
            return "not decided at this scale"
        if weight is None:
            return "fails"
        kept = gain(scores[f"vicreg={weight:g}"], [score - MARGIN for score in scores[PLAIN]])
        return "holds" if kept.p_above < LEVEL else "fails" if kept.p_below < LEVEL else "not decided at this scale"

    def _words(
        self,
        loss: str,
        weight: float | None,
        correlation: Mapping[str, float],
        scores: Mapping[str, Sequence[float]],
    ) -> str:
        if weight is None:
            falls = [correlation[PLAIN] / correlation[row] for row in self._weighted(loss)]
            return f"{loss}: the correlation falls {max(falls):.1f} times at most."
        row = f"{loss}={weight:g}"
        return (
            f"{loss}: from weight {weight:g} on the correlation falls {correlation[PLAIN] / correlation[row]:.0f} "
            f"times or more, and foreground ARI changes by {gain(scores[row], scores[PLAIN])}."
        )

    def _row(
        self,
        row: str,
        runs: Sequence[Mapping[str, Any]],
        scores: Mapping[str, Sequence[float]],
        correlation: Mapping[str, float],
    ) -> dict[str, object]:
        whole = [run for run in runs if run["failed_at"] is None]
        paper = PAPER.get(row.partition("=")[0])
        return {
            "row": row,
            **spread(scores[row]),
            "above slot-attention": None if row == PLAIN else str(gain(scores[row], scores[PLAIN])),
            "MSE": _mean(whole, "mse"),
            "diverged": len(runs) - len(whole),
            "correlation of the projection": correlation[row],
            "falls": None if row == PLAIN else f"{correlation[PLAIN] / correlation[row]:.1f} times",
            "deviation of the projection": _mean(whole, "projection_deviation"),
            "correlation of the slots": _mean(whole, "slot_correlation"),
            "paper's FG-ARI": None if paper is None else paper[0],
        }

    def _trade_off(self, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
        """Correlations and foreground ARI against the weight; dashed, without the loss."""
        shown = {
            "log10 correlation of the projection": ("projection_correlation", True),
            "log10 correlation of the slots": ("slot_correlation", True),
            "foreground ARI": ("foreground_ari", False),
        }
        panels: dict[str, list[Band]] = {}
        for title, (name, logarithmic) in shown.items():
            bands = panels.setdefault(title, [])
            for loss in self.weights:
                rows = self._weighted(loss)
                runs = np.array([[run.get(name, np.nan) for run in found[row]] for row in rows], np.float64).T
                bands.append(Band(loss, list(rows.values()), np.log10(runs) if logarithmic else runs))
            ends = sorted(weight for weights in self.weights.values() for weight in weights)
            without = np.nanmean([run.get(name, np.nan) for run in found[PLAIN]]) * np.ones((1, len(ends)))
            bands.append(Band(PLAIN, ends, np.log10(without) if logarithmic else without, True))
        return bands_figure(panels, "weight, nats an image", "", logarithmic=True, share_y=False)


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return float(np.mean([run[name] for run in runs])) if runs else None


def _probe_rows(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, object]]:
    """Accuracy of the shape and R2 of the others, mean and standard deviation over seeds, and the paper's."""
    rows: list[dict[str, object]] = []
    for row, runs in found.items():
        probes = [run["probes"] for run in runs if run["failed_at"] is None]
        cells = {name: spread([probe[name] for probe in probes])["mean ± sd"] for name in FACTORS}
        rows.append({"row": row, **cells})
    papers = {row: dict(zip(FACTORS, figures, strict=True)) for row, (_, figures) in PAPER.items()}
    return [*rows, *({"row": f"paper: {row}", **cells} for row, cells in papers.items())]


SCALES: Mapping[str, Experiment] = {
    "smoke": SlotBottleneck(
        run=SMOKE,
        weights={"vicreg": (1.0,)},
        projection_dim=8,
        probe_dim=8,
        num_scenes=32,
        seeds=1,
    ),
    "cpu": SlotBottleneck(
        run=SpriteRun(size=24, num_slots=5, num_scenes=8192, batch_size=16, learning_rate=2e-3, steps=3000),
        member="i-qsa",
        readout="query-mlp",
        weights={"covariance": (300.0,), "vicreg": (300.0,)},
        num_scenes=800,
    ),
    "gpu": SlotBottleneck(
        run=replace(PAPER_SIZE, num_slots=6, max_objects=4),
        data={"source": "multi-dsprites", "variant": "colored_on_colored", "min_visible": 0.0},
        projection_dim=512,
        device="cuda",
    ),
}

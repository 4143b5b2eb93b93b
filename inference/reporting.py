"""A run's page: from a model, its evaluation and its history to the records that ``psa.report`` draws."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import tomli_w
import torch
from jaxtyping import Float
from torch import Tensor

import psa
from psa.data import as_float
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.evaluation import Evaluation
from psa.inference.images import Images
from psa.inference.word_figures import WordFigures
from psa.metrics import SegmentationSummary, foreground_ari
from psa.report import MetricRow, ReportContent, RunsTable, SceneView, Verdict, decomposition_figure, write_report
from psa.runs import RunDirectory

CURVES = {
    "loss": "training loss, nats a dimension",
    "held_out": "held-out loss, nats a dimension",
    "mse": "held-out MSE",
    "foreground_ari": "held-out foreground ARI",
    "word_cross_entropy": "held-out cross-entropy, nats a word",
    "projection_correlation": "mean squared correlation of the projection",
}
# Of psa.metrics.MaskSummary.
MASK_MEASURES = {
    "foreground_ari": "foreground ARI",
    "ari": "ARI",
    "mbo_instance": "mBO, instances",
    "mbo_class": "mBO, classes",
    "foreground_iou": "foreground mIoU",
    "foreground_dice": "foreground Dice",
    "ap": "AP",
    "pq": "PQ",
    "precision": "precision",
    "recall": "recall",
}
MASKS = {"decoder": "Masks are the decoder's.", "attention": "Masks are the slots' attention, interpolated."}


def shown(autoencoder: SlotAutoencoder) -> str:
    """What a page's pictures are, in words."""
    masks = MASKS[autoencoder.mask_kind]
    if autoencoder.config.encoder.kind == "features":
        return (
            f"{masks} Features are observed, not pixels: a reconstruction is three of their principal components as "
            "colours, and a slot shows the image below its mask."
        )
    if autoencoder.mask_kind == "attention":
        return f"{masks} No slot has a picture of its own: each shows the part of the reconstruction below its mask."
    return masks


def scene_views(autoencoder: SlotAutoencoder, images: Images, count: int = 8) -> list[SceneView]:
    """The first images of a set, and what the model made of them."""
    first = images.first(count).in_memory()
    chosen = first.images
    batch = first.batch(slice(None))
    posterior, slots, masks = autoencoder.encode(batch)
    scene = autoencoder.decode(slots, autoencoder.guide.active(posterior))
    score = None
    if first.masks is not None:
        score = foreground_ari(autoencoder.labels(scene, masks), first.masks, first.background)

    mean, rgb = scene.mean, scene.rgb
    if autoencoder.config.encoder.kind == "features":
        mean = principal_picture(scene.mean, batch, images.size)
        rgb = as_float(chosen)[:, None].expand(-1, masks.shape[1], -1, -1, -1)

    def to_bytes(pictures: torch.Tensor) -> np.ndarray:
        return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).contiguous().numpy()

    return [
        SceneView(
            image=chosen[i].numpy(),
            reconstruction=to_bytes(mean[i]),
            true_mask=None if first.masks is None else first.masks[i].numpy(),
            masks=masks[i].numpy(),
            slot_rgb=to_bytes(rgb[i]),
            weights=posterior.weights[i].numpy(),
            foreground_ari=None if score is None else float(score[i]),
        )
        for i in range(len(chosen))
    ]


def principal_picture(
    maps: Float[Tensor, "batch channels rows columns"],
    like: Float[Tensor, "batch channels rows columns"],
    size: tuple[int, int],
) -> Float[Tensor, "batch 3 height width"]:
    """Maps as pictures: three principal components of other maps as red, green and blue, two deviations each way."""
    rows = like.movedim(1, -1).flatten(0, 2)
    _, values, axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    scores = (maps.movedim(1, -1) - rows.mean(0)) @ axes[:3].T * len(rows) ** 0.5 / values[:3].clamp(min=1e-12)
    return torch.nn.functional.interpolate((0.5 + 0.25 * scores).movedim(-1, 1), size)


def metric_rows(evaluation: Evaluation, baselines: Mapping[str, SegmentationSummary]) -> list[MetricRow]:
    """The metrics table, the figure to quote first, the baselines beside it."""
    rows = []
    scores = evaluation.segmentation
    if scores is not None:
        error = f" (standard error over images {scores.foreground_ari_stderr:.3f})"
        rows.append(
            MetricRow("foreground ARI", scores.foreground_ari, f"images with at least two objects, up to 1{error}")
        )
        rows += [
            MetricRow(f"  baseline: {name}", other.foreground_ari, "the same figure without any learning")
            for name, other in baselines.items()
        ]
        rows += [
            MetricRow("share of single-object images", scores.share_single_object, "left out above: they score 0 or 1"),
            MetricRow("foreground ARI, all images", scores.foreground_ari_all, "single-object images score 0 or 1"),
            MetricRow("ARI", scores.ari, "background included, up to 1"),
            MetricRow("segmentation covering", scores.msc, "mean over true objects of the best IoU, 0 to 1"),
            *mask_rows(evaluation),
        ]
    rows += [
        MetricRow("MSE", evaluation.mse, "reconstruction, image range [0, 1]"),
        MetricRow("held-out objective", evaluation.objective, f"nats a dimension; {evaluation.description}"),
        MetricRow(
            "slots in use",
            evaluation.slots_in_use,
            f"mean number of slots that own at least 1 % of the pixels; masks of the {evaluation.mask_kind}",
        ),
    ]
    if evaluation.words is not None:
        rows += word_rows(evaluation.words)
    if evaluation.slot_count_error is not None:
        rows.append(
            MetricRow("slot-count error", evaluation.slot_count_error, "against true segments, with background")
        )
    health = evaluation.health
    return [
        *rows,
        MetricRow("layout agreement", health.layout_agreement, "ARI between different images; near 1: tiled"),
        MetricRow("images", evaluation.num_images, "evaluated"),
    ]


def mask_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The measures of real images, for each kind of mask."""
    labels = ", ".join(map(str, evaluation.background or ())) or "none"
    note = f"background labels: {labels}; true labels: {evaluation.true_labels}"
    return [
        MetricRow(f"{kind} masks: {MASK_MEASURES[name]}", value, note)
        for kind, summary in (evaluation.masks or {}).items()
        for name, value in asdict(summary).items()
        if value is not None
    ]


def word_rows(words: WordFigures) -> list[MetricRow]:
    """How well the transformer and the discrete VAE do."""
    return [
        MetricRow("word cross-entropy", words.cross_entropy, "nats a word, given slots and the words before"),
        MetricRow("  unigram entropy", words.unigram_entropy, "the same, knowing the words' frequencies alone"),
        MetricRow("words in use", words.in_use, "of the vocabulary, in these images"),
        MetricRow("MSE of the code", words.code_mse, "pictures of the images' own words, image range [0, 1]"),
    ]


def verdicts(evaluation: Evaluation) -> list[Verdict]:
    """What the run says of itself, without labels."""
    if evaluation.health.problems:
        return [Verdict("warning", f"{problem} (docs/failures.md).") for problem in evaluation.health.problems]
    return [Verdict("ok", "No sign of failure without labels: not collapsed into one slot, and not tiled.")]


def write_run_report(
    run: RunDirectory,
    autoencoder: SlotAutoencoder,
    images: Images,
    evaluation: Evaluation,
    baselines: Mapping[str, SegmentationSummary],
    *,
    title: str,
    runs: RunsTable | None = None,
) -> None:
    """Write report.html and figures/scenes.png of a run."""
    views = scene_views(autoencoder, images)
    history: Sequence[dict[str, float]] = run.read_metrics()
    slots = autoencoder.config.slots
    curves = {label: [(int(row["step"]), row[key]) for row in history if key in row] for key, label in CURVES.items()}
    content = ReportContent(
        title=title,
        summary=(
            f"{slots.variant} with {slots.num_slots} slots, {slots.num_iterations} E/M steps an image, "
            f"{evaluation.description}. {shown(autoencoder)} "
            "Each slot is a component of a Gaussian mixture over the image's tokens; "
            "its weight is the share of tokens it explains."
        ),
        verdicts=verdicts(evaluation),
        metrics=metric_rows(evaluation, baselines),
        scenes=views,
        curves={label: points for label, points in curves.items() if points},
        runs=runs,
        config_toml=tomli_w.dumps(autoencoder.config.to_toml()),
        provenance={
            "psa": psa.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), {platform.system()}",
            "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    )
    write_report(run.report, content)
    decomposition_figure(views[:6], run.picture)

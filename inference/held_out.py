"""A row of figures on images that training never sees."""

import torch

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.bottleneck import Bottleneck
from psa.inference.images import ImageSet
from psa.inference.keyed_noise import ImageNoise, Purpose
from psa.inference.objectives import held_out_objective
from psa.inference.word_figures import WordCounts
from psa.metrics import foreground_ari, mean_squared_correlation, mean_squared_error, num_objects


@torch.no_grad()
def held_out_row(autoencoder: SlotAutoencoder, held_out: ImageSet) -> dict[str, float]:
    """``held_out`` (the objective, lower is better), ``mse``, and with masks ``foreground_ari`` (same noise each time).

    Where training projects slots to narrow their bottleneck, ``projection_correlation`` too.
    Of a decoder of words also their ``word_cross_entropy`` and ``unigram_entropy``, nats a word.

    Args:
        autoencoder: In evaluation mode.
        held_out: All of them are read, at once.
    """
    device = autoencoder.model.prior_loc.device
    images = held_out.batch(slice(None)).to(device)
    index = torch.arange(len(images), device=device)
    with autoencoder.guide.drawing(ImageNoise(autoencoder.config.training.seed, 0, index, Purpose.HELD_OUT)):
        row = {"held_out": held_out_objective(autoencoder, images)}
        posterior, slots, masks = autoencoder.encode(images)
    active = autoencoder.guide.active(posterior)
    scene = autoencoder.decode(slots, active)
    row["mse"] = float(mean_squared_error(scene.mean, images).mean())
    bottleneck = autoencoder.model.factors
    projected = bottleneck.project(slots, active) if isinstance(bottleneck, Bottleneck) else None
    if projected is not None:
        row["projection_correlation"] = mean_squared_correlation(projected)
    if autoencoder.guide.code is not None:
        words = WordCounts(autoencoder)
        words.add(images, slots, active)
        figures = words.figures()
        row |= {"word_cross_entropy": figures.cross_entropy, "unigram_entropy": figures.unigram_entropy}
    if held_out.masks is not None:
        several = num_objects(held_out.masks, held_out.background) >= 2
        score = foreground_ari(autoencoder.labels(scene, masks).cpu(), held_out.masks, held_out.background)[several]
        if len(score):
            row["foreground_ari"] = float(score.mean())
    return row

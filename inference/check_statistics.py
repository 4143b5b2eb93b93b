"""The statistics of predictive checks by name: of tokens, with a fit where one is needed; of images, with a run."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.fits import LocalMixtureFit
from psa.inference.replicates import CHUNK, TokenModel
from psa.metrics import slots_in_use
from psa.metrics.statistics import (
    LEAST_SHARE,
    colour_entropy,
    high_frequency_variance,
    mask_overlap,
    masked_slots_in_use,
    object_size,
    pixel_mean,
    pixel_variance,
    token_kurtosis,
    token_log_volume,
    token_mean,
    token_nearest_distance,
    token_spread,
    weight_entropy,
)

Statistic = Callable[[Tensor], Tensor]
Family = Callable[[Tensor], Mapping[str, Tensor]]
"""Several statistics of a batch (B, ...), (B,) each, that share their work."""

TOKEN_STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "token_mean": token_mean,
        "token_spread": token_spread,
        "token_log_volume": token_log_volume,
        "token_kurtosis": token_kurtosis,
        "token_nearest_distance": token_nearest_distance,
    }
)
FIT_STATISTICS = ("slots_in_use", "weight_entropy", "residual_kurtosis")
IMAGE_STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "pixel_mean": pixel_mean,
        "pixel_variance": pixel_variance,
        "high_frequency_variance": high_frequency_variance,
        "colour_entropy": colour_entropy,
    }
)
SLOT_STATISTICS = ("slots_in_use", "object_size", "mask_overlap", "weight_entropy")


def of_fit(fit: LocalMixtureFit) -> dict[str, Float[Tensor, " batch"]]:
    """What a fit says of its tokens.

    Returns:
        slots_in_use, the slots that own at least 1 % of the tokens; weight_entropy, of the mean weights, in nats;
        residual_kurtosis, E[z^4] / E[z^2]^2 over tokens and features of z, a token's distance from its slot's mean in
        its slot's standard deviations.
    """
    labels = fit.labels
    index = labels[..., None].expand_as(fit.tokens)
    scale = (fit.precision_rate / fit.precision_shape[..., None]).sqrt()
    square = ((fit.tokens.to(fit.loc) - fit.loc.gather(1, index)) / scale.gather(1, index)).square().flatten(1)
    return {
        "slots_in_use": slots_in_use(labels, fit.loc.shape[1], LEAST_SHARE).to(fit.loc),
        "weight_entropy": weight_entropy(fit.concentration / fit.concentration.sum(1, keepdim=True)),
        "residual_kurtosis": square.square().mean(1) / square.mean(1).square(),
    }


def token_statistics(model: TokenModel, generator: torch.Generator | None = None) -> Family:
    """All statistics of tokens; those of a fit by fitting ``model`` to data and replicates alike, as one batch.

    Args:
        model: What is fitted; it need not be the model that is checked. With more slots and a small concentration it
            counts the clusters that the checked model should have had.
        generator: Source of random starts.
    """

    def statistics(tokens: Float[Tensor, "batch tokens features"]) -> dict[str, Tensor]:
        plain = {name: statistic(tokens) for name, statistic in TOKEN_STATISTICS.items()}
        return plain | of_fit(model.fit(tokens, generator))

    return statistics


def scene_statistics(autoencoder: SlotAutoencoder) -> Family:
    """All statistics of images; those of slots by the run's own inference on data and replicates alike."""

    def statistics(images: Float[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        plain = {name: statistic(images) for name, statistic in IMAGE_STATISTICS.items()}
        parts = [_of_slots(autoencoder, part) for part in images.split(CHUNK)]
        return plain | {name: torch.cat([part[name] for part in parts]) for name in SLOT_STATISTICS}

    return statistics


def _of_slots(autoencoder: SlotAutoencoder, images: Tensor) -> dict[str, Tensor]:
    posterior, _, masks = autoencoder.encode(images)
    return {
        "slots_in_use": masked_slots_in_use(masks),
        "object_size": object_size(masks),
        "mask_overlap": mask_overlap(masks),
        "weight_entropy": weight_entropy(posterior.weights),
    }

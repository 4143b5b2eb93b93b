"""Statistics that predictive checks look at: a batch (B, ...) in, a number for each (B,) out."""

import torch
from jaxtyping import Float
from torch import Tensor

from psa.metrics.segmentation import slots_in_use

LEAST_SHARE = 0.01  # of the image, from which a slot is in use
MAX_DISTANCES = 1 << 22  # between tokens, at once


def pixel_mean(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
    """The mean over pixels and channels, in the image's units."""
    return images.mean((1, 2, 3))


def pixel_variance(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
    """The variance over pixels, averaged over channels, in squared units."""
    return images.flatten(2).var(2, correction=0).mean(1)


def high_frequency_variance(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
    """The noise variance of a channel, from what neighbouring pixels do not share.

    With d = x_ij - x_i,j+1 - x_i+1,j + x_i+1,j+1, of variance 4 sigma^2 where noise of variance sigma^2 is all there
    is: (median |d| / (2 0.6745))^2. The median ignores the edges of objects; a plane has none of it.

    Args:
        images: Of at least 2 x 2 pixels.
    """
    rows = images[..., 1:, :] - images[..., :-1, :]
    mixed = rows[..., 1:] - rows[..., :-1]
    return (mixed.abs().flatten(1).median(1).values / (2.0 * 0.6744897501960817)).square()


def colour_histogram(images: Float[Tensor, "batch 3 height width"], bins: int = 4) -> Float[Tensor, "batch colours"]:
    """The share of pixels in each of bins^3 boxes of colour; values outside [0, 1] count in the outer boxes.

    Returns:
        (B, bins^3), red the slowest axis; sums to 1 over boxes.
    """
    level = (images * bins).floor().clamp(0, bins - 1).long().flatten(2)
    box = (level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]
    counts = images.new_zeros(len(images), bins**3)
    counts.scatter_add_(1, box, torch.ones_like(box, dtype=images.dtype))
    return counts / box.shape[1]


def colour_entropy(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " batch"]:
    """The entropy in nats of the colour histogram: 0 for one colour, at most log 64."""
    return torch.special.entr(colour_histogram(images)).sum(1)


def object_size(masks: Float[Tensor, "batch slots height width"]) -> Float[Tensor, " batch"]:
    """The mean share of the image of the slots in use, the largest left out as background; 0 if it is the only one.

    A pixel belongs to the slot of largest mask; a slot is in use from 1 % of the pixels on.
    """
    owner = torch.nn.functional.one_hot(masks.argmax(1).flatten(1), masks.shape[1])
    share = owner.to(masks).mean(1)
    used = share >= LEAST_SHARE
    rest = torch.where(used, share, torch.zeros_like(share)).sum(1) - share.amax(1)
    return rest.clamp(min=0.0) / (used.sum(1) - 1).clamp(min=1)


def masked_slots_in_use(masks: Float[Tensor, "batch slots height width"]) -> Float[Tensor, " batch"]:
    """The number of slots that own at least 1 % of the pixels."""
    return slots_in_use(masks.argmax(1), masks.shape[1], LEAST_SHARE).to(masks)


def mask_overlap(masks: Float[Tensor, "batch slots height width"]) -> Float[Tensor, " batch"]:
    """1 - sum_k m_k^2, averaged over pixels: 0 for hard masks, at most 1 - 1/K.

    Args:
        masks: (B, K, H, W), sums to 1 over K.
    """
    return 1.0 - masks.square().sum(1).mean((1, 2))


def weight_entropy(weights: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
    """-sum_k pi_k log pi_k in nats, at most log K.

    Args:
        weights: (B, K), sums to 1 over K.
    """
    return torch.special.entr(weights).sum(1)


def token_covariance(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch features features"]:
    """The covariance over an image's tokens, divided by N."""
    centred = tokens - tokens.mean(1, keepdim=True)
    return centred.transpose(1, 2) @ centred / tokens.shape[1]


def token_log_volume(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, " batch"]:
    """log det of the tokens' covariance, in nats; -inf for tokens on a hyperplane."""
    covariance = token_covariance(tokens)
    return torch.linalg.slogdet(covariance).logabsdet


def token_spread(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, " batch"]:
    """The trace of the tokens' covariance, in squared token units."""
    return token_covariance(tokens).diagonal(dim1=1, dim2=2).sum(1)


def token_kurtosis(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, " batch"]:
    """E[z^4] / E[z^2]^2 of an image's tokens about their mean, averaged over features; 3 for a Gaussian.

    An axis that does not vary counts as 1, the least there is.
    """
    square = (tokens - tokens.mean(1, keepdim=True)).square()
    second = square.mean(1).clamp(min=torch.finfo(tokens.dtype).tiny ** 0.5)
    return (square.square().mean(1) / second.square()).clamp(min=1.0).mean(1)


def token_mean(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, " batch"]:
    """The mean over tokens and features, in the tokens' units."""
    return tokens.mean((1, 2))


def token_nearest_distance(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, " batch"]:
    """The mean over tokens of the log distance to the nearest other one: low where tokens clump; -inf for copies.

    Args:
        tokens: (B, N, D), N >= 2, in the tokens' units.
    """
    size = max(1, MAX_DISTANCES // tokens.shape[1] ** 2)
    return torch.cat([_nearest(part).log().mean(1) for part in tokens.split(size)])


def _nearest(tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens"]:
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return distance.amin(2)

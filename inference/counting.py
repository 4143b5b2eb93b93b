"""How many objects an image has: a posterior over the count, found without labels (docs/sampling.md).

Slots are drawn from q(s | x) and decoded, and the objects of each draw are counted (:mod:`psa.inference.roles`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import ImageSet
from psa.inference.roles import find_roles

CHUNK = 64


@torch.no_grad()
def count_frequencies(
    autoencoder: SlotAutoencoder,
    images: Float[Tensor, "batch channels height width"],
    num_draws: int = 16,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch counts"]:
    """The share of draws from q(s | x) with 0..K objects, (B, K + 1); sums to 1.

    Args:
        autoencoder: A run; where its slots are points, all draws are alike.
        images: (B, 3, H, W) in [0, 1].
        num_draws: S >= 1.
        generator: Source of the draws.

    Raises:
        ValueError: If num_draws is below 1.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    guide = autoencoder.guide
    posterior = guide.inference(guide.encoder(autoencoder.prepare(images)), generator=generator)
    (loc, scale), active = guide.slot_moments(posterior), guide.active(posterior)
    counts = []
    for _ in range(num_draws):
        noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        counts.append(find_roles(autoencoder.decode(loc + scale * noise, active)).num_objects)
    frequencies = torch.nn.functional.one_hot(torch.stack(counts), loc.shape[1] + 1).double().mean(0)
    return frequencies.to(loc)


def smoothed(
    frequencies: Float[Tensor, "batch counts"], overall: Float[Tensor, " counts"], num_draws: int, strength: float = 1.0
) -> Float[Tensor, "batch counts"]:
    """Frequencies of S draws with a Dirichlet prior of ``strength`` draws at the data set's own distribution.

    (S f + strength p) / (S + strength), where p is ``overall`` mixed with a hundredth of the uniform distribution, so
    that no count has probability 0.
    """
    prior = 0.99 * overall + 0.01 / len(overall)
    return (num_draws * frequencies + strength * prior) / (num_draws + strength)


def count_objects(
    autoencoder: SlotAutoencoder,
    images: ImageSet,
    num_draws: int = 16,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "images counts"]:
    """p(number of objects | x) of every image, (M, K + 1); sums to 1 over the counts.

    The frequencies of the draws, smoothed by one draw's worth of the images' average; no label enters.

    Args:
        autoencoder: A run.
        images: In memory.
        num_draws: S, draws of the slots.
        generator: Source of the draws.
        progress: Called with the number of images done.
    """
    found = []
    for start in range(0, len(images), CHUNK):
        batch = images.batch(slice(start, start + CHUNK))
        found.append(count_frequencies(autoencoder, batch, num_draws, generator).cpu())
        if progress is not None:
            progress(min(start + CHUNK, len(images)))
    frequencies = torch.cat(found)
    return smoothed(frequencies, frequencies.mean(0), num_draws)


def log_score(probabilities: Float[Tensor, "images counts"], counts: Int64[Tensor, " images"]) -> Tensor:
    """log p(true count), (M,), in nats; higher is better, 0 is perfect, minus infinity for more objects than slots."""
    possible = counts < probabilities.shape[1]
    return (probabilities.gather(1, (counts * possible)[:, None])[:, 0] * possible).log()

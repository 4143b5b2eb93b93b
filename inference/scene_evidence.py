"""log p(x) of images under a trained run: the ELBO and the importance-weighted bound (docs/compare.md).

Slots are exchangeable: the prior draws each alike and the decoders treat each alike, so p(x, s) is the same in all K!
orders. q knows one of them. It is averaged over all, for every run: p(x, s) / q(s) then has the mean p(x) as before,
and up to log K! less is lost.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.evidence import log_mean
from psa.models.discretised import discretised_log_prob
from psa.permanent import log_permanent

BLOCK = 64  # draws of one image that share a stream of random numbers
MAX_ENTRIES = 1 << 22  # rows x slots x channels x pixels decoded at once

LogLikelihood = Callable[[Float64[Tensor, "rows slots features"]], Float64[Tensor, " rows"]]
"""log p(x | s) of every row's own image, unchanged when a row's slots change places."""


@dataclass(frozen=True)
class SlotProposal:
    """q(s) of every row: Normal slots, averaged over the K! orders of the slots.

    Attributes:
        loc: (R, K, D).
        scale: (R, K, D) > 0.
    """

    loc: Float64[Tensor, "rows slots features"]
    scale: Float64[Tensor, "rows slots features"]

    def at(self, noise: Float64[Tensor, "rows slots features"]) -> Float64[Tensor, "rows slots features"]:
        """Draws in one order, from standard normal ``noise``: what is averaged does not depend on it."""
        return self.loc + self.scale * noise

    def log_density(self, slots: Float64[Tensor, "rows slots features"]) -> Float64[Tensor, " rows"]:
        """log (1 / K!) sum over permutations r of prod_k q_k(s_r(k)): a permanent, K <= 14."""
        q = torch.distributions.Normal(self.loc[:, :, None], self.scale[:, :, None], validate_args=False)
        pairs = q.log_prob(slots[:, None]).sum(-1)
        return log_permanent(pairs) - math.lgamma(slots.shape[1] + 1)


def log_joint(
    slots: Float64[Tensor, "rows slots features"], prior: TorchDistributionMixin, log_likelihood: LogLikelihood
) -> Float64[Tensor, " rows"]:
    """log p(s) + log p(x | s); ``prior`` is over one slot, computed in the prior's own precision."""
    return prior.log_prob(slots.to(prior.mean.dtype)).double().sum(-1) + log_likelihood(slots)


def log_weights(
    slots: Float64[Tensor, "rows slots features"],
    proposal: SlotProposal,
    prior: TorchDistributionMixin,
    log_likelihood: LogLikelihood,
) -> Float64[Tensor, " rows"]:
    """log p(x, s) - log q(s) at draws from q: the mean of the exponential is p(x)."""
    return log_joint(slots, prior, log_likelihood) - proposal.log_density(slots)


def estimate(
    weights: Float64[Tensor, "images samples"], method: str
) -> tuple[Float64[Tensor, " images"], Float64[Tensor, " images"]]:
    """log p(x) from log weights, and its Monte Carlo standard error, NaN for one sample.

    ``elbo``: the mean of the log weights. Otherwise the log of the mean weight (IWAE, Burda et al. 2016, eq. 8); both
    are at most log p(x) in expectation.
    """
    if method == "elbo":
        return weights.mean(-1), weights.std(-1) / math.sqrt(weights.shape[-1])
    return log_mean(weights)


def stream(seed: int, *place: int, device: torch.device) -> torch.Generator:
    """Random numbers of one place (image, purpose, block), the same whatever is computed beside it."""
    words = np.random.SeedSequence([seed, *place]).generate_state(2)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


@dataclass(frozen=True)
class SceneEvidence:
    """The model and the guide of a run, at one noise scale.

    Attributes:
        autoencoder: The run; only ``model.slot_prior``, ``model.decoder`` and the guide are used.
        sigma: Standard deviation of a channel, in units of the image's range [0, 1].
        seed: Of all random numbers, together with an image's index.
        ends: Of the likelihood's outer bins, ``closed`` or ``open`` (:mod:`psa.models.discretised`).
    """

    autoencoder: SlotAutoencoder
    sigma: float
    seed: int
    ends: str = "closed"

    @property
    def device(self) -> torch.device:
        """Where the run is."""
        return self.autoencoder.model.prior_loc.device

    @property
    def prior(self) -> TorchDistributionMixin:
        """p(s), over one slot."""
        return self.autoencoder.model.slot_prior

    def rows_at_once(self) -> int:
        """How many sets of slots are decoded together."""
        height, width = self.autoencoder.size
        return max(1, MAX_ENTRIES // (self.autoencoder.model.num_slots * 3 * height * width))

    def log_likelihood(self, levels: UInt8[Tensor, "rows channels height width"]) -> LogLikelihood:
        """log P(x | s) of 8-bit images, one a row."""
        model = self.autoencoder.model

        def of(slots: Float64[Tensor, "rows slots features"]) -> Float64[Tensor, " rows"]:
            scene = model.decoder(slots.to(model.prior_loc.dtype))
            return discretised_log_prob(scene, levels, model.likelihood, self.sigma, self.ends)

        return of

    @torch.no_grad()
    def proposal(
        self, image: UInt8[Tensor, "height width channels"], num_rows: int, generator: torch.Generator
    ) -> SlotProposal:
        """q(s | x) of one image, once a row: where slots start at random, each row has its own start.

        Every start's q is a proposal in its own right, so the bounds hold for each and for their mean.

        Raises:
            ValueError: If slots are points, which have no density.
        """
        guide = self.autoencoder.guide
        tokens = guide.encoder(self.autoencoder.prepare(image[None]))
        q = guide.slot_distribution(guide.inference(tokens.expand(num_rows, -1, -1), generator=generator))
        if not isinstance(getattr(q, "base_dist", None), torch.distributions.Normal):
            raise ValueError("autoencoder: expected a guide with a density (objective.sample = true), got points")
        return SlotProposal(q.mean.double(), q.stddev.double())

    @torch.no_grad()
    def importance_weights(
        self, image: UInt8[Tensor, "height width channels"], index: int, num_samples: int
    ) -> Float64[Tensor, " samples"]:
        """Log weights of draws from q of one image, nats; :func:`estimate` makes bounds of them.

        Args:
            image: (H, W, 3), 0 to 255.
            index: Its place in the data set: with the seed it fixes the random numbers, the same for every run.
            num_samples: Draws; those of a smaller multiple of 64 are among those of a larger one.
        """
        parts = []
        for block, first in enumerate(range(0, num_samples, BLOCK)):
            rows = min(BLOCK, num_samples - first)
            place = [stream(self.seed, index, purpose, block, device=self.device) for purpose in (0, 1)]
            proposal = self.proposal(image, rows, place[0])
            slots = proposal.at(normal(proposal.loc.shape, place[1]))
            parts.append(self._weights(slots, proposal, image.movedim(-1, 0).to(self.device)))
        return torch.cat(parts)

    def _weights(self, slots: Tensor, proposal: SlotProposal, levels: Tensor) -> Float[Tensor, " rows"]:
        parts = []
        for some in slots.split(self.rows_at_once()):
            likelihood = self.log_likelihood(levels.expand(len(some), -1, -1, -1))
            parts.append(log_joint(some, self.prior, likelihood))
        return torch.cat(parts) - proposal.log_density(slots)


def normal(shape: torch.Size, generator: torch.Generator) -> Float64[Tensor, "*shape"]:
    """Standard normal draws in float64, where the generator is."""
    return torch.randn(shape, dtype=torch.float64, device=generator.device, generator=generator)

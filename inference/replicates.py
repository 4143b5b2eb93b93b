"""Data sets that a model makes: from its prior, or from its posterior given data; what predictive checks compare with.

Two models behind one interface: the local mixture on tokens, and the scene program of a run on images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.draws import MixtureDraws
from psa.inference.fits import LocalMixtureFit
from psa.inference.gibbs import Parameters, pose, prior_draws
from psa.inference.importance import Proposal
from psa.inference.slot_inference import positive_int
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

Draw = Callable[[int], Tensor]
"""R -> R independent replicates of a batch of data sets, (R, B, ...)."""

CHUNK = 512  # scenes decoded at once


@runtime_checkable
class PredictiveModel(Protocol):
    """What predictive checks need of a model."""

    def prior_draw(self, like: Tensor, generator: torch.Generator | None = None) -> Draw:
        """Replicates from the prior predictive, of the shape, dtype and device of ``like`` (B, ...)."""
        ...

    def posterior_draw(self, data: Tensor, generator: torch.Generator | None = None) -> Draw:
        """Replicates from the posterior predictive given each data set of ``data`` (B, ...)."""
        ...


@dataclass(frozen=True)
class TokenModel:
    """The local mixture of an image's tokens, its posterior found by coordinate ascent.

    The posterior is variational: its draws are narrower than the model's own where clusters overlap.

    Attributes:
        prior: The prior.
        num_slots: K.
        num_iterations: Most iterations of a fit.
        num_restarts: Starts of a fit, the best kept.

    Raises:
        ValueError: If a number is below 1.
    """

    prior: LocalMixturePrior
    num_slots: int
    num_iterations: int = 100
    num_restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("num_slots", "num_iterations", "num_restarts"):
            positive_int(name, getattr(self, name))

    def fit(
        self, tokens: Float[Tensor, "batch tokens features"], generator: torch.Generator | None = None
    ) -> LocalMixtureFit:
        """Every image's variational posterior."""
        fit = fit_local_mixture(
            tokens, self.prior, self.num_slots,
            num_iterations=self.num_iterations, num_restarts=self.num_restarts, generator=generator,
        )  # fmt: skip
        assert isinstance(fit, LocalMixtureFit)
        return fit

    def prior_draw(
        self, like: Float[Tensor, "batch tokens features"], generator: torch.Generator | None = None
    ) -> Draw:
        """Token sets (R, B, N, D) of new weights, means and precisions each."""
        problem = pose(torch.zeros_like(like), self.prior, self.num_slots, None)

        def draw(count: int) -> Tensor:
            return _tokens(_one_chain(prior_draws(problem, count, generator)), like.shape[1], generator).to(like)

        return draw

    def posterior_draw(
        self, data: Float[Tensor, "batch tokens features"], generator: torch.Generator | None = None
    ) -> Draw:
        """Token sets (R, B, N, D), for each replicate new parameters from the fit of all of an image's tokens."""
        return fit_draw(self.fit(data, generator), data.shape[1], generator)


def fit_sample(fit: LocalMixtureFit, num_draws: int, generator: torch.Generator | None = None) -> MixtureDraws:
    """Independent draws from q(pi) q(mu, lambda) of a fit, as one chain, (B, 1, S).

    Raises:
        ValueError: If its covariances are full.
    """
    if fit.components.full:
        raise ValueError("fit must have diagonal covariances, got full ones")
    return _one_chain(Proposal(fit.concentration, fit.components).draw(num_draws, generator))


def fit_draw(fit: LocalMixtureFit, num_tokens: int, generator: torch.Generator | None = None) -> Draw:
    """Replicates (R, B, num_tokens, D) from q(pi) q(mu, lambda) of a fit; as :func:`fit_sample` it may raise."""
    return lambda count: _tokens(fit_sample(fit, count, generator), num_tokens, generator)


def _one_chain(theta: Parameters) -> MixtureDraws:
    return MixtureDraws(theta.log_weights[:, None], theta.loc[:, None], theta.precision[:, None])


def _tokens(draws: MixtureDraws, num_tokens: int, generator: torch.Generator | None) -> Tensor:
    """(S, B, N, D) of parameters (B, 1, S)."""
    return draws.replicated(num_tokens, generator)[:, 0].movedim(1, 0)


@dataclass(frozen=True)
class SceneRun:
    """The scene program of a run and its guide; images (B, 3, H, W), with the likelihood's noise.

    torch's distributions draw from the global generator, and so do these; ``generator`` is not looked at.

    Attributes:
        autoencoder: The run.
    """

    autoencoder: SlotAutoencoder

    def prior_draw(
        self, like: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Draw:
        """Images of slots from p(s)."""
        model = self.autoencoder.model
        return self._draw(lambda count: model.slot_prior.sample(torch.Size((count, len(like), model.num_slots))))

    def posterior_draw(
        self, data: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Draw:
        """Images of slots from q(s | x) of each image itself; where slots are points, of those points."""
        guide = self.autoencoder.guide
        with torch.no_grad():
            q = guide.slot_distribution(guide.posterior(self.autoencoder.prepare(data)))
        return self._draw(lambda count: q.sample(torch.Size((count,))))

    def _draw(self, slots: Draw) -> Draw:
        @torch.no_grad()
        def draw(count: int) -> Tensor:
            found = slots(count)
            parts = [self.autoencoder.model.draw_images(part) for part in found.flatten(0, 1).split(CHUNK)]
            return torch.cat(parts).unflatten(0, found.shape[:2])

        return draw

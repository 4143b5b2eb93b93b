"""What a fit of the local model returns: a variational posterior with its evidence, or a point estimate."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.conjugate import NormalGamma
from psa.inference.ascent import Ascent
from psa.inference.conjugate_steps import with_parameters
from psa.inference.evidence_bounds import assignment_log_joint, log_relabellings, occupied_slots
from psa.models.local_mixture import LocalMixturePrior, draw_components, keeping
from psa.records import SlotPosterior


@dataclass(frozen=True)
class LocalMixtureFit:
    """q(c) q(pi) q(mu, lambda) of a batch of images, the second half computed from the first.

    Attributes:
        tokens: (B, N, D), what was fitted.
        mask: (B, N), bool or non-negative weights, or None.
        prior: The prior of the local model.
        covariance: diagonal or full.
        coarsening: beta of the coarsened likelihood; 1 is the model's own.
        elbo: (B,), nats, every constant kept; of the coarsened evidence where coarsening is not 1.
        concentration: (B, K), Dirichlet alpha_k.
        loc: (B, K, D), m_k.
        loc_strength: (B, K), kappa_k.
        precision_shape: (B, K), a_k.
        precision_rate: (B, K, D), b_k; or (B, K, D, D) where covariances are full.
        responsibilities: (B, K, N), sums to 1 over K.
        initial_loc: (B, K, D), where the best restart began.
        ascent: How it went.
    """

    tokens: Float[Tensor, "batch tokens features"]
    mask: Tensor | None
    prior: LocalMixturePrior
    covariance: str
    coarsening: float
    elbo: Float[Tensor, " batch"]
    concentration: Float[Tensor, "batch slots"]
    loc: Float[Tensor, "batch slots features"]
    loc_strength: Float[Tensor, "batch slots"]
    precision_shape: Float[Tensor, "batch slots"]
    precision_rate: Float[Tensor, "batch slots *axes"]
    responsibilities: Float[Tensor, "batch slots tokens"]
    initial_loc: Float[Tensor, "batch slots features"]
    ascent: Ascent

    @property
    def elbo_trace(self) -> Float[Tensor, "iterations batch"]:
        """The ELBO after each iteration."""
        return self.ascent.objective_trace

    @property
    def components(self) -> NormalGamma:
        """q(mu, lambda), (B, K)."""
        full = self.covariance == "full"
        return NormalGamma(self.loc, self.loc_strength, self.precision_shape, self.precision_rate, full)

    @property
    def labels(self) -> Int[Tensor, "batch tokens"]:
        """The slot that owns each token."""
        return self.responsibilities.argmax(1)

    @property
    def log_evidence_estimate(self) -> Float[Tensor, " batch"]:
        """ELBO + log(K! / (K - K+)!), K+ the slots that own at least 1 % of the tokens; no bound (model.md section 1).

        Raises:
            ValueError: If the likelihood was coarsened.
        """
        self._check_evidence()
        occupied = occupied_slots(self.responsibilities, self.mask)
        return self.elbo + log_relabellings(self.responsibilities.shape[1], occupied)

    @property
    def log_evidence_bound(self) -> Float[Tensor, " batch"]:
        """Never above the log evidence: the larger of the ELBO and log p(v, c_hat) + log(K! / (K - K+)!).

        c_hat gives each token to its likeliest slot, K+ is the number of slots that it uses. With fractional weights
        relabellings do not add up, and only log p(v, c_hat), itself an ELBO, stands beside the ELBO.

        Raises:
            ValueError: If the likelihood was coarsened.
        """
        self._check_evidence()
        joint, used = assignment_log_joint(
            self.labels, self.tokens, self.prior, self.loc.shape[1], self.mask, self.covariance
        )
        if self.mask is None or self.mask.dtype == torch.bool:
            joint = joint + log_relabellings(self.loc.shape[1], used)
        return torch.maximum(self.elbo, joint)

    def _check_evidence(self) -> None:
        if self.coarsening != 1.0:
            raise ValueError(f"coarsening must be 1 for the evidence of the model, got {self.coarsening}")

    def num_occupied(
        self, num_samples: int = 1000, min_tokens: float | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch counts"]:
        """The distribution of the number of occupied slots over 0..K, by sampling assignments; (B, K + 1), sums to 1.

        Args:
            num_samples: Draws of the assignments from q(c).
            min_tokens: m, the tokens that make a slot occupied; by default 1 % of the image's, at least 1.
            generator: Source of the draws, on the fit's device.
        """
        num_slots = self.loc.shape[1]
        total = self.responsibilities.new_zeros(len(self.elbo), num_slots + 1)
        for _ in range(num_samples):
            labels = draw_labels(self.responsibilities, generator)
            one_hot = torch.nn.functional.one_hot(labels, num_slots).transpose(1, 2).to(total)
            occupied = occupied_slots(one_hot, self.mask, min_tokens)
            total.scatter_add_(1, occupied[:, None], torch.ones_like(total[:, :1]))
        return total / num_samples

    def slot_posterior(self) -> SlotPosterior:
        """As the record that every member of the family returns."""
        state = with_parameters(self.concentration, self.components)
        return SlotPosterior(
            weights=state.log_weights.exp(),
            loc=state.loc,
            var=state.var,
            responsibilities=self.responsibilities,
            initial_loc=self.initial_loc,
            elbo=self.elbo,
            covariance=state.covariance,
            concentration=self.concentration,
            loc_strength=self.loc_strength,
            precision_shape=self.precision_shape,
            precision_rate=self.precision_rate,
        )

    def guide(self) -> Callable[..., None]:
        """q as a Pyro guide of :func:`psa.models.local_mixture.local_mixture`, its arguments those of the program.

        The assignment is enumerated in parallel; every particle of TraceEnum_ELBO equals the summed ELBO.
        """

        def guide(tokens: Tensor, *_: object, **__: object) -> None:
            """q of the images that were fitted; tokens give the plates their sizes, the other arguments nothing."""
            with pyro.plate("images", len(tokens), dim=-2):
                pyro.sample("weights", dist.Dirichlet(self.concentration[:, None]))
                with pyro.plate("slots", self.loc.shape[1], dim=-1):
                    draw_components(self.components)
                with pyro.plate("tokens", tokens.shape[1], dim=-1), keeping(self.mask):
                    assignment = dist.Categorical(self.responsibilities.transpose(1, 2))
                    pyro.sample("assignment", assignment, infer={"enumerate": "parallel"})

        return guide


@dataclass(frozen=True)
class PointFit:
    """A maximum of the posterior density or of the likelihood, with its responsibilities.

    Attributes:
        objective: (B,), nats: log p(v | theta), plus log p(pi, mu, lambda) of a MAP estimate.
        weights: (B, K), sums to 1 over K.
        loc: (B, K, D).
        var: (B, K, D), at least the variance floor under maximum likelihood.
        covariance: (B, K, D, D) where covariances are full, else None.
        responsibilities: (B, K, N), sums to 1 over K; the posterior of the assignments at the estimate.
        initial_loc: (B, K, D).
        ascent: How it went.
    """

    objective: Float[Tensor, " batch"]
    weights: Float[Tensor, "batch slots"]
    loc: Float[Tensor, "batch slots features"]
    var: Float[Tensor, "batch slots features"]
    covariance: Float[Tensor, "batch slots features features"] | None
    responsibilities: Float[Tensor, "batch slots tokens"]
    initial_loc: Float[Tensor, "batch slots features"]
    ascent: Ascent

    def slot_posterior(self) -> SlotPosterior:
        """As the record that every member of the family returns."""
        return SlotPosterior(
            self.weights, self.loc, self.var, self.responsibilities, self.initial_loc, covariance=self.covariance
        )


def draw_labels(
    responsibilities: Float[Tensor, "batch slots tokens"], generator: torch.Generator | None = None
) -> Int[Tensor, "batch tokens"]:
    """One draw of every token's slot."""
    shape = (len(responsibilities), 1, responsibilities.shape[2])
    uniform = torch.rand(shape, dtype=responsibilities.dtype, device=responsibilities.device, generator=generator)
    passed = (uniform >= responsibilities.cumsum(1)).sum(1)
    return passed.clamp(max=responsibilities.shape[1] - 1)

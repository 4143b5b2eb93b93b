"""Posterior draws of the local model: densities, responsibilities, quantities free of labels, ArviZ groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psa.arviz import inference_data
from psa.conjugate import gaussian_log_density
from psa.inference.coordinates import centre


@dataclass(frozen=True)
class MixtureDraws:
    """Draws of theta = (pi, mu, lambda) for a batch of images; diagonal covariances.

    Slots of different draws need not correspond: see :func:`psa.inference.relabelling.relabel`.

    Attributes:
        log_weights: (B, C, S, K), log pi, which sums to 1 over K; -inf for a weight of 0.
        loc: (B, C, S, K, D), mu, in the tokens' units.
        precision: (B, C, S, K, D), lambda > 0.
    """

    log_weights: Float[Tensor, "batch chains draws slots"]
    loc: Float[Tensor, "batch chains draws slots features"]
    precision: Float[Tensor, "batch chains draws slots features"]

    def _log_joint(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "batch chains draws slots tokens"]:
        """log pi_k Normal(v_n; mu_k, 1 / lambda_k); a masked token stands at the others' mean."""
        values, _, origin = centre(tokens.to(self.loc), mask)
        loc = self.loc.flatten(1, 3) - origin
        density = gaussian_log_density(values, loc, self.precision.flatten(1, 3).reciprocal())
        return self.log_weights[..., None] + density.unflatten(1, self.log_weights.shape[1:])

    def token_log_density(
        self, tokens: Float[Tensor, "batch tokens features"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch chains draws tokens"]:
        """log p(v_n | theta), the assignment summed out, in nats; 0 at masked tokens."""
        density = self._log_joint(tokens, mask).logsumexp(-2)
        return density if mask is None else density.masked_fill(~mask[:, None, None], 0.0)

    def responsibilities(
        self, tokens: Float[Tensor, "batch tokens features"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch chains draws slots tokens"]:
        """p(c_n = k | v_n, theta), sums to 1 over slots; at masked tokens those of a token at the others' mean."""
        return self._log_joint(tokens, mask).softmax(-2)

    def permuted(self, order: Int[Tensor, "batch chains draws slots"]) -> "MixtureDraws":
        """Slots re-ordered in every draw: new slot k is old slot order[..., k]."""
        axes = order[..., None].expand_as(self.loc)
        return MixtureDraws(
            self.log_weights.gather(-1, order), self.loc.gather(-2, axes), self.precision.gather(-2, axes)
        )

    def label_free(
        self, tokens: Float[Tensor, "batch tokens features"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> dict[str, Float[Tensor, "batch chains draws"]]:
        """Functions of theta that no relabelling changes.

        Returns:
            log_likelihood, sum_n log p(v_n | theta); weight_entropy, -sum_k pi_k log pi_k in nats; largest_weight;
            and weighted_mean_d, sum_k pi_k mu_kd, for each axis d.
        """
        weights = self.log_weights.exp()
        found = {
            "log_likelihood": self.token_log_density(tokens, mask).sum(-1),
            "weight_entropy": torch.special.entr(weights).sum(-1),
            "largest_weight": weights.amax(-1),
        }
        means = (weights[..., None] * self.loc).sum(-2)
        return found | {f"weighted_mean_{d}": means[..., d] for d in range(means.shape[-1])}

    def replicated(
        self, num_tokens: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch chains draws tokens features"]:
        """For every draw a set of N tokens from p(v | theta)."""
        *lead, num_slots, num_features = self.loc.shape
        slot = torch.multinomial(
            self.log_weights.exp().reshape(-1, num_slots), num_tokens, replacement=True, generator=generator
        )
        index = slot.reshape(*lead, num_tokens, 1).expand(*lead, num_tokens, num_features)
        noise = torch.randn(index.shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        return self.loc.gather(-2, index) + noise * self.precision.gather(-2, index).rsqrt()

    def inference_data(
        self,
        tokens: Float[Tensor, "batch tokens features"],
        image: int = 0,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        extra_stats: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """One image's draws as ArviZ groups; masked tokens are left out of all of them.

        Groups: posterior (weights, loc, precision), posterior_predictive (values, a replicated set of the same N for
        every draw), observed_data (values), log_likelihood (values, a token), sample_stats (lp, the log likelihood of
        all tokens, and what is added). Dimensions slot, token, feature.

        Args:
            tokens: (B, N, D).
            image: Which image of the batch.
            mask: (B, N), False where a token is padding.
            extra_stats: More sample_stats, each (chains, draws).
            generator: Source of the replicated tokens.
        """
        one = MixtureDraws(*(part[image : image + 1] for part in (self.log_weights, self.loc, self.precision)))
        observed = tokens[image] if mask is None else tokens[image][mask[image]]
        density = one.token_log_density(observed[None])
        groups: dict[str, dict[str, Tensor]] = {
            "posterior": {"weights": one.log_weights.exp()[0], "loc": one.loc[0], "precision": one.precision[0]},
            "posterior_predictive": {"values": one.replicated(len(observed), generator)[0]},
            "log_likelihood": {"values": density[0]},
            "sample_stats": {"lp": density[0].sum(-1), **(extra_stats or {})},
            "observed_data": {"values": observed},
        }
        dims = {
            "weights": ["slot"],
            "loc": ["slot", "feature"],
            "precision": ["slot", "feature"],
            "values": ["token", "feature"],
        }
        arrays = {group: {name: value.cpu() for name, value in found.items()} for group, found in groups.items()}
        return inference_data(arrays, dims)

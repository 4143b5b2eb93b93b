"""The local model with its assignments summed out: what gradient-based samplers of pi, mu, lambda need."""

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Transform, constraints

from psa.conjugate import gaussian_log_density
from psa.models.local_mixture import LocalMixturePrior, draw_components, keeping

LEAST_LOG_WEIGHT = -690.0  # exp of it, and the inverse times any sensible concentration, are normal float64


class SlotMixture(dist.TorchDistribution):
    """p(v_n) = sum_k pi_k Normal(v_n; mu_k, diag 1 / lambda_k) for all tokens of each image, batch shape (B, N).

    As ``MixtureSameFamily``, whose density and gradient hold tensors of size batch x tokens x slots x features; these
    take matrix products about the tokens' mean. A weight of 0 adds nothing, with a finite gradient.

    Args:
        weights: (B, 1, K), sums to 1 over K.
        loc: (B, K, D).
        precision: (B, K, D), > 0.
        num_tokens: N.
    """

    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        weights: Float[Tensor, "batch 1 slots"],
        loc: Float[Tensor, "batch slots features"],
        precision: Float[Tensor, "batch slots features"],
        num_tokens: int,
    ) -> None:
        self.weights, self.loc, self.precision = weights, loc, precision
        super().__init__(torch.Size([len(loc), num_tokens]), loc.shape[-1:], validate_args=False)

    def log_prob(self, value: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens"]:
        """log p(v_n), (B, N), in nats."""
        origin = value.mean(1, keepdim=True)
        log_weights = self.weights.clamp(min=torch.finfo(self.weights.dtype).tiny).log().transpose(1, 2)
        density = gaussian_log_density(value - origin, self.loc - origin, self.precision.reciprocal())
        return (log_weights + density).logsumexp(1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Tokens, (..., B, N, D)."""
        component = dist.Normal(self.loc[:, None], self.precision[:, None].rsqrt()).to_event(1)
        mixture = dist.MixtureSameFamily(dist.Categorical(self.weights), component)
        return mixture.expand(self.batch_shape).sample(torch.Size(sample_shape))


def _observed(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens, with the valid ones' mean where one is left out: it may hold anything, and must not move the mean."""
    if mask is None:
        return tokens
    keep = (mask > 0)[..., None]
    kept = torch.where(keep, tokens, torch.zeros_like(tokens))
    return torch.where(keep, kept, kept.sum(1, keepdim=True) / keep.sum(1, keepdim=True).clamp(min=1))


def marginal_local_mixture(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    mask: Bool[Tensor, "batch tokens"] | Float[Tensor, "batch tokens"] | None = None,
) -> None:
    """:func:`psa.models.local_mixture.local_mixture` without its assignments; sites weights, precision, loc, values.

    Diagonal covariances. The density of (weights, precision, loc, values) is that of the program with assignments,
    summed over them.

    Args:
        tokens: (B, N, D), observed.
        prior: The prior; its axes must fit D.
        num_slots: K >= 1.
        mask: (B, N), False where a token is padding; or non-negative weights, which multiply log p(v_n).
    """
    num_images, num_tokens, _ = tokens.shape
    components = prior.components(tokens)
    concentration = tokens.new_full((num_slots,), prior.concentration)
    with pyro.plate("images", num_images, dim=-2):
        weights = pyro.sample("weights", dist.Dirichlet(concentration))
        with pyro.plate("slots", num_slots, dim=-1):
            precision, loc = draw_components(components)
        with pyro.plate("tokens", num_tokens, dim=-1), keeping(mask):
            pyro.sample("values", SlotMixture(weights, loc, precision, num_tokens), obs=_observed(tokens, mask))


class StickBreaking(Transform):
    """R^(K-1) to the simplex by breaking a stick, in log space; 0 is the centre.

    y_i = s(u_i) prod_{j<i} s(-u_j), with s the sigmoid and u_i = x_i - log(K - i), i = 1..K-1, as PyTorch's transform.
    That one cuts s off at the spacing of floats below 1, so that the last weight stays above 2e-16: of the density
    Dirichlet(0.1, 0.1) it loses 1.2 %, all of it where the last slot is the empty one. Here all weights reach 1e-300.
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log s(u_i), and the logarithms of what is left after i breaks."""
        offset = torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()
        log_sigmoid = torch.nn.functional.logsigmoid
        return log_sigmoid(x - offset), log_sigmoid(offset - x).cumsum(-1)

    def _call(self, x: Tensor) -> Tensor:
        log_break, log_left = self._logs(x)
        pad = torch.nn.functional.pad
        return (pad(log_break, (0, 1)) + pad(log_left, (1, 0))).clamp(min=LEAST_LOG_WEIGHT).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        offset = torch.arange(left.shape[-1], 0, -1, dtype=y.dtype, device=y.device)
        return y[..., :-1].log() - left.log() + offset.log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """(...,): y_i depends on x_j of j <= i alone."""
        log_break, log_left = self._logs(x)
        return (log_break + log_left).sum(-1)

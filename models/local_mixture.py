"""The local model: one Gaussian mixture per image (docs/local_mixture.md).

Two programs over the same tokens. :func:`local_mixture` is the Bayesian one (model.md section 1);
:func:`likelihood_mixture` has fixed parameters, and its density is what the E/M family raises.
"""

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from pyro.ops.indexing import Vindex
from torch import Tensor

from psa.conjugate import NormalGamma, gaussian_log_density

COVARIANCES = ("diagonal", "full")


def _positive(rate: Tensor) -> bool:
    if not bool(torch.isfinite(rate).all()) or rate.ndim > 2:
        return False
    if rate.ndim < 2:
        return bool((rate > 0).all())
    square = rate.shape[0] == rate.shape[1] and torch.allclose(rate, rate.T)
    return square and int(torch.linalg.cholesky_ex(rate.to(torch.float64)).info) == 0


@dataclass(frozen=True)
class LocalMixturePrior:
    """Dirichlet and Normal-Gamma prior of the local model.

    pi ~ Dirichlet(concentration, ...); lambda_kd ~ Gamma(precision_shape, rate precision_rate_d);
    mu_kd | lambda ~ Normal(loc_d, 1 / (loc_strength lambda_kd)).

    Attributes:
        concentration: alpha0 > 0; 0.1 or less tends to empty spare slots.
        loc: m0, a number for every axis or a (D,) tensor; in the tokens' units.
        loc_strength: kappa0 > 0, in tokens.
        precision_shape: a0 > 0.
        precision_rate: b0 > 0, a number or (D,), in squared token units; with full covariances also a positive definite
            matrix (D, D).

    Raises:
        ValueError: If a value is outside its support.
    """

    concentration: float = 0.1
    loc: float | Tensor = 0.0
    loc_strength: float = 0.01
    precision_shape: float = 1.0
    precision_rate: float | Tensor = 1.0

    def __post_init__(self) -> None:
        for name in ("concentration", "loc_strength", "precision_shape"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        rate = torch.as_tensor(self.precision_rate)
        if not _positive(rate):
            raise ValueError(
                "precision_rate must be positive: a number, (D,), or a positive definite matrix, "
                f"got {self.precision_rate}"
            )
        loc = torch.as_tensor(self.loc)
        if loc.ndim > 1 or not bool(torch.isfinite(loc).all()):
            raise ValueError(f"loc must be finite, a number or (D,), got {self.loc}")

    def components(self, like: Tensor, covariance: str = "diagonal") -> NormalGamma:
        """The prior over one component, on the device and in the dtype of ``like`` (..., D).

        Args:
            like: Tokens.
            covariance: ``diagonal`` (Normal-Gamma), or ``full`` (Normal-Wishart with inverse scale 2 diag b0, or 2 b0
                where precision_rate is a matrix).

        Raises:
            ValueError: If loc or precision_rate has another number of axes than ``like``, or precision_rate is a matrix
                and covariances are diagonal.
        """
        num_features = like.shape[-1]

        def tensor(value: float | Tensor) -> Tensor:
            return torch.as_tensor(value, dtype=like.dtype, device=like.device)

        def expand(name: str, value: Tensor) -> Tensor:
            if value.ndim > 0 and value.shape[-1] != num_features:
                raise ValueError(f"{name} has {value.shape[-1]} axes, the tokens have {num_features}")
            return value if value.ndim == 2 else value.expand(num_features)

        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}")
        rate = expand("precision_rate", tensor(self.precision_rate))
        if rate.ndim == 2 and covariance == "diagonal":
            raise ValueError("precision_rate must be a number or (D,) where covariances are diagonal, got a matrix")
        if rate.ndim == 1 and covariance == "full":
            rate = rate.diag_embed()
        loc = expand("loc", tensor(self.loc))
        return NormalGamma(loc, tensor(self.loc_strength), tensor(self.precision_shape), rate, covariance == "full")


def _valid(tokens: Tensor, mask: Tensor | None) -> Any:  # a bool tensor; Pyro's annotations know only the CPU's
    return torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask


def keeping(mask: Tensor | None) -> AbstractContextManager[Any]:
    """Within a plate of tokens: a bool mask leaves tokens out, non-negative weights multiply their factors."""
    if mask is None:
        return nullcontext()
    keep: Any = mask > 0  # Pyro's annotations know only the CPU's bool tensors
    if mask.dtype == torch.bool:
        return pyro.poutine.mask(mask=keep)
    # weights of 0 are masked, so that what they hold is not evaluated
    stack = ExitStack()
    stack.enter_context(pyro.poutine.mask(mask=keep))
    stack.enter_context(pyro.poutine.scale(scale=mask.clamp(min=torch.finfo(mask.dtype).tiny)))
    return stack


class _Wishart(dist.Wishart):
    """Without torch's second look at a draw, which is inverted: it warns of draws that are fine and makes them anew."""

    def rsample(self, sample_shape: Any = (), max_try_correction: int | None = None) -> Tensor:
        """Bartlett's decomposition."""
        return self._bartlett_sampling(torch.Size(sample_shape))


def draw_components(components: NormalGamma) -> tuple[Tensor, Tensor]:
    """The sites precision and loc, in this order, of program and guide alike; call it inside the components' plates.

    Returns:
        Precision (..., D), or (..., D, D) where covariances are full; loc (..., D).
    """
    strength, shape = components.strength[..., None], components.shape[..., None]
    if components.full:
        degrees = 2.0 * components.shape + components.loc.shape[-1] - 1
        precision = pyro.sample("precision", _Wishart(degrees, precision_matrix=2.0 * components.rate))
        prior = dist.MultivariateNormal(components.loc, precision_matrix=strength[..., None] * precision)
        return precision, pyro.sample("loc", prior)
    precision = pyro.sample("precision", dist.Gamma(shape, components.rate).to_event(1))
    return precision, pyro.sample("loc", dist.Normal(components.loc, (strength * precision).rsqrt()).to_event(1))


def observe_tokens(
    tokens: Tensor, weights: Tensor, precision: Tensor, loc: Tensor, mask: Tensor | None, full: bool = False
) -> None:
    """The sites assignment and values, in the plate tokens, of every program; call it inside the plate images.

    Args:
        tokens: (B, N, D).
        weights: pi, sums to 1 over K.
        precision: As :func:`draw_components` returns it; matrices where ``full``.
        loc: Likewise.
        mask: (B, N), bool or non-negative weights.
        full: Whether covariances are full.
    """
    num_images, num_tokens, _ = tokens.shape
    with pyro.plate("tokens", num_tokens, dim=-1), keeping(mask):
        assignment = pyro.sample("assignment", dist.Categorical(logits=weights.log()))
        image = torch.arange(num_images, device=tokens.device)[:, None]
        own_loc, own_precision = Vindex(loc)[image, assignment], Vindex(precision)[image, assignment]
        own = (
            dist.MultivariateNormal(own_loc, precision_matrix=own_precision)
            if full
            else dist.Normal(own_loc, own_precision.rsqrt()).to_event(1)
        )
        observed = tokens if mask is None else torch.where((mask > 0)[..., None], tokens, torch.zeros_like(tokens))
        pyro.sample("values", own, obs=observed)


def local_mixture(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    mask: Bool[Tensor, "batch tokens"] | Float[Tensor, "batch tokens"] | None = None,
    covariance: str = "diagonal",
) -> None:
    """The Pyro program of model.md section 1; sites weights, precision, loc, assignment, values.

    Plates images (dim -2), slots and tokens (dim -1); the assignment can be enumerated in parallel. The mask multiplies
    a token's whole factor, assignment and value; with fractional weights the guide must enumerate the assignment.

    Args:
        tokens: (B, N, D), observed.
        prior: The prior; its axes must fit D.
        num_slots: K >= 1.
        mask: (B, N), False where a token is padding; or non-negative weights.
        covariance: diagonal, or full (Normal-Wishart).
    """
    components = prior.components(tokens, covariance)
    concentration = tokens.new_full((num_slots,), prior.concentration)
    with pyro.plate("images", len(tokens), dim=-2):
        weights = pyro.sample("weights", dist.Dirichlet(concentration))
        with pyro.plate("slots", num_slots, dim=-1):
            precision, loc = draw_components(components)
        observe_tokens(tokens, weights, precision, loc, mask, full=components.full)


def likelihood_mixture(
    tokens: Float[Tensor, "batch tokens features"],
    weights: Float[Tensor, "batch slots"],
    loc: Float[Tensor, "batch slots features"],
    var: Float[Tensor, "batch slots features"],
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> None:
    """The maximum-likelihood mixture as a Pyro program: parameters given, assignments summed out; site values."""
    component = dist.Normal(loc[:, None], var[:, None].sqrt()).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(weights[:, None]), component)
    keep = _valid(tokens, mask)
    with (
        pyro.plate("images", tokens.shape[0], dim=-2),
        pyro.plate("tokens", tokens.shape[1], dim=-1),
        pyro.poutine.mask(mask=keep),
    ):
        pyro.sample("values", mixture, obs=torch.where(keep[..., None], tokens, torch.zeros_like(tokens)))


def mixture_log_likelihood(
    tokens: Float[Tensor, "batch tokens features"],
    weights: Float[Tensor, "batch slots"],
    loc: Float[Tensor, "batch slots features"],
    var: Float[Tensor, "batch slots features"],
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, " batch"]:
    """sum_n log sum_k pi_k Normal(v_n; mu_k, diag var_k), (B,), in nats: the density of :func:`likelihood_mixture`.

    Exact EM (``em``; psa-proj with W_q = I, on its values) never lowers it. Computed about the tokens' mean, without
    a tensor of size batch x slots x tokens x features.
    """
    keep = _valid(tokens, mask)
    tokens = torch.where(keep[..., None], tokens, torch.zeros_like(tokens))
    origin = tokens.sum(1, keepdim=True) / keep.sum(1).clamp(min=1)[:, None, None]
    log_joint = weights.log()[..., None] + gaussian_log_density(tokens - origin, loc - origin, var)
    return torch.where(keep, log_joint.logsumexp(1), torch.zeros_like(tokens[..., 0])).sum(-1)

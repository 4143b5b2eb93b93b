"""Gaussian, Normal-Gamma, Normal-Wishart and Dirichlet algebra, every constant kept.

A mixture component is an exponential family: its log density is a product of natural parameters with the features
T(v) = (v v', v, 1) of a token (v^2 in place of v v' where covariances are diagonal). So scores of all slots on all
tokens are one matrix product, and the sums over tokens that an update needs are another: :func:`token_features`,
:func:`pack`, :func:`unpack`. Second moments cancel badly far from the origin, so callers pass centred tokens.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


def squared_distances(
    tokens: Float[Tensor, "batch tokens features"],
    loc: Float[Tensor, "batch slots features"],
    precision: Float[Tensor, "batch slots features"],
) -> Float[Tensor, "batch slots tokens"]:
    """Squared Mahalanobis distances sum_d precision_kd (v_nd - loc_kd)^2, expanded into two matrix products.

    Nothing of size batch x slots x tokens x features is built. The expansion cancels badly far from the origin, so
    callers pass tokens and means that are centred on the tokens' mean.
    """
    scaled = loc * precision
    constant = (scaled * loc).sum(-1, keepdim=True)
    tokens_t = tokens.transpose(1, 2)
    return torch.baddbmm(constant - 2.0 * (scaled @ tokens_t), precision, tokens_t.square())


def gaussian_log_density(
    tokens: Float[Tensor, "batch tokens features"],
    loc: Float[Tensor, "batch slots features"],
    var: Float[Tensor, "batch slots features"],
) -> Float[Tensor, "batch slots tokens"]:
    """log Normal(v_n; loc_k, diag var_k) for every slot and token, in nats."""
    constant = var.log().sum(-1, keepdim=True) + var.shape[-1] * LOG_2PI
    return -0.5 * (squared_distances(tokens, loc, var.reciprocal()) + constant)


def token_features(values: Float[Tensor, "batch tokens features"], full: bool) -> Float[Tensor, "batch terms tokens"]:
    """T(v_n) with tokens last: second moments (D of them, or D^2 if ``full``), first moments (D), 1."""
    by_token = values.transpose(1, 2)
    second = (by_token[:, :, None] * by_token[:, None]).flatten(1, 2) if full else by_token.square()
    return torch.cat([second, by_token, torch.ones_like(by_token[:, :1])], dim=1)


def pack(second: Tensor, first: Tensor, constant: Tensor) -> Float[Tensor, "*batch terms"]:
    """Natural parameters (..., D) or (..., D, D), (..., D), (...) in the order of :func:`token_features`."""
    second = second if second.ndim == first.ndim else second.flatten(-2)
    return torch.cat([second, first, constant[..., None]], dim=-1)


@dataclass(frozen=True)
class Moments:
    """Additive sufficient statistics of the tokens that each slot owns.

    Attributes:
        count: (..., K), N_k = sum_n w_n r_kn.
        mean: (..., K, D), xbar_k; 0 where the count is 0.
        scatter: (..., K, D), N_k S_k about xbar_k, per axis; or (..., K, D, D).
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    def scaled(self, factor: float | Tensor) -> "Moments":
        """As if every token counted ``factor`` times; a number, or (..., K)."""
        factor = torch.as_tensor(factor, dtype=self.count.dtype, device=self.count.device)
        axes = self.scatter.ndim - self.count.ndim
        return Moments(factor * self.count, self.mean, factor.reshape(factor.shape + (1,) * axes) * self.scatter)


def unpack(sums: Float[Tensor, "*batch terms"], num_features: int, full: bool = False) -> Moments:
    """Moments from the sums of w_n r_kn T(v_n), (..., K, terms)."""
    num_second = sums.shape[-1] - 1 - num_features
    second, first, count = sums.split([num_second, num_features, 1], dim=-1)
    mean = first / count.clamp(min=torch.finfo(count.dtype).tiny)
    if not full:
        return Moments(count[..., 0], mean, (second - first * mean).clamp(min=0.0))
    second = second.unflatten(-1, (num_features, num_features))
    # entry ij is off by a few eps sqrt(second_ii second_jj), so this much on the diagonal keeps the scatter definite
    allowance = 4.0 * num_features * torch.finfo(second.dtype).eps * second.diagonal(dim1=-2, dim2=-1)
    scatter = second - first[..., None] * mean[..., None, :] + allowance.diag_embed()
    return Moments(count[..., 0], mean, 0.5 * (scatter + scatter.mT))


@dataclass(frozen=True)
class NormalGamma:
    """p(mu, lambda) of components: Gamma(lambda_d; a, rate b_d) Normal(mu_d; m_d, 1 / (kappa lambda_d)) on each axis.

    With full covariances it is the Normal-Wishart with 2 a + D - 1 degrees of freedom and inverse scale 2 B, under
    which each axis's variance has the same marginal as in the diagonal model with b = diag B (in one dimension the two
    are one). Any leading shapes that broadcast, slots last.

    Attributes:
        loc: (..., D), m.
        strength: (...), kappa > 0, in tokens.
        shape: (...), a > 0.
        rate: (..., D), b > 0; or (..., D, D), B, positive definite.
        full: Whether covariances are full.
    """

    loc: Tensor
    strength: Tensor
    shape: Tensor
    rate: Tensor
    full: bool = False

    def shifted(self, origin: Tensor) -> "NormalGamma":
        """The same in coordinates whose origin was moved by ``origin`` (..., D)."""
        return replace(self, loc=self.loc + origin)

    def posterior(self, moments: Moments) -> "NormalGamma":
        """Given the moments of what each component owns.

        The rate is computed about the component's own mean, b + (N S + kappa N / (kappa + N) (xbar - m)^2) / 2, which
        equals the textbook difference of second moments and does not cancel.
        """
        count = moments.count
        strength = self.strength + count
        difference = moments.mean - self.loc
        weight = self.strength * count / strength
        if self.full:
            spread = difference[..., None] * difference[..., None, :]
            rate = self.rate + 0.5 * (moments.scatter + weight[..., None, None] * spread)
        else:
            rate = self.rate + 0.5 * (moments.scatter + weight[..., None] * difference.square())
        loc = self.loc + (count / strength)[..., None] * difference
        return NormalGamma(loc, strength, self.shape + 0.5 * count, rate, self.full)

    def _half_degrees(self) -> Tensor:
        return self.shape + 0.5 * (self.loc.shape[-1] - 1)

    def log_normaliser(self) -> Tensor:
        """log of the integral of the kernel, (...): so the tokens of a component have log evidence posterior - prior.

        Without the constant N D log(2 pi) / 2 of N tokens.
        """
        num_features = self.loc.shape[-1]
        normal = 0.5 * num_features * (LOG_2PI - self.strength.log())
        if self.full:
            half = self._half_degrees()
            # sum log diag of the factor, half of log |B|
            log_det = 2.0 * torch.linalg.cholesky(self.rate).diagonal(dim1=-2, dim2=-1).log().sum(-1)
            return normal + torch.mvlgamma(half, num_features) - half * log_det
        return normal + num_features * self.shape.lgamma() - self.shape * self.rate.log().sum(-1)

    def log_density(self, loc: Tensor, precision: Tensor) -> Tensor:
        """log p(mu, lambda), (...), at loc (..., D) and precision (..., D) or (..., D, D)."""
        difference = loc - self.loc
        if self.full:
            log_det = precision.logdet()
            trace = (self.rate * precision).sum((-2, -1))
            distance = ((precision @ difference[..., None])[..., 0] * difference).sum(-1)
        else:
            log_det = precision.log().sum(-1)
            trace = (self.rate * precision).sum(-1)
            distance = (precision * difference.square()).sum(-1)
        return (self.shape - 0.5) * log_det - trace - 0.5 * self.strength * distance - self.log_normaliser()

    def expected_precision(self) -> Tensor:
        """E[lambda], (..., D); or E[Lambda], (..., D, D)."""
        if self.full:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.rate))
            return self._half_degrees()[..., None, None] * inverse
        return self.shape[..., None] / self.rate

    def covariance(self) -> Tensor:
        """1 / E[lambda], (..., D); or the inverse of E[Lambda], (..., D, D)."""
        shape = self._half_degrees()[..., None, None] if self.full else self.shape[..., None]
        return self.rate / shape

    def expected_log_det(self) -> Tensor:
        """E[log |Lambda|], (...); the sum of E[log lambda_d] where covariances are diagonal."""
        num_features = self.loc.shape[-1]
        if not self.full:
            return num_features * self.shape.digamma() - self.rate.log().sum(-1)
        steps = torch.arange(num_features, dtype=self.rate.dtype, device=self.rate.device)
        log_det = 2.0 * torch.linalg.cholesky(self.rate).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (self._half_degrees()[..., None] - 0.5 * steps).digamma().sum(-1) - log_det

    def expected_natural(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[log Normal(v; mu, 1 / lambda)] as (second, first, constant) natural parameters of T(v)."""
        precision = self.expected_precision()
        constant = self.expected_log_det() - self.loc.shape[-1] * (LOG_2PI + self.strength.reciprocal())
        return natural_parameters(self.loc, precision, 0.5 * constant)


def natural_parameters(loc: Tensor, precision: Tensor, constant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """constant - (v - loc)' precision (v - loc) / 2 as (second, first, constant); precision per axis or a matrix."""
    full = precision.ndim > loc.ndim
    first = (precision @ loc[..., None])[..., 0] if full else precision * loc
    return -0.5 * precision, first, constant - 0.5 * (first * loc).sum(-1)


def dirichlet_log_normaliser(concentration: Float[Tensor, "*batch slots"]) -> Float[Tensor, "*batch"]:
    """log B(alpha) = sum_k log Gamma(alpha_k) - log Gamma(sum_k alpha_k)."""
    return concentration.lgamma().sum(-1) - concentration.sum(-1).lgamma()


def expected_log_weights(concentration: Float[Tensor, "*batch slots"]) -> Float[Tensor, "*batch slots"]:
    """E[log pi_k] under Dirichlet(concentration)."""
    return concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()

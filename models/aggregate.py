"""The aggregate mixture: all slots of a data set as one density over a slot (docs/aggregate.md, model.md section 4)."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import constraints

from psa.conjugate import LOG_2PI, natural_parameters, pack, token_features
from psa.errors import RunError
from psa.runs import load_tensors, save_tensors

KIND = "aggregate prior"
PROVENANCE = ("num_images", "dropped_components", "dropped_weight")
TENSORS = ("weights", "loc", "var", "covariance")
NEVER = -1e30  # log of a weight of 0
TERMS = 1 << 22  # numbers at once: of slots' features, of slots' scores, or of a draw's covariance factors
ROWS = 4096  # slots whose features stay in the cache while the components pass by


class AggregatePrior(dist.TorchDistribution):
    """q(s) = sum_g w_g Normal(s; mu_g, Sigma_g) over one slot s (PSA lemma 1, eq. 10: there the g are all (b, k)).

    Batch shape (), event shape (D,). Draws carry no gradient; the density does.

    Args:
        weights: (G,), non-negative, sums to 1.
        loc: (G, D), means.
        var: (G, D), positive, where covariances are diagonal; or
        covariance: (G, D, D), positive definite.
        num_images: M, from which the mixture was built; 0 where it was not built from images.
        dropped_components: How many components were left out below a threshold.
        dropped_weight: Their share of the weight, in [0, 1); the weights of the others were divided by the rest.

    Raises:
        ValueError: If shapes do not fit or a value is outside its support.
    """

    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        weights: Float[Tensor, " components"],
        loc: Float[Tensor, "components features"],
        var: Float[Tensor, "components features"] | None = None,
        covariance: Float[Tensor, "components features features"] | None = None,
        *,
        num_images: int = 0,
        dropped_components: int = 0,
        dropped_weight: float = 0.0,
    ) -> None:
        self.weights, self.loc, self.var, self.covariance = weights, loc, var, covariance
        self.num_images, self.dropped_components, self.dropped_weight = num_images, dropped_components, dropped_weight
        self._require_support()
        self.factor = None if covariance is None else _factor(covariance)
        super().__init__(torch.Size(), loc.shape[1:], validate_args=False)

    def _require_support(self) -> None:
        if (self.var is None) == (self.covariance is None):
            raise ValueError("var or covariance must be given, and not both")
        shape = tuple(self.loc.shape)
        if len(shape) != 2 or 0 in shape or not bool(torch.isfinite(self.loc).all()):
            raise ValueError(f"loc must be finite of shape (G, D), got shape {shape}")
        for name, found, expected in (
            ("weights", self.weights, shape[:1]),
            ("var", self.var, shape),
            ("covariance", self.covariance, (*shape, shape[1])),
        ):
            if found is not None and tuple(found.shape) != expected:
                raise ValueError(f"{name} must have shape {expected} as loc has {shape}, got {tuple(found.shape)}")
        total = float(self.weights.sum())
        if not (bool((self.weights >= 0).all()) and abs(total - 1.0) < 1e-4):
            raise ValueError(f"weights must be non-negative and sum to 1, got a sum of {total:.6g}")
        if self.var is not None and not bool(((self.var > 0) & torch.isfinite(self.var)).all()):
            raise ValueError(f"var must be positive, got a least entry of {float(self.var.min()):.3g}")

    @property
    def num_components(self) -> int:
        """G."""
        return len(self.weights)

    @property
    def mean(self) -> Float[Tensor, " features"]:
        """sum_g w_g mu_g."""
        return self.weights @ self.loc

    @property
    def variance(self) -> Float[Tensor, " features"]:
        """The variance of each axis: within components and between their means."""
        within = self.covariance.diagonal(dim1=-2, dim2=-1) if self.covariance is not None else self._var()
        return self.weights @ (within + (self.loc - self.mean).square())

    @property
    def covariance_matrix(self) -> Float[Tensor, "features features"]:
        """sum_g w_g (Sigma_g + (mu_g - mean)(mu_g - mean)')."""
        away = self.loc - self.mean
        between = (self.weights[:, None] * away).mT @ away
        if self.covariance is None:
            return between + (self.weights @ self._var()).diag()
        return between + torch.einsum("g,gde->de", self.weights, self.covariance)

    def _var(self) -> Tensor:
        assert self.var is not None
        return self.var

    def log_prob(self, value: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """log q(s), (...), in nats.

        Scores of all components are matrix products about the mixture's mean, a bounded number at once: nothing of size
        slots x components x features exists, nor all of slots x components where no gradient needs it.

        Raises:
            ValueError: If the slots have another number of features.
        """
        num_features = self.loc.shape[1]
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must have {num_features} features, got shape {tuple(value.shape)}")
        origin = self.mean
        terms = 1 + num_features + num_features ** (1 if self.factor is None else 2)
        rows = min(ROWS, max(1, TERMS // terms))
        parts = [self._log_density(part - origin, origin) for part in value.reshape(-1, num_features).split(rows)]
        return torch.cat(parts).reshape(value.shape[:-1])

    def _log_density(self, centred: Float[Tensor, "rows features"], origin: Tensor) -> Float[Tensor, " rows"]:
        features = token_features(centred[None], full=self.factor is not None)[0]
        size = max(1, TERMS // max(len(centred), len(features)))
        parts = ((natural.to(features) @ features).logsumexp(0) for natural in self._naturals(size, origin))
        return functools.reduce(torch.logaddexp, parts)

    def _naturals(self, size: int, origin: Tensor) -> Iterator[Float[Tensor, "some terms"]]:
        """log w_g + log Normal(s; mu_g, Sigma_g) as parameters of the features of s - origin, ``size`` at a time."""
        for first in range(0, self.num_components, size):
            part = slice(first, first + size)
            if self.factor is None:
                precision, log_det = self._var()[part].reciprocal(), self._var()[part].log().sum(-1)
            else:
                precision = torch.cholesky_inverse(self.factor[part])
                log_det = 2.0 * self.factor[part].diagonal(dim1=-2, dim2=-1).log().sum(-1)
            constant = self._log_weights(part) - 0.5 * (log_det + self.loc.shape[1] * LOG_2PI)
            yield pack(*natural_parameters(self.loc[part] - origin, precision, constant))

    def _log_weights(self, part: slice) -> Tensor:
        """Of a weight of 0 a number that adds nothing and has a gradient."""
        weights = self.weights[part]
        return weights.clamp(min=torch.finfo(weights.dtype).tiny).log().masked_fill(weights == 0, NEVER)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Independent slots (*sample_shape, D), from the global generator."""
        return self.sample_components(tuple(sample_shape))[0]

    def sample_components(
        self,
        shape: torch.Size | list[int] | tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "*batch features"], Int[Tensor, "*batch"]]:
        """Draws of (s, g): the slots, and the component each comes from.

        Args:
            shape: Of the draws.
            generator: Source of random numbers, on the mixture's device; the global one where None.
            temperature: Factor of the covariances, >= 0: 0 gives components' means, 1 is the distribution itself.

        Returns:
            Slots (*shape, D) and components (*shape) int64.

        Raises:
            ValueError: If the temperature is negative.
        """
        if not 0.0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be a number >= 0, got {temperature}")
        shape = torch.Size(shape)
        with torch.no_grad():
            # no multinomial, which knows at most 2^24 categories
            cumulative = self.weights.to(torch.float64).cumsum(0)
            place = torch.rand(shape.numel(), generator=generator, dtype=torch.float64, device=self.loc.device)
            component = torch.searchsorted(cumulative, place * cumulative[-1], right=True)
            component = component.clamp(max=self.num_components - 1)
            noise = torch.randn(
                len(component), self.loc.shape[1], generator=generator, dtype=self.loc.dtype, device=self.loc.device
            )
            slots = self.loc[component] + temperature**0.5 * self._scaled(noise, component)
        return slots.reshape(*shape, -1), component.reshape(shape)

    def _scaled(self, noise: Tensor, component: Tensor) -> Tensor:
        """Standard normal rows with each component's covariance."""
        if self.factor is None:
            return self._var()[component].sqrt() * noise
        rows = max(1, TERMS // self.factor[0].numel())
        pairs = zip(noise.split(rows), component.split(rows), strict=True)
        return torch.cat([(self.factor[own] @ part[..., None])[..., 0] for part, own in pairs])

    def to(self, target: Tensor | torch.device | torch.dtype | str) -> "AggregatePrior":
        """The same on another device, in another dtype, or in both as a tensor has them."""
        moved: dict[str, Any] = {name: tensor.to(target) for name, tensor in self.tensors().items()}
        return AggregatePrior(**moved, **self._provenance())

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`save` writes, by name."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def notes(self) -> dict[str, Any]:
        """What the file says of itself: its kind, and where the mixture comes from."""
        return {"kind": KIND, **self._provenance()}

    def _provenance(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PROVENANCE}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        save_tensors(Path(path), self.tensors(), self.notes())

    @classmethod
    def load(cls, path: str | Path) -> "AggregatePrior":
        """What :meth:`save` wrote, on the CPU.

        Raises:
            RunError: If the file is missing, cut short, or holds something else.
        """
        tensors, notes = load_tensors(Path(path))
        if not isinstance(notes, dict) or notes.pop("kind", None) != KIND:
            raise RunError(f"{path}: expected an aggregate prior, got a file of tensors of another kind")
        own: dict[str, Any] = {name: tensors[name] for name in TENSORS if name in tensors}
        own |= {name: notes[name] for name in PROVENANCE if name in notes}
        try:
            return cls(**own)
        except (TypeError, ValueError) as error:
            raise RunError(f"{path}: expected an aggregate prior, got one that is none ({error})") from None


def _factor(covariance: Tensor) -> Tensor:
    """Lower Cholesky factors.

    Raises:
        ValueError: If a matrix is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()) or not torch.allclose(covariance, covariance.mT):
        raise ValueError(f"covariance must be positive definite, component {int(info.argmax())} is not")
    return factor

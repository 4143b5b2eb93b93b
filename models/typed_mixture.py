"""The local model with slots of several types: each slot's prior is one of G Normal-Gammas (docs/typed_slots.md).

The types are the aggregate of a data set's slots (model.md section 4) as the prior of the local model of section 1.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.conjugate import NormalGamma
from psa.errors import RunError
from psa.models.local_mixture import draw_components, observe_tokens
from psa.runs import load_tensors, save_tensors

KIND = "slot types"
SUM_TOLERANCE = 1e-5  # of the weights, which may come from float32


@dataclass(frozen=True)
class TypePrior:
    """G types of slots: t ~ Categorical(weights), (mu, lambda) | t = g ~ Normal-Gamma of type g.

    lambda_d | t = g ~ Gamma(precision_shape_g, rate precision_rate_gd); mu_d | lambda, t = g ~ Normal(loc_gd,
    1 / (loc_strength_g lambda_d)). Covariances are diagonal.

    Attributes:
        weights: (G,), at least 0, sums to 1.
        loc: (G, D), m_g, in the tokens' units.
        loc_strength: (G,), kappa_g > 0, in tokens.
        precision_shape: (G,), a_g > 0.
        precision_rate: (G, D), b_g > 0, in squared token units.

    Raises:
        ValueError: If shapes do not fit, a value is outside its support, or a rate is a matrix (full covariances).
    """

    weights: Float[Tensor, " types"]
    loc: Float[Tensor, "types features"]
    loc_strength: Float[Tensor, " types"]
    precision_shape: Float[Tensor, " types"]
    precision_rate: Float[Tensor, "types features"]

    def __post_init__(self) -> None:
        if self.precision_rate.ndim == 3:
            raise ValueError("types have diagonal covariances alone: precision_rate must be (G, D), got matrices")
        if self.loc.ndim != 2 or 0 in self.loc.shape:
            raise ValueError(f"loc must be (G, D) with G and D of at least 1, got {tuple(self.loc.shape)}")
        each, all_axes = tuple(self.loc.shape[:1]), tuple(self.loc.shape)
        for field in fields(self):
            value = getattr(self, field.name)
            shape = all_axes if field.name in ("loc", "precision_rate") else each
            if tuple(value.shape) != shape:
                raise ValueError(f"{field.name} must have shape {shape}, got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{field.name} must be finite")
        for name in ("loc_strength", "precision_shape", "precision_rate"):
            if not bool((getattr(self, name) > 0).all()):
                raise ValueError(f"{name} must be positive, got {float(getattr(self, name).min())}")
        total = float(self.weights.sum())
        if not bool((self.weights >= 0).all()) or abs(total - 1.0) > SUM_TOLERANCE:
            raise ValueError(f"weights must be at least 0 and sum to 1, got a sum of {total}")

    @property
    def num_types(self) -> int:
        """G."""
        return len(self.weights)

    def to(self, like: Tensor) -> "TypePrior":
        """The same on the device and in the dtype of ``like``."""
        return replace(self, **{field.name: getattr(self, field.name).to(like) for field in fields(self)})

    def components(self, like: Float[Tensor, "*batch features"]) -> NormalGamma:
        """The types' Normal-Gammas, (G,), on the device and in the dtype of tokens.

        Raises:
            ValueError: If loc has another number of axes than the tokens.
        """
        if self.loc.shape[1] != like.shape[-1]:
            raise ValueError(f"loc has {self.loc.shape[1]} axes, the tokens have {like.shape[-1]}")
        own = self.to(like)
        return NormalGamma(own.loc, own.loc_strength, own.precision_shape, own.precision_rate)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        save_tensors(Path(path), {field.name: getattr(self, field.name) for field in fields(self)}, {"kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> "TypePrior":
        """What :meth:`save` wrote, on the CPU.

        Raises:
            RunError: If the file is missing, cut short, or holds something else.
        """
        tensors, notes = load_tensors(Path(path))
        if not isinstance(notes, dict) or notes.get("kind") != KIND:
            raise RunError(f"{path}: expected {KIND}, got a file of tensors of another kind")
        try:
            return cls(**tensors)
        except (TypeError, ValueError) as error:
            raise RunError(f"{path}: expected {KIND}, got a file that holds none ({error})") from None


def typed_mixture(
    tokens: Float[Tensor, "batch tokens features"],
    types: TypePrior,
    num_slots: int,
    concentration: float,
    mask: Bool[Tensor, "batch tokens"] | Float[Tensor, "batch tokens"] | None = None,
) -> None:
    """The Pyro program of model.md section 4; sites weights, type, precision, loc, assignment, values.

    As :func:`psa.models.local_mixture.local_mixture` with a type for every slot; types and assignments can be
    enumerated in parallel. Plates images (dim -2), slots and tokens (dim -1).

    Args:
        tokens: (B, N, D), observed.
        types: The types of slots; their axes must fit D.
        num_slots: K >= 1.
        concentration: alpha0 > 0 of the weights' Dirichlet.
        mask: (B, N), False where a token is padding; or non-negative weights, which multiply a token's whole factor.
    """
    every = types.components(tokens)
    with pyro.plate("images", len(tokens), dim=-2):
        weights = pyro.sample("weights", dist.Dirichlet(tokens.new_full((num_slots,), concentration)))
        with pyro.plate("slots", num_slots, dim=-1):
            own = pyro.sample("type", dist.Categorical(types.weights.to(tokens)))
            components = NormalGamma(every.loc[own], every.strength[own], every.shape[own], every.rate[own])
            precision, loc = draw_components(components)
        observe_tokens(tokens, weights, precision, loc, mask)

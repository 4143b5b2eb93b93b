"""The family of slot methods as one table of parts, and :func:`build` (model.md section 2, docs/em_family.md)."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from psa.inference.gradients import GRADIENTS
from psa.inference.initialisers import INITIALISERS
from psa.inference.readouts import READOUTS
from psa.inference.slot_inference import SlotInference, positive_int
from psa.inference.updates import UPDATES
from psa.models.local_mixture import COVARIANCES, LocalMixturePrior
from psa.registry import Registry

AGREEMENTS = ("dot", "gaussian", "variational")
PROJECTIONS = ("none", "q", "qkv")
_FULL = (("gaussian", "moments", True), ("variational", "conjugate", True))


@dataclass(frozen=True)
class VariantSpec:
    """One member: a row of the table. Every column can be overridden in :func:`build`.

    Attributes:
        name: The member's name.
        initialiser: A key of ``INITIALISERS``.
        agreement: The E-step: dot, gaussian, variational.
        update: The M-step, a key of ``UPDATES``; with moments-uniform weights stay where they start.
        neural: Whether a GRU and a residual MLP follow the update of the mean.
        gradient: unrolled, implicit, straight-through.
        readout: A key of ``READOUTS``.
        normalise: LayerNorm on tokens and, before W_q, on slots.
        projections: none, q (W_q only) or qkv.
        source: Where it comes from.
        token_start: Variances start at the tokens' variance, not at 1.
        bias: Whether W have biases.
        epsilon: Added to A before it is normalised over tokens.
        power: Tempering beta of the E-step; 1 is the exact posterior.
        variance_floor: Least variance, in squared units of the values; at 0 a slot on a single token is not finite.
        hidden_dim: Width of the neural update's and the read-out's MLP.
        covariance: diagonal or full, of the slots; full needs moments or conjugate updates on the tokens themselves.
        prior: Prior of conjugate updates.
    """

    name: str
    initialiser: str
    agreement: str
    update: str
    neural: bool
    gradient: str
    readout: str
    normalise: bool
    projections: str
    source: str
    token_start: bool = False
    bias: bool = False
    epsilon: float = 0.0
    power: float = 1.0
    variance_floor: float = 1e-4
    hidden_dim: int = 128
    covariance: str = "diagonal"
    prior: LocalMixturePrior = field(default_factory=LocalMixturePrior)

    def __post_init__(self) -> None:
        INITIALISERS.find(self.initialiser)
        UPDATES.find(self.update)
        READOUTS.find(self.readout)
        for column, allowed in (
            ("agreement", AGREEMENTS),
            ("gradient", GRADIENTS),
            ("projections", PROJECTIONS),
            ("covariance", COVARIANCES),
        ):
            value = getattr(self, column)
            if value not in allowed:
                raise ValueError(f"{column} must be one of {', '.join(allowed)}, got {value!r}")
        for column in ("normalise", "neural", "bias", "token_start"):
            if not isinstance(getattr(self, column), bool):
                raise ValueError(f"{column} must be true or false, got {getattr(self, column)!r}")
        for column, least in (("epsilon", 0.0), ("variance_floor", 0.0), ("power", None)):
            value = getattr(self, column)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (value <= 0 if least is None else value < least):
                bound = "above 0" if least is None else f"at least {least}"
                raise ValueError(f"{column} must be a finite number {bound}, got {value!r}")
        positive_int("hidden_dim", self.hidden_dim)
        if not isinstance(self.prior, LocalMixturePrior):
            raise ValueError(f"prior must be a LocalMixturePrior, got {self.prior!r}")
        if self.agreement == "variational" and self.update != "conjugate":
            raise ValueError(f"variational agreement needs the conjugate update, got update {self.update!r}")
        if self.covariance == "full" and (self.agreement, self.update, self.plain) not in _FULL:
            raise ValueError(
                "covariance full needs gaussian agreement with moments, or variational with conjugate, without "
                f"projections, norms or a neural part; got {self.agreement}, {self.update}, "
                f"projections {self.projections!r}, normalise {self.normalise}, neural {self.neural}"
            )

    @property
    def plain(self) -> bool:
        """Whether its steps see the tokens themselves, so that equations of the mixture hold as they stand."""
        return self.projections == "none" and not self.normalise and not self.neural


def _row(name: str, source: str, parts: str, **settings: Any) -> VariantSpec:
    """A row from its columns in order: initialiser, agreement, update, gradient, read-out, projections."""
    initialiser, agreement, update, gradient, readout, projections = parts.split()
    neural = update.endswith("+neural")
    columns = (initialiser, agreement, update.removesuffix("+neural"), neural, gradient, readout)
    normalise = settings.pop("normalise", False)
    return VariantSpec(name, *columns, normalise, projections, source, **settings)


# As in Slot Attention: LayerNorm on tokens and slots, W with bias, epsilon in the normalisation over tokens.
_SA: dict[str, Any] = {"normalise": True, "bias": True, "epsilon": 1e-8}

# fmt: off
_ROWS = (
    #    name        source                   initialiser      agreement   update         gradient         read-out    W
    _row("sa",       "Locatello et al. 2020", "learned-gaussian dot         mean+neural    unrolled         mean        qkv", **_SA),
    _row("i-sa",     "Chang et al. 2022",     "learned-gaussian dot         mean+neural    implicit         mean        qkv", **_SA),
    _row("bo-sa",    "BO-QSA, table 7",       "learned-gaussian dot         mean+neural    straight-through mean        qkv", **_SA),
    _row("qsa",      "BO-QSA, table 7",       "queries          dot         mean+neural    unrolled         mean        qkv", **_SA),
    _row("i-qsa",    "BO-QSA, table 7",       "queries          dot         mean+neural    implicit         mean        qkv", **_SA),
    _row("bo-qsa",   "BO-QSA, algorithm 1",   "noisy-queries    dot         mean+neural    straight-through mean        qkv", **_SA),
    _row("smm",      "Kirilenko et al. 2023", "learned-gaussian gaussian    moments+neural unrolled         moments-mlp qkv", normalise=True),
    _row("psa",      "PSA, algorithm 2",      "standard-normal  gaussian    moments        unrolled         normal      q"),
    _row("psa-proj", "PSA, algorithms 1, 3",  "standard-normal  gaussian    moments        unrolled         normal      qkv"),
    _row("em",       "textbook",              "farthest         gaussian    moments        unrolled         normal      none", token_start=True),
    _row("vb",       "docs/local_mixture.md",   "farthest         variational conjugate      unrolled         normal      none", token_start=True),
)
# fmt: on

VARIANTS: Registry[VariantSpec] = Registry("variant", {row.name: row for row in _ROWS})


def register_variant(name: str, row: VariantSpec, source: str = "") -> VariantSpec:
    """Add a member to the family: from now on ``slots.variant`` and :func:`build` know its name.

    Args:
        name: Free, of letters, digits and ``. _ + -``.
        row: Its columns, as :func:`specify` gives them; name and source are replaced.
        source: Where it comes from.

    Returns:
        The row under its name.

    Raises:
        ValueError: If the name is taken.
    """
    VARIANTS.register(name, replace(row, name=name, source=source))
    return VARIANTS[name]


def specify(name: str, /, **overrides: Any) -> VariantSpec:
    """The row of a member with some columns overridden.

    Raises:
        ValueError: If there is no such member or column, or a value is outside its support.
    """
    row = VARIANTS.find(name)
    columns = [f.name for f in fields(VariantSpec) if f.name not in ("name", "source")]
    for column in overrides:
        if column not in columns:
            raise ValueError(f"no column {column!r} to override; there are {', '.join(columns)}")
    return replace(row, **overrides)


def build(
    name: str, *, num_slots: int, input_dim: int, slot_dim: int, num_iterations: int = 3, **overrides: Any
) -> SlotInference:
    """A member of the family as a module: tokens (B, N, input_dim) -> SlotPosterior.

    Args:
        name: A key of :data:`VARIANTS`.
        num_slots: K >= 1.
        input_dim: Features of a token.
        slot_dim: D, features of a slot; equals input_dim where there is no W_v (em, vb, psa).
        num_iterations: E/M steps, the last one included.
        **overrides: Any column of the table; also power, variance_floor, epsilon, bias, normalise, hidden_dim, prior.

    Raises:
        ValueError: If a name or value is outside its support, or the dimensions do not fit.
    """
    spec = specify(name, **overrides)
    return SlotInference(
        spec, num_slots=num_slots, input_dim=input_dim, slot_dim=slot_dim, num_iterations=num_iterations
    )

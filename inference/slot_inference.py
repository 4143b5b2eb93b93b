"""One module for the whole family: it puts a row of the table together and runs its E/M steps on a batch of tokens."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.inference.conjugate_steps import (
    entropy,
    evidence_lower_bound,
    start_from_mixture,
    variational_natural,
)
from psa.inference.coordinates import CentredTokens, Projections
from psa.inference.e_steps import ESteps
from psa.inference.em import (
    MixtureState,
    dot_natural,
    mixture_natural,
    variance_about,
)
from psa.inference.gradients import iterate
from psa.inference.initialisers import INITIALISERS, NoisyQueries, TokenView
from psa.inference.keyed_noise import RandomSource
from psa.inference.neural import NeuralUpdate
from psa.inference.readouts import READOUTS, NormalReadout
from psa.inference.slot_moments import SlotMoments
from psa.inference.updates import MOMENTS, UPDATES, UpdateSettings
from psa.records import SlotPosterior

if TYPE_CHECKING:
    from psa.inference.variants import VariantSpec


@dataclass(frozen=True)
class Step:
    """One E and M step's result: the state after it and the moments it came from."""

    state: MixtureState
    moments: SlotMoments


def positive_int(name: str, value: int) -> int:
    """The value, if it is an integer of at least 1; ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


class SlotInference(nn.Module):
    """A member of the E/M family; :func:`psa.inference.variants.build` makes it.

    Parameters live in ``projections``, ``neural``, ``initialiser`` and ``readout``; each is absent where the table's
    row has none.
    """

    def __init__(
        self, spec: "VariantSpec", *, num_slots: int, input_dim: int, slot_dim: int, num_iterations: int = 3
    ) -> None:
        super().__init__()
        self.spec = spec
        self.num_slots = positive_int("num_slots", num_slots)
        self.input_dim = positive_int("input_dim", input_dim)
        self.slot_dim = positive_int("slot_dim", slot_dim)
        self.num_iterations = positive_int("num_iterations", num_iterations)
        exact = spec.agreement != "dot"
        self.projections = Projections(spec.projections, spec.normalise, spec.bias, input_dim, slot_dim, exact)
        self.initialiser = INITIALISERS[spec.initialiser](num_slots, slot_dim)
        self.neural = NeuralUpdate(slot_dim, spec.hidden_dim) if spec.neural else None
        self.readout = READOUTS[spec.readout](slot_dim, spec.hidden_dim)
        self._update = UPDATES[spec.update]
        self._settings = UpdateSettings(spec.variance_floor, spec.covariance, spec.prior)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens inputs"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        *,
        initial: Tensor | SlotPosterior | MixtureState | None = None,
        num_slots: int | None = None,
        num_iterations: int | None = None,
        generator: RandomSource = None,
    ) -> SlotPosterior:
        """Infer the slots of a batch of images.

        Args:
            tokens: (B, N, input_dim), any units; float32, float64, or lower precision, which is computed in float32.
            mask: (B, N), False where a token is padding; padding may hold anything, NaN included.
            initial: Where to start: means (B, K, D) or (K, D), or a posterior or state with variances and weights.
            num_slots: K of this call; by default the module's, or that of ``initial``.
            num_iterations: Steps of this call, the last one included.
            generator: Source of the initialiser's random draws: a generator, or noise keyed by image.

        Returns:
            The posterior; weights and responsibilities sum to 1 over slots.

        Raises:
            ValueError: If shapes do not fit, an image has no valid token, or more slots are asked for than learned.
        """
        self._check(tokens, mask)
        steps = self.num_iterations if num_iterations is None else positive_int("num_iterations", num_iterations)
        centred = self.projections.tokens(tokens, mask)
        with torch.autocast(tokens.device.type, enabled=False):
            start = self._start(centred, initial, num_slots, generator)
            if self.spec.update == "conjugate" and start.concentration is None:
                prior = self._settings.components(centred)
                start = start_from_mixture(start, self.spec.prior.concentration, prior, centred.num_tokens)

            recorded = steps if self.spec.gradient == "unrolled" else 1
            e_steps = ESteps(centred, start.loc.shape[1], recorded, self.spec.covariance == "full", self.spec.epsilon)

            def step(state: MixtureState, last: bool = False) -> Step:
                return self._step(e_steps, self._anchored(centred, state), last)

            found = iterate(step, start, steps, self.spec.gradient, partial(step, last=True))
            return self._posterior(centred, start, found)

    def slots(
        self, posterior: SlotPosterior, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch slots outputs"]:
        """The read-out: the vectors (B, K, D') that a decoder gets.

        Args:
            posterior: What this module inferred.
            sample: Draw from Normal(mean, var) where the read-out is ``normal``; others are points.
            generator: Source of the draw.
        """
        if sample and isinstance(self.readout, NormalReadout):
            return self.readout.sample(posterior, generator)
        return self.readout(posterior)

    def anneal(self, progress: float) -> None:
        """Tell the member which share of training is done, in [0, 1]; ends the noise on queries."""
        if isinstance(self.initialiser, NoisyQueries):
            self.initialiser.anneal(progress)

    def _check(self, tokens: Tensor, mask: Tensor | None) -> None:
        if tokens.ndim != 3 or tokens.shape[-1] != self.input_dim:
            raise ValueError(f"tokens must be (batch, tokens, {self.input_dim}), got {tuple(tokens.shape)}")
        if tokens.shape[1] == 0:
            raise ValueError("tokens must hold at least one token an image, got none")
        if mask is None:
            return
        if mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
            raise ValueError(f"mask must be bool {tuple(tokens.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
        if not bool(mask.any(1).all()):
            image = int((~mask.any(1)).nonzero()[0, 0])
            raise ValueError(f"mask must keep at least one token an image, image {image} has none")

    def _start(
        self,
        centred: CentredTokens,
        initial: Tensor | SlotPosterior | MixtureState | None,
        num_slots: int | None,
        generator: RandomSource,
    ) -> MixtureState:
        batch, _, slot_dim = centred.values.shape
        given = None if initial is None else (initial if isinstance(initial, Tensor) else initial.loc)
        if given is not None and given.ndim not in (2, 3):
            raise ValueError(f"initial must be ({batch}, K, {slot_dim}) or (K, {slot_dim}), got {tuple(given.shape)}")
        wanted = self.num_slots if given is None else given.shape[-2]
        if num_slots is not None:
            wanted = positive_int("num_slots", num_slots)
        if given is None:
            view = TokenView(centred.values + centred.value_origin, centred.token_weights)
            loc = self.initialiser(view, wanted, generator)
        elif (
            given.shape[-2:] == (wanted, slot_dim) and given.ndim in (2, 3) and (given.ndim == 2 or len(given) == batch)
        ):
            loc = given.expand(batch, -1, -1)
        else:
            raise ValueError(f"initial must be ({batch}, {wanted}, {slot_dim}), got {tuple(given.shape)}")
        loc = loc.to(centred.values.dtype) - centred.value_origin
        if isinstance(initial, SlotPosterior):
            initial = state_of(initial)
        if isinstance(initial, MixtureState):
            return self._continued(replace(initial.map(lambda t: t.to(loc)), loc=loc))
        var = centred.variance().clamp(min=self.spec.variance_floor) if self.spec.token_start else torch.ones_like(loc)
        log_weights = loc.new_full((batch, wanted), 1.0 / wanted).log()
        return self._continued(MixtureState(loc, var.expand_as(loc), log_weights))

    def _continued(self, state: MixtureState) -> MixtureState:
        """The state with what this member's steps carry and no more."""
        full = self.spec.covariance == "full"
        if self.spec.update == "conjugate" and state.precision_rate is not None:
            if (state.precision_rate.ndim == 4) == full:
                return state
            raise ValueError(f"initial must have {self.spec.covariance} covariances, as this member has")
        covariance = state.covariance
        if full and covariance is None:
            covariance = state.var.diag_embed()
        return MixtureState(state.loc, state.var, state.log_weights, covariance if full else None)

    def _anchored(self, centred: CentredTokens, state: MixtureState) -> MixtureState:
        """Under implicit gradients the means are constants in uncentred coordinates, whatever moves the origin."""
        if self.spec.gradient != "implicit":
            return state
        return replace(state, loc=state.loc - (centred.value_origin - centred.value_origin.detach()))

    def _step(self, e_steps: ESteps, state: MixtureState, last: bool) -> Step:
        centred, spec = e_steps.centred, self.spec
        moments = e_steps.moments(self._natural(centred, state), last, second=last or spec.update != "mean")
        new = self._update(moments, state, centred, self._settings)
        if self.neural is not None:
            origin = centred.value_origin
            loc = self.neural(new.loc + origin, state.loc + origin) - origin
            new = replace(new, loc=loc)
            if spec.update in MOMENTS:
                new = replace(new, var=variance_about(moments, loc).clamp(min=spec.variance_floor))
        return Step(new, moments)

    def _natural(self, centred: CentredTokens, state: MixtureState) -> Tensor:
        """The scores' parameters."""
        if self.spec.agreement == "dot":
            queries = self.projections.queries(state.loc + centred.value_origin)
            return dot_natural(queries, centred.key_origin, self.spec.power)
        queried = replace(state, loc=self.projections.centred_queries(state.loc, centred))
        natural = variational_natural if self.spec.agreement == "variational" else mixture_natural
        return natural(queried, self.spec.power)

    def _posterior(self, centred: CentredTokens, start: MixtureState, last: Step) -> SlotPosterior:
        state, moments, floor = last.state, last.moments, self.spec.variance_floor
        assert moments.responsibilities is not None
        weights = moments.log_mass.exp() / centred.num_tokens[:, None]
        var, elbo = state.var.clamp(min=floor), None
        if self.spec.update == "mean":
            var = variance_about(moments, moments.mean) + floor
        if self.spec.update == "conjugate":
            weights = state.log_weights.exp()
        if self.spec.agreement == "variational" and self.spec.plain:
            elbo = self._elbo(centred, last)
        return SlotPosterior(
            weights=weights,
            loc=state.loc + centred.value_origin,
            var=var,
            responsibilities=moments.responsibilities,
            initial_loc=start.loc + centred.value_origin,
            elbo=elbo,
            covariance=state.covariance,
            concentration=state.concentration,
            loc_strength=state.loc_strength,
            precision_shape=state.precision_shape,
            precision_rate=state.precision_rate,
        )

    def _elbo(self, centred: CentredTokens, last: Step) -> Tensor:
        """The bound of the posterior found, on the tokens themselves: untempered, whatever power it was found with."""
        assert last.moments.responsibilities is not None
        return evidence_lower_bound(
            entropy(last.moments.responsibilities, centred.token_weights),
            last.state,
            self.spec.prior.concentration,
            self._settings.components(centred),
            centred.num_tokens,
        )


def state_of(posterior: SlotPosterior) -> MixtureState:
    """A posterior as a state to go on from."""
    return MixtureState(
        posterior.loc,
        posterior.var,
        posterior.weights.log(),
        posterior.covariance,
        posterior.concentration,
        posterior.loc_strength,
        posterior.precision_shape,
        posterior.precision_rate,
    )

"""The M-steps by name: the update column of model.md section 2."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from psa.conjugate import NormalGamma
from psa.inference.conjugate_steps import given_moments
from psa.inference.coordinates import CentredTokens
from psa.inference.em import MixtureState, mean_update, moments_update
from psa.inference.slot_moments import SlotMoments
from psa.models.local_mixture import LocalMixturePrior
from psa.registry import Registry

MOMENTS = ("moments", "moments-uniform")  # updates that give a slot the variance of what it owns


@dataclass(frozen=True)
class UpdateSettings:
    """The columns of a member's row that an update may use.

    Attributes:
        variance_floor: Least variance, in squared units of the values.
        covariance: ``diagonal`` or ``full``.
        prior: Of conjugate updates.
    """

    variance_floor: float
    covariance: str
    prior: LocalMixturePrior

    def components(self, tokens: CentredTokens) -> NormalGamma:
        """The components' prior, (B, 1, ...), about the tokens' mean."""
        return self.prior.components(tokens.values, self.covariance).shifted(-tokens.value_origin)


@runtime_checkable
class Update(Protocol):
    """An M-step: a function of its arguments alone."""

    def __call__(
        self, moments: SlotMoments, previous: MixtureState, tokens: CentredTokens, settings: UpdateSettings
    ) -> MixtureState:
        """The state after the step.

        Args:
            moments: What each slot owns, second moments included (but for ``mean``), about the tokens' mean.
            previous: The state before the step, about the tokens' mean.
            tokens: What the moments are of.
            settings: The row's.
        """
        ...


def _mean(
    moments: SlotMoments, previous: MixtureState, tokens: CentredTokens, settings: UpdateSettings
) -> MixtureState:
    return mean_update(moments, previous)


def _moments(
    moments: SlotMoments, previous: MixtureState, tokens: CentredTokens, settings: UpdateSettings
) -> MixtureState:
    return moments_update(moments, previous, settings.variance_floor, tokens.num_tokens)


def _moments_uniform(
    moments: SlotMoments, previous: MixtureState, tokens: CentredTokens, settings: UpdateSettings
) -> MixtureState:
    return replace(_moments(moments, previous, tokens, settings), log_weights=previous.log_weights)


def _conjugate(
    moments: SlotMoments, previous: MixtureState, tokens: CentredTokens, settings: UpdateSettings
) -> MixtureState:
    return given_moments(moments.statistics(), settings.prior.concentration, settings.components(tokens))


_OWN: Mapping[str, Update] = {
    "mean": _mean,
    "moments": _moments,
    "moments-uniform": _moments_uniform,
    "conjugate": _conjugate,
}
UPDATES: Registry[Update] = Registry("update", _OWN)

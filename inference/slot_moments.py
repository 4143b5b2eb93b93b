"""An E-step and the moments it gives to every slot, in one call: all that an update needs (model.md section 2)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.conjugate import Moments, pack, unpack
from psa.inference.attention import Attention, exp_or_zero
from psa.inference.coordinates import at_least_float32
from psa.inference.fused_moments import chosen, fused_moments
from psa.inference.moment_function import PLACEHOLDERS, Batch, MomentStep, SharedTokens, Tokens, Wanted

SQUARES_BYTES = 1 << 25  # of tokens at most, if their squares are to be kept for all steps


@dataclass(frozen=True)
class SlotMoments:
    """What each slot owns, with A = softmax of the scores over slots and Ahat_kn = w_n A_kn / sum_m w_m A_km.

    Every row of Ahat is normalised in log space about its own maximum, so that a slot of tiny mass still gets the
    exact moments of its tokens.

    Attributes:
        log_mass: (B, K), log sum_n w_n A_kn; minus infinity where the mass underflows.
        mean: (B, K, D), sum_n Ahat_kn v_n; 0 for an empty slot.
        second: (B, K, D), sum_n Ahat_kn v_n^2; or (B, K, D, D), of v_n v_n'; 0 if empty. None if not asked for.
        empty: (B, K, 1), the slots without mass.
        responsibilities: (B, K, N), A: sums to 1 over slots. None if not asked for.
    """

    log_mass: Float[Tensor, "batch slots"]
    mean: Float[Tensor, "batch slots features"]
    second: Float[Tensor, "batch slots *axes"] | None
    empty: Bool[Tensor, "batch slots 1"]
    responsibilities: Float[Tensor, "batch slots tokens"] | None = None

    def statistics(self) -> Moments:
        """Counts, means and scatter of what each slot owns, for conjugate updates."""
        assert self.second is not None
        one, num_features = torch.ones_like(self.log_mass), self.mean.shape[-1]
        shares = unpack(pack(self.second, self.mean, one), num_features, full=self.second.ndim == 4)
        return replace(shares, mean=self.mean).scaled(exp_or_zero(self.log_mass))

    def with_epsilon(self, epsilon: float, everything: "SlotMoments") -> "SlotMoments":
        """As if every slot owned epsilon of every token besides, as in Slot Attention; log_mass stays.

        Args:
            epsilon: At least 0, where 0 changes nothing.
            everything: Moments of all tokens, as of a single slot.
        """
        if epsilon == 0.0:
            return self
        own, added = self.log_mass.exp()[..., None], epsilon * everything.log_mass.exp()[..., None]
        share = own / (own + added)
        mean, second = everything.mean + share * (self.mean - everything.mean), None
        if self.second is not None and everything.second is not None:
            second = everything.second + share * (self.second - everything.second)
        return replace(self, mean=mean, second=second, empty=torch.zeros_like(self.empty))


@dataclass(frozen=True)
class OpenTokens:
    """Keys and values opened for a number of E-steps, which share what they make of them (:func:`open_tokens`)."""

    keys: Float[Tensor, "batch tokens features"]
    values: Float[Tensor, "batch tokens features"]
    token_weights: Float[Tensor, "batch tokens"] | None
    batch: Batch | None
    placeholders: Iterator[tuple[Tensor, ...]]

    def moments(
        self, natural: Float[Tensor, "batch slots terms"], *, second: bool = True, responsibilities: bool = False
    ) -> SlotMoments:
        """Moments of the values under the scores natural_k . (k_n^2, k_n, 1).

        Args:
            natural: (B, K, 2 D + 1); or (B, K, D + 1), parameters of (k_n, 1), where scores are linear.
            second: Whether second moments are wanted.
            responsibilities: Whether A is wanted.
        """
        if self.batch is None:
            return self._fused(natural, responsibilities)
        recorded = torch.is_grad_enabled()
        placeholders = next(self.placeholders) if recorded else ()
        wanted = Wanted(second, responsibilities, recorded)
        found = MomentStep.apply(wanted, self.batch, natural, self.keys, self.values, *placeholders)
        log_mass, mean, squares, attention = found
        empty = torch.isposinf(log_mass)
        return SlotMoments(torch.where(empty, -log_mass, log_mass)[..., 0], mean, squares, empty, attention)

    def _fused(self, natural: Tensor, responsibilities: bool) -> SlotMoments:
        missing = 2 * self.keys.shape[-1] + 1 - natural.shape[-1]
        full = nn.functional.pad(natural, (missing, 0)) if missing else natural
        found = fused_moments(self.keys, self.values, full, self.token_weights, keep_responsibilities=responsibilities)
        return SlotMoments(found.log_mass, found.mean, found.second, found.empty, found.responsibilities)


def open_tokens(
    keys: Float[Tensor, "batch tokens features"],
    values: Float[Tensor, "batch tokens features"],
    token_weights: Float[Tensor, "batch tokens"] | None,
    num_slots: int,
    num_steps: int = 1,
) -> OpenTokens:
    """Tokens for ``num_steps`` E-steps with gradients, of ``num_slots`` slots, and any number without.

    On a CUDA device by the kernels of :mod:`psa.inference.fused_moments`, where they can and PSA_FUSED lets them.

    Args:
        keys: (B, N, D), about their mean, as a square is expanded; lower precision is computed in float32.
        values: (B, N, D), about their mean.
        token_weights: (B, N), non-negative, 0 for padding; constants, through which no gradient goes.
        num_slots: K of the steps.
        num_steps: Of the steps that autograd records.
    """
    if chosen(keys, values, num_slots):
        return OpenTokens(keys, values, token_weights, None, iter(()))
    single = values is keys
    keys = at_least_float32(keys)
    values = keys if single else at_least_float32(values)
    placeholders: list[tuple[Tensor, ...]] = [()] * num_steps
    if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
        every = SharedTokens.apply(keys, values, num_slots, num_steps)
        placeholders = [every[at : at + PLACEHOLDERS] for at in range(0, len(every), PLACEHOLDERS)]
    log_weights = None if token_weights is None else token_weights.detach().log()[:, None]
    with_squares = keys.numel() * keys.element_size() <= SQUARES_BYTES
    first = keys.detach().mT
    first_keys = Tokens(first, first.square() if with_squares else None)
    first_values = first_keys
    if not single:
        first = values.detach().mT
        first_values = Tokens(first, first.square() if with_squares else None)
    batch = Batch(first_keys, first_values, log_weights)
    return OpenTokens(keys, values, token_weights, batch, iter(placeholders))


def slot_moments(
    keys: Float[Tensor, "batch tokens features"],
    values: Float[Tensor, "batch tokens features"],
    natural: Float[Tensor, "batch slots terms"],
    token_weights: Float[Tensor, "batch tokens"] | None = None,
    *,
    keep_responsibilities: bool = False,
) -> SlotMoments:
    """Responsibilities of every slot for every token, and the moments of the values under them: a single E-step.

    Arguments as in :func:`open_tokens` and :meth:`OpenTokens.moments`.
    """
    opened = open_tokens(keys, values, token_weights, natural.shape[1])
    return opened.moments(natural, responsibilities=keep_responsibilities)


def dense_moments(
    attention: Attention, values: Float[Tensor, "batch tokens features"], full: bool = False
) -> SlotMoments:
    """The moments of an attention that is at hand; with ``full`` those of v_n v_n', (B, K, D, D)."""
    if full:
        outer = (values[..., None] * values[..., None, :]).flatten(2)
        second = (attention.attention @ outer).unflatten(-1, (values.shape[-1], values.shape[-1]))
    else:
        second = attention.attention @ values.square()
    mean = attention.attention @ values
    return SlotMoments(attention.log_mass, mean, second, attention.empty, attention.responsibilities)

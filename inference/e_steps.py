"""The E-steps of one call of a member: tokens opened once, moments for every state."""

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import token_features
from psa.inference.attention import attend
from psa.inference.coordinates import CentredTokens
from psa.inference.slot_moments import SlotMoments, dense_moments, open_tokens


def moments_of_all(centred: CentredTokens) -> SlotMoments:
    """Moments of all tokens, as of one slot that owns them."""
    count = centred.num_tokens[:, None]
    weights = centred.token_weights
    share = (torch.ones_like(centred.values[..., 0]) if weights is None else weights) / count
    mean, second = share[:, None] @ centred.values, share[:, None] @ centred.values.square()
    return SlotMoments(count.log(), mean, second, torch.zeros_like(count[..., None], dtype=torch.bool))


class ESteps:
    """E-steps on the same tokens.

    Args:
        centred: The tokens.
        num_slots: K.
        num_recorded: Steps that autograd records, at most.
        full: Whether covariances are full.
        epsilon: Added to A before it is normalised over tokens.
    """

    def __init__(
        self, centred: CentredTokens, num_slots: int, num_recorded: int, full: bool = False, epsilon: float = 0.0
    ) -> None:
        self.centred, self.epsilon, self.full = centred, epsilon, full
        weights = centred.token_weights
        self._opened = None if full else open_tokens(centred.keys, centred.values, weights, num_slots, num_recorded)
        self._all = moments_of_all(centred) if epsilon > 0.0 else None

    def moments(
        self, natural: Float[Tensor, "batch slots terms"], last: bool = False, *, second: bool = True
    ) -> SlotMoments:
        """Moments under the scores of these parameters; in the last step with responsibilities.

        Args:
            natural: In the order of the tokens' features.
            last: Whether responsibilities are wanted.
            second: Whether second moments are wanted.
        """
        centred = self.centred
        if self._opened is None:
            scores = natural @ token_features(centred.keys, full=True)
            return dense_moments(attend(scores, centred.token_weights, self.epsilon), centred.values, full=True)
        moments = self._opened.moments(natural, second=second, responsibilities=last)
        return moments if self._all is None else moments.with_epsilon(self.epsilon, self._all)

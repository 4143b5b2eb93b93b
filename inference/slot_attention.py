"""A stand-in for an existing SlotAttention module: same constructor, same call (docs/moving.md)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from psa.errors import DataError
from psa.inference.published_weights import take_weights
from psa.inference.variants import build, specify
from psa.records import SlotPosterior


class SlotAttention(nn.Module):
    """``SlotAttention(num_slots, dim)(inputs) -> slots``, any member of the family inside.

    Args:
        num_slots: K.
        dim: Features of a token and of a slot.
        iters: Steps, the last one included.
        eps: Added to the attention before it is normalised over tokens; not used by
            members whose row has none (em, psa, smm, ...), unless ``epsilon`` is overridden.
        hidden_dim: Width of the MLP; at least ``dim``, as in the package.
        variant: A key of ``psa.inference.variants.VARIANTS``.
        **overrides: Any column of the variants' table.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        variant: str = "sa",
        **overrides: Any,
    ) -> None:
        super().__init__()
        columns: dict[str, Any] = {"hidden_dim": max(dim, hidden_dim)}
        if specify(variant).epsilon > 0.0:
            columns["epsilon"] = eps
        columns |= overrides
        self.inference = build(
            variant, num_slots=num_slots, input_dim=dim, slot_dim=dim, num_iterations=iters, **columns
        )

    def posterior(
        self, inputs: Float[Tensor, "batch tokens inputs"], num_slots: int | None = None, **options: Any
    ) -> SlotPosterior:
        """The whole posterior (weights, variances, responsibilities); options as in ``SlotInference.forward``."""
        return self.inference(inputs, num_slots=num_slots, **options)

    def forward(
        self, inputs: Float[Tensor, "batch tokens inputs"], num_slots: int | None = None
    ) -> Float[Tensor, "batch slots outputs"]:
        """Slots (B, K, D) of tokens (B, N, D)."""
        return self.inference.slots(self.posterior(inputs, num_slots))

    def load_package_weights(self, state_dict: Mapping[str, Tensor]) -> "SlotAttention":
        """Take the weights of a trained ``slot_attention.SlotAttention`` (its ``state_dict()``).

        Raises:
            DataError: If a name is not one of that module's, a parameter is missing, or sizes differ.
        """
        report = take_weights(self.inference, state_dict, "state_dict")
        if report.unused:
            raise DataError(f"state_dict: expected the parameters of a SlotAttention module, got {report.unused[0]!r}")
        return self

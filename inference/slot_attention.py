"""A stand-in for an existing SlotAttention module: same constructor, same call (docs/moving.md)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.inference.variants import build, specify
from psa.records import SlotPosterior

# Parameters of the `slot-attention` package, and ours.
_PACKAGE_NAMES = {
    "slots_mu": "initialiser.loc",
    "slots_logsigma": "initialiser.log_scale",
    "to_q": "projections.query",
    "to_k": "projections.key",
    "to_v": "projections.value",
    "gru": "neural.gru",
    "mlp": "neural.mlp",
    "norm_input": "projections.norm_tokens",
    "norm_slots": "projections.norm_slots",
    "norm_pre_ff": "neural.norm",
}


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
            ValueError: If a name is not one of that module's.
            RuntimeError: If sizes differ or parameters are missing, as in ``load_state_dict``.
        """
        renamed = {}
        for name, value in state_dict.items():
            head, _, rest = name.partition(".")
            if head not in _PACKAGE_NAMES:
                raise ValueError(
                    f"no parameter {name!r} in a SlotAttention module; there are {', '.join(_PACKAGE_NAMES)}"
                )
            renamed[".".join(filter(None, (_PACKAGE_NAMES[head], rest)))] = torch.as_tensor(value)
        self.inference.load_state_dict(renamed)
        return self

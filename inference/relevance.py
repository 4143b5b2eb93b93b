"""Automatic relevance at decoding: rules that find the slots of an image that need not be decoded (docs/relevance.md).

A rule scores every slot, higher where the slot is needed; slots below a threshold are dropped, but never all of an
image. The decision is hard: no gradient flows through it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from psa.models.scene import SceneModel
from psa.records import SlotPosterior

Moments = tuple[Float[Tensor, "batch slots features"], Float[Tensor, "batch slots features"]]
"""Mean and standard deviation of q(s_bk | x_b)."""

# Thresholds where none is set: a tenth of an equal share, one token in a hundred, and nats.
RULES: Mapping[str, float] = MappingProxyType({"weights": 0.1, "occupancy": 0.01, "information": 1.0})

# Slots below the threshold that stay all the same, the best ones of their image. A plain background says as little of
# its image as an empty slot does, and some slot must paint it.
SPARE: Mapping[str, int] = MappingProxyType({"weights": 0, "occupancy": 0, "information": 1})


def information(moments: Moments, prior: TorchDistributionMixin) -> Float[Tensor, "batch slots"]:
    """What each slot says of its image, in nats: KL(q(s_k | x) || p(s)) less what every slot pays for its width alone.

        KL_k = sum_d (m_kd - m_d)^2 / (2 v_d) + w_k,    w_k = sum_d [v_kd / v_d - 1 - log(v_kd / v_d)] / 2,

    and the score is KL_k - min_j w_j, with p(s) = Normal(m, diag v): 0 for a slot at the prior mean that is no narrower
    than the others of its image. Where all slots have one width, or are points (w = 0), half the squared distance to
    the prior mean in prior deviations is left. Of any other prior, an aggregate mixture say, m and v are its mean and
    the variances of its axes: the KL is then that to the Gaussian of the same moments.

    Args:
        moments: Of q; deviations of 0 where slots are points.
        prior: p(s), over one slot, with a mean and a variance.

    Returns:
        (B, K), at least 0.
    """
    loc, scale = moments
    ratio = scale.square() / prior.variance
    width = 0.5 * torch.where(ratio > 0, ratio - 1.0 - ratio.log(), 0.0).sum(-1)
    distance = 0.5 * ((loc - prior.mean).square() / prior.variance).sum(-1)
    return distance + width - width.amin(1, keepdim=True)


def relevance_scores(
    rule: str, posterior: SlotPosterior, moments: Moments, prior: TorchDistributionMixin
) -> Float[Tensor, "batch slots"]:
    """How much each slot is needed, (B, K).

    Args:
        rule: ``weights``: K pi_k, 1 for a slot with an equal share; ``occupancy``: the share of the tokens that the
            slot owns, those whose largest responsibility is its; ``information``: :func:`information`, in nats.
        posterior: What the E/M steps found.
        moments: Of q(s | x); only ``information`` looks at them, and at the prior.
        prior: p(s), over one slot.

    Raises:
        ValueError: If there is no such rule.
    """
    num_slots = posterior.weights.shape[1]
    if rule == "weights":
        return num_slots * posterior.weights
    if rule == "occupancy":
        return torch.nn.functional.one_hot(posterior.labels, num_slots).to(posterior.weights.dtype).mean(1)
    if rule == "information":
        return information(moments, prior)
    raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")


def kept(scores: Float[Tensor, "batch slots"], threshold: float, spare: int = 0) -> Bool[Tensor, "batch slots"]:
    """Slots whose score is the threshold or more, then the best ``spare`` others; at least one slot an image.

    Args:
        scores: Higher where a slot is needed; of equal ones the first counts as better.
        threshold: In the scores' unit.
        spare: Others that stay, where there are as many.
    """
    number = ((scores >= threshold).sum(1, keepdim=True) + spare).clamp(min=1)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < number


@dataclass(frozen=True)
class Relevance:
    """A rule with its threshold, and the model whose p(s) it compares slots with.

    Attributes:
        rule: One of RULES.
        threshold: In the rule's unit (:func:`relevance_scores`); at 0 or below every slot is kept.
        model: The scene program; its p(s) is read anew at every call, since it is trained. A prior that is built after
            training changes no decision.
        start: Share of training from which the rule drops slots, in [0, 1]. Before objects are found no slot says much,
            and one that is dropped gets no gradient that would make it say more.

    Raises:
        ValueError: If there is no such rule.
    """

    rule: str
    threshold: float
    model: SceneModel
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    @torch.no_grad()
    def active(self, posterior: SlotPosterior, moments: Moments) -> Bool[Tensor, "batch slots"]:
        """The slots to decode, (B, K), at least one an image."""
        scores = relevance_scores(self.rule, posterior, moments, self.model.trained_prior)
        return kept(scores, self.threshold, SPARE[self.rule])

"""Where slots start: the initialiser column of model.md section 2.

Each initialiser is a module called with what the tokens are (:class:`TokenView`) and how many slots are wanted; it
returns (B, K, D) means in the values' own, uncentred, coordinates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from psa.inference.keyed_noise import ImageNoise, RandomSource, Site
from psa.registry import Registry


@dataclass(frozen=True)
class TokenView:
    """What an initialiser may look at.

    Attributes:
        values: (B, N, D), the tokens in slot space.
        token_weights: (B, N), 0 for padding, or None.
    """

    values: Float[Tensor, "batch tokens features"]
    token_weights: Float[Tensor, "batch tokens"] | None

    def normal(self, num_slots: int, generator: RandomSource) -> Float[Tensor, "batch slots features"]:
        """Standard normal draws, one a slot."""
        batch, _, features = self.values.shape
        like = self.values
        if isinstance(generator, ImageNoise):
            return generator.normal(Site.START, (num_slots, features), like.dtype)
        return torch.randn(batch, num_slots, features, generator=generator, device=like.device, dtype=like.dtype)


class StandardNormal(nn.Module):
    """mu_k ~ Normal(0, I) (PSA algorithm 1, line 2)."""

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """(B, K, D) draws."""
        return view.normal(num_slots, generator)


class LearnedGaussian(nn.Module):
    """mu_k ~ Normal(loc, scale^2), learned, shared by the slots, re-parameterised (Locatello et al. 2020)."""

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.empty(1, 1, slot_dim))
        self.log_scale = nn.Parameter(torch.empty(1, 1, slot_dim))
        nn.init.xavier_uniform_(self.loc)
        nn.init.xavier_uniform_(self.log_scale)

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """(B, K, D) draws; gradients reach loc and scale."""
        return self.loc + self.log_scale.exp() * view.normal(num_slots, generator)


class Queries(nn.Module):
    """mu_k = query_k, learned, one a slot (BO-QSA); fewer slots than learned take the first."""

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, num_slots, slot_dim))

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """(B, K, D), the same for every image.

        Raises:
            ValueError: If more slots are asked for than were learned.
        """
        learned = self.queries.shape[1]
        if num_slots > learned:
            raise ValueError(f"num_slots must be at most the {learned} learned queries, got {num_slots}")
        return self.queries[:, :num_slots].expand(view.values.shape[0], -1, -1)


class NoisyQueries(Queries):
    """Queries plus, in training, noise of variance sigma, annealed from 1 to 0 by a cosine (BO-QSA)."""

    sigma: Tensor

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__(num_slots, slot_dim)
        self.register_buffer("sigma", torch.ones(()))

    def anneal(self, progress: float) -> None:
        """Set sigma for a share of training done, in [0, 1]."""
        self.sigma.fill_(0.5 * (1.0 + math.cos(math.pi * progress)))

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """(B, K, D)."""
        queries = super().forward(view, num_slots, generator)
        if not self.training:
            return queries
        return queries + self.sigma.sqrt() * view.normal(num_slots, generator)


def _select(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None, None].expand(-1, 1, values.shape[-1]))


class FarthestPoints(nn.Module):
    """The token farthest from the mean, then each time the token farthest from those chosen; deterministic."""

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """(B, K, D), tokens of the image; more slots than distinct tokens repeat some."""
        values, weights = view.values, view.token_weights
        valid = torch.ones_like(values[..., 0]) if weights is None else (weights > 0).to(values.dtype)
        centre = (values * valid[..., None]).sum(1, keepdim=True) / valid.sum(1)[:, None, None]
        distance = (values - centre).square().sum(-1).detach()
        chosen = []
        for k in range(num_slots):
            chosen.append(_select(values, torch.where(valid > 0, distance, -torch.inf).argmax(1)))
            new = (values - chosen[-1]).square().sum(-1).detach()
            distance = new if k == 0 else torch.minimum(distance, new)
        return torch.cat(chosen, dim=1)


def _drawn(weights: Float[Tensor, "batch tokens"], place: int, source: RandomSource) -> Int64[Tensor, " batch"]:
    """A token in proportion to its weight, the draw of that number."""
    if not isinstance(source, ImageNoise):
        return torch.multinomial(weights, 1, generator=source).squeeze(1)
    uniform = source.uniform(Site.START, (place + 1,))[:, place:]
    cumulative = weights.double().cumsum(1)
    passed = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return passed.squeeze(1).clamp(max=weights.shape[1] - 1)


class KMeansPlusPlus(nn.Module):
    """Tokens drawn in proportion to the squared distance from those chosen (Arthur and Vassilvitskii 2007)."""

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """(B, K, D), tokens of the image; uniform draws where every token is chosen already."""
        values, weights = view.values, view.token_weights
        weights = torch.ones_like(values[..., 0]) if weights is None else weights
        potential = weights
        distance = torch.full_like(weights, torch.inf)
        chosen = []
        for k in range(num_slots):
            chosen.append(_select(values, _drawn(potential, k, generator)))
            distance = torch.minimum(distance, (values - chosen[-1]).square().sum(-1).detach())
            scaled = distance / distance.amax(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
            potential = torch.where((scaled * weights).sum(1, keepdim=True) > 0, scaled * weights, weights)
        return torch.cat(chosen, dim=1)


class Given(nn.Module):
    """No start of its own: the caller passes ``initial`` each time."""

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()

    def forward(self, view: TokenView, num_slots: int, generator: RandomSource = None) -> Tensor:
        """Never a start.

        Raises:
            ValueError: Always.
        """
        raise ValueError("initial must be passed in: this member's initialiser is 'given'")


_OWN: dict[str, type[nn.Module]] = {
    "standard-normal": StandardNormal,
    "learned-gaussian": LearnedGaussian,
    "queries": Queries,
    "noisy-queries": NoisyQueries,
    "farthest": FarthestPoints,
    "kmeans++": KMeansPlusPlus,
    "given": Given,
}
INITIALISERS: Registry[type[nn.Module]] = Registry("initialiser", _OWN)

"""The exact posterior of a small input: all K^N assignments, with weights, means and precisions integrated out."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.conjugate import LOG_2PI, token_features, unpack
from psa.inference.coordinates import centre
from psa.inference.draws import MixtureDraws
from psa.inference.gibbs import given_sums, pose
from psa.inference.slot_inference import positive_int
from psa.models.local_mixture import LocalMixturePrior

MAX_ASSIGNMENTS = 1 << 20
CHUNK = 1 << 15


@dataclass(frozen=True)
class ExactPosterior:
    """p(c | v) of one image over all K^N assignments; assignment i gives token n the n-th digit of i in base K.

    Attributes:
        tokens: (N, D), those that the mask keeps.
        prior: The prior of the local model.
        num_slots: K.
        covariance: diagonal or full.
        log_joint: (K^N,), log p(v, c), nats.
    """

    tokens: Float[Tensor, "tokens features"]
    prior: LocalMixturePrior
    num_slots: int
    covariance: str
    log_joint: Float[Tensor, " assignments"]

    @property
    def log_evidence(self) -> Tensor:
        """log p(v), a scalar."""
        return self.log_joint.logsumexp(0)

    def labels(self, index: Int[Tensor, " chosen"]) -> Int[Tensor, "chosen tokens"]:
        """The assignments of these numbers."""
        return _digits(index, self.num_slots, len(self.tokens))

    def best_partition_mass(self) -> tuple[float, int]:
        """The posterior mass of the likeliest assignment's relabellings together, and the slots that it uses."""
        best = self.log_joint.argmax()
        used = len(self.labels(best[None])[0].unique())
        relabellings = math.perm(self.num_slots, used)
        return relabellings * float((self.log_joint[best] - self.log_evidence).exp()), used

    def draws(self, num_draws: int, generator: torch.Generator | None = None) -> MixtureDraws:
        """Independent draws from the posterior of theta, as one chain of one image.

        Raises:
            ValueError: If covariances are full.
        """
        if self.covariance != "diagonal":
            raise ValueError(f"covariance must be diagonal for draws, got {self.covariance!r}")
        probability = (self.log_joint - self.log_evidence).exp()
        index = torch.multinomial(probability, num_draws, replacement=True, generator=generator)
        problem = pose(self.tokens[None], self.prior, self.num_slots, None)
        owned = torch.nn.functional.one_hot(self.labels(index), self.num_slots).transpose(1, 2).to(problem.features)
        parameters = given_sums(problem, (owned @ problem.features[0].T)[None], generator)
        loc = parameters.loc + problem.origin[:, None]
        return MixtureDraws(parameters.log_weights[:, None], loc[:, None], parameters.precision[:, None])


def enumerate_posterior(
    tokens: Float[Tensor, "tokens features"], prior: LocalMixturePrior, num_slots: int, covariance: str = "diagonal"
) -> ExactPosterior:
    """log p(v, c) of every assignment of one image, in float64.

    p(v, c) is the Dirichlet-multinomial of c times a Normal-Gamma marginal of what each slot owns; the marginals of all
    2^N sets of tokens are computed once.

    Raises:
        ValueError: If there are more than 2^20 assignments.
    """
    num_tokens = len(tokens)
    positive_int("num_slots", num_slots)
    if num_slots > 1 and num_tokens * math.log2(num_slots) > math.log2(MAX_ASSIGNMENTS):
        raise ValueError(
            f"num_slots ** tokens must be at most 2^20 for enumeration, got {num_slots} ** {num_tokens}; "
            "log_evidence estimates it"
        )
    tokens = tokens.to(torch.float64)
    log_factor = _set_log_factors(tokens, prior, num_slots, covariance)
    total = torch.tensor(num_slots * prior.concentration, dtype=torch.float64)
    constant = total.lgamma() - (total + num_tokens).lgamma()
    parts = []
    for index in torch.arange(num_slots**num_tokens, device=tokens.device).split(CHUNK):
        owned = torch.nn.functional.one_hot(_digits(index, num_slots, num_tokens), num_slots)
        if num_slots == 1:
            owner = torch.zeros_like(owned[:, 0])
        else:
            owner = (owned << torch.arange(num_tokens, device=tokens.device)[:, None]).sum(1)
        parts.append(constant + log_factor[owner].sum(-1))
    return ExactPosterior(tokens, prior, num_slots, covariance, torch.cat(parts))


def _digits(index: Tensor, base: int, num_digits: int) -> Tensor:
    place = torch.tensor([base**n for n in range(num_digits)], device=index.device)
    return index[:, None] // place % base


def _set_log_factors(tokens: Tensor, prior: LocalMixturePrior, num_slots: int, covariance: str) -> Tensor:
    """log of Gamma(alpha0 + |S|) / Gamma(alpha0) p(v_S) of every set of tokens S; of all of them alone if K = 1."""
    values, _, origin = centre(tokens[None], None)
    components = prior.components(tokens, covariance).shifted(-origin[0, 0])
    features = token_features(values, components.full)[0].T
    num_tokens, num_features = tokens.shape
    alpha0 = torch.tensor(prior.concentration, dtype=torch.float64, device=tokens.device)

    def log_factor(member: Tensor) -> Tensor:
        moments = unpack(member @ features, num_features, components.full)
        evidence = components.posterior(moments).log_normaliser() - components.log_normaliser()
        weight = (alpha0 + moments.count).lgamma() - alpha0.lgamma()
        return weight + evidence - 0.5 * LOG_2PI * num_features * moments.count

    if num_slots == 1:
        return log_factor(torch.ones_like(features[None, :, 0]))
    chunks = torch.arange(1 << num_tokens, device=tokens.device).split(CHUNK)
    return torch.cat([log_factor(_digits(chunk, 2, num_tokens).to(tokens)) for chunk in chunks])

"""The No-U-Turn sampler on the local model with its assignments summed out, and whether it has converged."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import AffineTransform, ExpTransform

from psa.arviz import ess, rhat
from psa.inference.coordinates import centre
from psa.inference.draws import MixtureDraws
from psa.inference.initialisers import TokenView
from psa.inference.relabelling import relabel
from psa.inference.slot_inference import positive_int
from psa.inference.starts import STARTS, token_scale
from psa.inference.variational import check_tokens
from psa.models.local_mixture import LocalMixturePrior
from psa.models.marginal_mixture import StickBreaking, marginal_local_mixture

TARGET_ACCEPTANCE = 0.8
MAX_TREE_DEPTH = 8
JITTER = 0.5  # of a start: posterior standard deviations are smaller, so that chains begin overdispersed


@dataclass(frozen=True)
class MixtureStart:
    """Where the chains of each image start, before each is jittered.

    Attributes:
        weights: (B, K), >= 0, sums to 1 over K.
        loc: (B, K, D).
        precision: (B, K, D), > 0.
    """

    weights: Float[Tensor, "batch slots"]
    loc: Float[Tensor, "batch slots features"]
    precision: Float[Tensor, "batch slots features"]


@dataclass(frozen=True)
class NutsResult:
    """Draws, and how the sampler fared; its transitions are common to all images and chains.

    Attributes:
        draws: (B, C, S), float64, slots in the order in which they were found.
        diverging: (S,), whether the transition to the draw met an energy error above 1000 nats.
        num_steps: (S,), leapfrog steps of that transition.
        step_size: After warm-up.
    """

    draws: MixtureDraws
    diverging: Bool[Tensor, " draws"]
    num_steps: Int[Tensor, " draws"]
    step_size: float

    @property
    def num_divergent(self) -> int:
        """Draws whose transition diverged; any makes the draws suspect."""
        return int(self.diverging.sum())

    @property
    def num_deepest(self) -> int:
        """Draws whose trajectory was cut off at the greatest tree depth; many make the sampler slow, not wrong."""
        return int((self.num_steps == 2**MAX_TREE_DEPTH - 1).sum())

    def sample_stats(self) -> dict[str, Tensor]:
        """diverging and n_steps as (chains, draws), for the ArviZ group."""
        chains = self.draws.log_weights.shape[1]
        return {"diverging": self.diverging.expand(chains, -1), "n_steps": self.num_steps.expand(chains, -1)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Pyro draws from the global generators: seed them, and give them back as they were."""
    state = get_rng_state()  # of torch on the CPU, numpy and random
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            pyro.set_rng_seed(seed)
            yield
        finally:
            set_rng_state(state)


class _Sampler:
    """One run of Pyro's sampler on images that are repeated for their chains.

    Its coordinates are sticks for pi, mu in standard deviations of the image's tokens about their mean, and log lambda:
    warm-up does not depend on the tokens' units.
    """

    def __init__(self, tokens: Tensor, prior: LocalMixturePrior, num_slots: int, mask: Tensor | None) -> None:
        values, weights, origin = centre(tokens, mask)
        scale = token_scale(values, weights)
        self.view, self.scale, self.origin, self.num_slots = TokenView(values, weights), scale, origin, num_slots
        self.to_coordinates = {
            "weights": StickBreaking().inv,
            "loc": AffineTransform(origin, scale).inv,
            "precision": ExpTransform().inv,  # whose units only shift its logarithm
        }
        arguments = (tokens, prior, num_slots, mask)
        _, self.potential, _, _ = initialize_model(
            marginal_local_mixture, arguments, transforms=self.to_coordinates, initial_params={}
        )
        self.calls = 0
        self.num_steps: list[int] = []
        self.divergences: list[int] = []

    def start(self) -> MixtureStart:
        """Tokens at random as means, the tokens' variance, equal weights."""
        loc = STARTS["random"](self.view, self.num_slots, None) + self.origin
        equal = torch.full_like(loc[..., 0], 1 / self.num_slots)
        return MixtureStart(equal, loc, self.scale.pow(-2).expand_as(loc))

    def jittered(self, start: MixtureStart) -> dict[str, Tensor]:
        """Coordinates of the start with noise on log pi and log lambda, and on mu in units of 1 / sqrt(lambda).

        Raises:
            ValueError: If the posterior has no finite density there.
        """

        def noise(like: Tensor) -> Tensor:
            return JITTER * torch.randn_like(like)

        log_weights = start.weights.clamp(min=torch.finfo(start.weights.dtype).eps).log()
        sites = {
            "weights": (log_weights + noise(log_weights)).softmax(-1)[:, None],
            "loc": start.loc + noise(start.loc) * start.precision.rsqrt(),
            "precision": start.precision * noise(start.precision).exp(),
        }
        begin = {name: self.to_coordinates[name](value) for name, value in sites.items()}
        with pyro.validation_enabled(False):
            if not bool(self.potential(begin).isfinite()):
                raise ValueError("initial must be finite and of positive precision, the posterior has no density there")
        return begin

    def _evaluate(self, coordinates: dict[str, Tensor]) -> Tensor:
        """The potential; it is evaluated once a leapfrog step."""
        self.calls += 1
        return self.potential(coordinates)

    def _after_transition(self, kernel: NUTS, coordinates: dict[str, Tensor], stage: str, index: int) -> None:
        self.num_steps.append(self.calls)
        self.calls = 0
        if stage == "Sample":
            self.divergences = kernel.diagnostics()["divergences"]

    def run(
        self, start: MixtureStart, num_samples: int, num_warmup: int, progress: bool
    ) -> tuple[dict[str, Tensor], float]:
        """Draws of each site, (draws, images, ...), and the step size after warm-up."""
        kernel = NUTS(potential_fn=self._evaluate, target_accept_prob=TARGET_ACCEPTANCE, max_tree_depth=MAX_TREE_DEPTH)
        mcmc = MCMC(
            kernel,
            num_samples,
            num_warmup,
            initial_params=self.jittered(start),
            transforms=self.to_coordinates,
            hook_fn=self._after_transition,
            disable_progbar=not progress,
        )
        mcmc.run()
        return mcmc.get_samples(), kernel.step_size


def sample_posterior(  # noqa: PLR0913 - the settings of one run
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    *,
    num_samples: int = 500,
    num_warmup: int = 500,
    num_chains: int = 2,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    initial: MixtureStart | None = None,
    seed: int = 0,
    progress: bool = False,
) -> NutsResult:
    """Draw pi, mu, lambda of every image by NUTS (Hoffman and Gelman 2014; multinomial, as Betancourt 2017).

    All chains of all images are one state: the images are repeated C times along their plate, and one trajectory moves
    them all. Their posterior is a product, so once it is reached the chains' states at any one time are independent,
    and they start apart from each other with momenta of their own: they disagree, and R-hat tells, while they are not
    there yet. They are not independent processes: step size, trajectory length and the point that is taken on it are
    common, so that a single hard image slows all of them down, and a divergence or a deep tree belongs to no image.

    Args:
        tokens: (B, N, D), finite where the mask keeps them.
        prior: The prior, in the tokens' units.
        num_slots: K >= 1.
        num_samples: S, draws of each chain.
        num_warmup: Transitions before, which tune step size and diagonal mass matrix; dropped.
        num_chains: C of every image.
        mask: (B, N), False where a token is padding.
        initial: Where chains start, jittered; by default each at other tokens as means, with their variance.
        seed: Of all random numbers; those of the caller are not touched.
        progress: Whether to show a bar.

    Raises:
        ValueError: If a size is below 1, shapes do not fit, a token is not finite, an image has none, or the posterior
            has no density at ``initial``.
    """
    sizes = {"num_slots": num_slots, "num_samples": num_samples, "num_warmup": num_warmup, "num_chains": num_chains}
    for name, value in sizes.items():
        positive_int(name, value)
    check_tokens(tokens, mask)
    tokens = tokens.to(torch.float64).repeat_interleave(num_chains, 0)
    mask = None if mask is None else mask.repeat_interleave(num_chains, 0)
    with _seeded(seed):
        sampler = _Sampler(tokens, prior, num_slots, mask)
        start = sampler.start() if initial is None else _given(initial, tokens, num_slots, num_chains)
        samples, step_size = sampler.run(start, num_samples, num_warmup, progress)
    by_chain = {name: found.unflatten(1, (-1, num_chains)).movedim(0, 2) for name, found in samples.items()}
    draws = MixtureDraws(by_chain["weights"].squeeze(-2).log(), by_chain["loc"], by_chain["precision"])
    diverging = torch.zeros(num_samples, dtype=torch.bool)
    diverging[sampler.divergences] = True
    return NutsResult(draws, diverging, torch.tensor(sampler.num_steps[-num_samples:]), step_size)


def _given(initial: MixtureStart, tokens: Tensor, num_slots: int, num_chains: int) -> MixtureStart:
    wanted = (len(tokens) // num_chains, num_slots, tokens.shape[2])
    shapes = {"weights": wanted[:2], "loc": wanted, "precision": wanted}
    for name, shape in shapes.items():
        if tuple(getattr(initial, name).shape) != shape:
            raise ValueError(f"initial must have {name} {shape}, got {tuple(getattr(initial, name).shape)}")
    return MixtureStart(*(getattr(initial, name).to(tokens).repeat_interleave(num_chains, 0) for name in shapes))


@dataclass(frozen=True)
class Convergence:
    """Worst of each image (Vehtari et al. 2021: rank-normalised split R-hat, bulk ESS).

    Attributes:
        max_rhat: (B,), over weights, means and precisions of the slots, relabelled; converged at 1.01 or less, NaN
            with a single chain.
        min_ess: (B,), over the same, in draws of all chains together.
        label_free_rhat: (B,), over the quantities that need no relabelling.
        label_free_ess: (B,).
    """

    max_rhat: Float[Tensor, " batch"]
    min_ess: Float[Tensor, " batch"]
    label_free_rhat: Float[Tensor, " batch"]
    label_free_ess: Float[Tensor, " batch"]


def diagnose(
    draws: MixtureDraws,
    tokens: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Convergence:
    """Whether the chains of each image agree; relabels a copy of the draws first.

    Where chains disagree on parameters and agree on what is free of labels, the cause is relabelling: often slots
    without tokens, which have no identity.
    """
    relabelled, _ = relabel(draws, tokens, mask=mask)
    parameters = torch.cat(
        [relabelled.log_weights, relabelled.loc.flatten(3), relabelled.precision.log().flatten(3)], dim=-1
    )
    free = torch.stack(list(draws.label_free(tokens, mask).values()), dim=-1)
    return Convergence(*_worst(parameters), *_worst(free))


def _worst(quantities: Float[Tensor, "batch chains draws terms"]) -> tuple[Tensor, Tensor]:
    """Largest R-hat and smallest ESS of each image, (B,); a constant, such as the weight of a single slot, has none."""
    worst = []
    for image in quantities.cpu().numpy():
        moving = [column for column in np.moveaxis(image, -1, 0) if np.ptp(column) > 0]
        pairs = [(rhat(column), ess(column)) for column in moving] or [(1.0, float(image[..., 0].size))]
        # numpy's extremes, unlike Python's, keep the NaN of a quantity that could not be judged
        worst.append([np.max(pairs, axis=0)[0], np.min(pairs, axis=0)[1]])
    largest, smallest = quantities.new_tensor(np.array(worst)).unbind(-1)
    return largest, smallest

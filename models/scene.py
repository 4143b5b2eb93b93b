"""The scene program: slots from a prior, an image from the decoded slots (docs/scene.md, model.md section 3)."""

import math
from contextlib import AbstractContextManager

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from psa.models.active_slots import NonEmptySubset
from psa.models.aggregate import AggregatePrior
from psa.models.local_mixture import keeping
from psa.records import DecodedScene

LIKELIHOODS = ("normal", "mixture")


class PixelMixture(dist.TorchDistribution):
    """x_p ~ sum_k mask_kp Normal(rgb_kp, sigma^2 I): one assignment per pixel, shared by the channels.

    Args:
        scene: Decoded slots, (B, K, C, H, W).
        sigma: Standard deviation of a channel, > 0, in units of the image's range [0, 1].
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.real, 3)

    def __init__(self, scene: DecodedScene, sigma: Tensor | float) -> None:
        self.scene, self.sigma = scene, sigma
        batch, _, *event = scene.rgb.shape
        super().__init__(torch.Size((batch,)), torch.Size(event), validate_args=False)

    def log_prob(self, value: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """(B,), in nats."""
        normal = dist.Normal(self.scene.rgb, self.sigma, validate_args=False)
        per_slot = normal.log_prob(value[:, None]).sum(2)
        return (self.scene.log_masks + per_slot).logsumexp(1).sum((-2, -1))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws (*sample_shape, B, C, H, W)."""
        sample_shape = torch.Size(sample_shape)
        masks = self.scene.masks.movedim(1, -1)
        slot = torch.distributions.Categorical(masks).sample(sample_shape)[..., None, None, :, :]
        rgb = self.scene.rgb.expand(*sample_shape, *self.scene.rgb.shape)
        index = slot.expand(*rgb.shape[:-4], 1, *rgb.shape[-3:])
        mean = rgb.gather(-4, index).squeeze(-4)
        return mean + self.sigma * torch.randn_like(mean)


def objective_scope(kl_weight: float) -> AbstractContextManager:
    """Weight of the terms log p(s) and log q(s): 1 is the ELBO, 0 the papers' objective without the KL."""
    if kl_weight == 0.0:
        return pyro.poutine.mask(mask=False)
    return pyro.poutine.scale(scale=kl_weight)


class SceneModel(nn.Module):
    """s_1..s_K ~ p(s); x ~ p(x | decode(s_1..s_K)). p(s) is a diagonal Gaussian until an aggregate prior is given.

    Args:
        decoder: Slots (B, K, D) -> DecodedScene.
        num_slots: K.
        slot_dim: D.
        likelihood: ``normal``, Normal(sum_k mask_k rgb_k, sigma^2), or ``mixture``, the pixel mixture.
        sigma: Fixed standard deviation of a channel, in units of the image's range [0, 1]. It is not learned: on flat
            8-bit images a learned one has an unbounded density.
        kl_weight: Weight of the KL; 0 is the papers' objective.
        drops_slots: Whether a guide says which slots are decoded; the others have no part in the scene.

    Attributes:
        aggregate: The aggregate prior that was built after training; while it is given, it is p(s).
        factors: What training adds to log p for the slots that are drawn: called with them (B, K, D) and with the
            decoded ones (B, K), or None for all. It has no part in evaluation mode, where the program is the story
            alone.

    Raises:
        ValueError: If the likelihood is unknown or sigma is not positive.
    """

    component_weights: Tensor
    component_loc: Tensor
    component_var: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        num_slots: int,
        slot_dim: int,
        likelihood: str = "mixture",
        sigma: float = 0.1,
        kl_weight: float = 1.0,
        drops_slots: bool = False,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.decoder, self.num_slots, self.likelihood, self.sigma = decoder, num_slots, likelihood, sigma
        self.kl_weight, self.drops_slots = kl_weight, drops_slots
        self.prior_loc = nn.Parameter(torch.zeros(slot_dim))
        self.prior_log_scale = nn.Parameter(torch.zeros(slot_dim))
        self.aggregate: AggregatePrior | None = None
        self.factors: nn.Module | None = None
        self.refreshed = False

    def refresh_in_training(self, num_components: int) -> None:
        """Make room for an aggregate prior of at most G components that training refreshes.

        It lies in buffers, so that checkpoints and devices carry it. Until the first refresh p(s) is the Gaussian.
        """
        self.refreshed = True
        self.register_buffer("component_weights", torch.zeros(num_components))
        self.register_buffer("component_loc", torch.zeros(num_components, len(self.prior_loc)))
        self.register_buffer("component_var", torch.ones(num_components, len(self.prior_loc)))

    @torch.no_grad()
    def refresh_prior(self, prior: AggregatePrior) -> None:
        """Make a mixture of at most G components, with diagonal covariances, p(s) from now on."""
        assert prior.var is not None
        found = slice(prior.num_components)
        self.component_weights.zero_()[found] = prior.weights.to(self.component_weights)
        self.component_loc[found] = prior.loc.to(self.component_loc)
        self.component_var[found] = prior.var.to(self.component_var)

    @property
    def slot_prior(self) -> TorchDistributionMixin:
        """p(s), over one slot (D,)."""
        if self.aggregate is not None:
            if self.aggregate.loc.device != self.prior_loc.device:
                self.aggregate = self.aggregate.to(self.prior_loc)
            return self.aggregate
        return self.trained_prior

    @property
    def trained_prior(self) -> TorchDistributionMixin:
        """p(s) as training left it, whatever prior was built afterwards."""
        if self.refreshed and bool(self.component_weights.any()):
            return AggregatePrior(self.component_weights, self.component_loc, self.component_var)
        return dist.Normal(self.prior_loc, self.prior_log_scale.exp()).to_event(1)

    def observation(self, scene: DecodedScene) -> TorchDistributionMixin:
        """p(x | decoded slots): batch (B,), event (C, H, W)."""
        if self.likelihood == "mixture":
            return PixelMixture(scene, self.sigma)
        return dist.Normal(scene.mean, self.sigma, validate_args=False).to_event(3)

    def observe(
        self,
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None,
        images: Float[Tensor, "batch channels height width"],
    ) -> None:
        """The program's part below the slots; site image. Other kinds of observation override it."""
        scene = self.decoder(slots) if active is None else self.decoder(slots, active)
        pyro.sample("image", self.observation(scene), obs=images)

    @torch.no_grad()
    def draw_images(self, slots: Float[Tensor, "batch slots features"]) -> Float[Tensor, "batch channels height width"]:
        """x ~ p(x | s), with its noise."""
        return self.observation(self.decoder(slots)).sample()

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> None:
        """The Pyro program; sites slot (plates images, slots) and those of :meth:`observe` (plate observations).

        Images in [0, 1]. Where slots are dropped, there is a site active (plate observations) before them. Sites of
        ``factors`` stand outside of the plates.
        """
        batch, active = images.shape[0], None
        observations = pyro.plate("observations", batch, dim=-1)
        if self.drops_slots:
            with observations, objective_scope(self.kl_weight):
                active = pyro.sample("active", NonEmptySubset(self.num_slots, images)).bool()
        with (
            pyro.plate("images", batch, dim=-2),
            pyro.plate("slots", self.num_slots, dim=-1),
            objective_scope(self.kl_weight),
            keeping(active),
        ):
            slots = pyro.sample("slot", self.slot_prior)
        if self.factors is not None and self.training:
            self.factors(slots, active)
        with observations:
            self.observe(slots, active, images)

"""The amortised guide: the E/M steps on an image's tokens give q(s | x) (docs/scene.md)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from psa.inference.code_guide import CodeGuide
from psa.inference.keyed_noise import ImageNoise, KeyedNormal
from psa.inference.readouts import NormalReadout
from psa.inference.relevance import Relevance
from psa.inference.slot_inference import SlotInference
from psa.models.local_mixture import keeping
from psa.models.scene import objective_scope
from psa.records import SlotPosterior


class SceneGuide(nn.Module):
    """q(s_1..s_K | x): encoder -> E/M steps -> read-out.

    A ``normal`` read-out is Normal(mean, var); the others are points, and get Normal(read-out, learned diagonal
    variance) when a density is needed, that is when ``sample`` is on.

    Args:
        encoder: Images (B, C, H, W) -> tokens (B, N, F).
        inference: A member of the family.
        sample: Draw slots from q; otherwise decode the read-out itself (a point, without density or KL).
        kl_weight: Weight of the KL, the same as the model's.
        relevance: The rule that says which slots are decoded; None decodes all.
        code: The part for the words of an image, where the scene program has them.

    Raises:
        ValueError: If a KL is asked for without sampling: a point has no density.
    """

    def __init__(
        self,
        encoder: nn.Module,
        inference: SlotInference,
        sample: bool,
        kl_weight: float,
        relevance: Relevance | None = None,
        code: CodeGuide | None = None,
    ) -> None:
        super().__init__()
        if kl_weight > 0 and not sample:
            raise ValueError("kl_weight above 0 needs objective.sample = true: a point has no density")
        self.encoder, self.inference, self.draws, self.kl_weight = encoder, inference, sample, kl_weight
        self.relevance, self.progress, self.code = relevance, 1.0, code
        self.noise: ImageNoise | None = None
        self.log_scale: nn.Parameter | None = None
        if sample and not isinstance(inference.readout, NormalReadout):
            self.log_scale = nn.Parameter(torch.full((inference.slot_dim,), -2.0))

    @contextmanager
    def drawing(self, noise: ImageNoise) -> Iterator[None]:
        """Within it, the starts of slots and the draws of q(s | x) come from noise keyed by image."""
        self.noise = noise
        try:
            yield
        finally:
            self.noise = None

    def posterior(self, images: Float[Tensor, "batch channels height width"]) -> SlotPosterior:
        """What the E/M steps find in the images' tokens."""
        return self.inference(self.encoder(images), generator=self.noise)

    def slot_moments(self, posterior: SlotPosterior) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(s_bk | x_b), (B, K, D) each; 0 where slots are points."""
        point = self.inference.slots(posterior)
        if not self.draws:
            return point, torch.zeros_like(point)
        return point, posterior.var.sqrt() if self.log_scale is None else self.log_scale.exp().expand_as(point)

    def slot_distribution(self, posterior: SlotPosterior) -> TorchDistributionMixin:
        """q(s_bk | x_b): batch (B, K), event (D,); a Delta at the read-out where slots are points."""
        loc, scale = self.slot_moments(posterior)
        if not self.draws:
            return dist.Delta(loc, event_dim=1)
        normal = dist.Normal(loc, scale) if self.noise is None else KeyedNormal(loc, scale, self.noise)
        return normal.to_event(1)

    def anneal(self, progress: float, noise_progress: float | None = None) -> None:
        """Tell the guide which share of training is done: ends noise on queries, starts the rule, cools the words.

        Args:
            progress: The share, in [0, 1].
            noise_progress: That of the steps with noise on queries; left out, the same.
        """
        self.inference.anneal(progress if noise_progress is None else noise_progress)
        if self.code is not None:
            self.code.anneal(progress)
        self.progress = progress

    def active(self, posterior: SlotPosterior) -> Bool[Tensor, "batch slots"] | None:
        """The slots to decode, (B, K), at least one an image; None without a rule. No gradient flows through them.

        In training, all of them until the rule starts.
        """
        if self.relevance is None:
            return None
        if self.training and self.progress < self.relevance.start:
            return torch.ones_like(posterior.weights, dtype=torch.bool)
        with torch.no_grad():
            return self.relevance.active(posterior, self.slot_moments(posterior))

    def point(
        self, images: Float[Tensor, "batch channels height width"], posterior: SlotPosterior
    ) -> dict[str, Tensor]:
        """The sites' values without noise: slots at their read-outs, which of them are decoded, the likeliest words."""
        found = {"slot": self.inference.slots(posterior)}
        active = self.active(posterior)
        if active is not None:
            found["active"] = active.to(images)
        if self.code is not None:
            found["code"] = self.code.mode(images)
        return found

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> SlotPosterior:
        """The Pyro guide; site slot, before it active where slots are dropped, and after it code where there is one."""
        posterior = self.posterior(images)
        active = self.active(posterior)
        observations = pyro.plate("observations", images.shape[0], dim=-1)
        if active is not None:
            with observations, objective_scope(self.kl_weight):
                pyro.sample("active", dist.Delta(active.to(images), event_dim=1))
        with (
            pyro.plate("images", images.shape[0], dim=-2),
            pyro.plate("slots", posterior.loc.shape[1], dim=-1),
            objective_scope(self.kl_weight),
            keeping(active),
        ):
            pyro.sample("slot", self.slot_distribution(posterior))
        if self.code is not None:
            with observations:
                self.code(images, self.noise)
        return posterior

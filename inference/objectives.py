"""What training minimises: Pyro's ELBO of the scene program and its guide, as a torch module."""

import pyro
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from psa.inference.autoencoder import SlotAutoencoder
from psa.models.active_slots import NonEmptySubset

OBSERVED = ("image", "code")  # sites below the slots: of pixels or features, and of words


def objective(autoencoder: SlotAutoencoder) -> nn.Module:
    """Minus the ELBO of a batch (B, C, H, W), in nats, summed over the batch.

    With a KL, its closed form is used where Pyro has one (TraceMeanField_ELBO), which it has not under an aggregate
    prior: there the draws estimate it; without a KL the term is masked out of
    both programs and the ELBO is the expected log likelihood. Slots that a rule drops have no KL and are not decoded.
    The words of a code have no entropy in it (:class:`psa.inference.code_guide.CodeGuide`).
    """
    elbo = TraceMeanField_ELBO() if autoencoder.guide.kl_weight > 0 else Trace_ELBO()
    return elbo(autoencoder.model, autoencoder.guide)


def held_out_objective(autoencoder: SlotAutoencoder, images: Float[Tensor, "batch channels height width"]) -> float:
    """Minus the objective on held-out images at the read-outs, nats per channel of a pixel (lower is better): no label.

    Where training has a KL, it is included; where slots or words are drawn in training, they are held at the means and
    at the likeliest words, so that the figure has no noise.
    """
    guide, model = autoencoder.guide, autoencoder.model
    with torch.no_grad():
        posterior = guide.posterior(images)
        active = guide.active(posterior)
        trace = pyro.poutine.trace(pyro.condition(model, guide.point(images, posterior))).get_trace(images)
        value = trace.log_prob_sum(lambda name, site: name in OBSERVED)
        if guide.kl_weight > 0:
            kl = _kl(guide.slot_distribution(posterior), model.trained_prior)
            if active is not None:
                kl = kl * active
                value = value + guide.kl_weight * NonEmptySubset(active.shape[1], kl).log_prob(active).sum()
            value = value - guide.kl_weight * kl.sum()
    return -float(value / images.numel())


def _kl(q: TorchDistributionMixin, prior: TorchDistributionMixin) -> Float[Tensor, "batch slots"]:
    """KL(q || p(s)) in closed form, or under an aggregate prior by one draw, the same at every call."""
    try:
        return torch.distributions.kl_divergence(q, prior.expand(q.batch_shape))
    except NotImplementedError:
        generator = torch.Generator(q.mean.device).manual_seed(0)
        noise = torch.randn(q.mean.shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
        draw = q.mean + q.stddev * noise
        return q.log_prob(draw) - prior.log_prob(draw)

"""What training minimises: Pyro's ELBO of the scene program and its guide, as a torch module."""

import torch
from jaxtyping import Float
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from psa.inference.autoencoder import SlotAutoencoder


def objective(autoencoder: SlotAutoencoder) -> nn.Module:
    """Minus the ELBO of a batch (B, C, H, W), in nats, summed over the batch.

    With a KL, its closed form is used where Pyro has one (TraceMeanField_ELBO); without one the term is masked out of
    both programs and the ELBO is the expected log likelihood.
    """
    elbo = TraceMeanField_ELBO() if autoencoder.guide.kl_weight > 0 else Trace_ELBO()
    return elbo(autoencoder.model, autoencoder.guide)


def held_out_objective(autoencoder: SlotAutoencoder, images: Float[Tensor, "batch channels height width"]) -> float:
    """Minus the objective on held-out images at the read-outs, nats per channel of a pixel (lower is better): no label.

    Where training has a KL, it is included; where slots are drawn in training, they are held at their means, so that
    the figure has no noise.
    """
    with torch.no_grad():
        posterior = autoencoder.guide.posterior(images)
        scene = autoencoder.model.decoder(autoencoder.guide.inference.slots(posterior))
        value = autoencoder.model.observation(scene).log_prob(images).sum()
        if autoencoder.guide.kl_weight > 0:
            q = autoencoder.guide.slot_distribution(posterior)
            value = (
                value
                - autoencoder.guide.kl_weight
                * torch.distributions.kl_divergence(q, autoencoder.model.slot_prior.expand(q.batch_shape)).sum()
            )
    return -float(value / images.numel())

"""Encoder, slot module, decoder and objective put together, and a step of what comes out."""

import torch
from tiny import tiny_autoencoder, tiny_images
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.objectives import objective

FEATURES = ("encoder.kind=features", "features.shape=[6, 4, 4]")
DECODERS = {
    "patch": (),
    "broadcast": (),
    "joint": (),
    "transformer": ("encoder.kind=cnn", "code.vocabulary=4"),
    "words": ("decoder.kind=transformer", "encoder.kind=words", "code.vocabulary=4"),
    "features": ("decoder.kind=patch", *FEATURES),
    "feature-transformer": ("decoder.kind=transformer", *FEATURES),
}
OBJECTIVES = (
    {"sample": False, "kl_weight": 0.0},
    {"sample": True, "kl_weight": 0.0},
    {"sample": True, "kl_weight": 1.0},
)


def compose(variant: str, decoder: str, values: dict[str, object], *settings: str) -> SlotAutoencoder:
    kind = () if any(one.startswith("decoder.kind") for one in DECODERS[decoder]) else (f"decoder.kind={decoder}",)
    return tiny_autoencoder(
        {"slots": {"variant": variant}, "objective": values}, *kind, *DECODERS[decoder], "encoder.channels=4", *settings
    )


def batch_for(autoencoder: SlotAutoencoder) -> Tensor:
    """Two images, or two maps of features, as the run observes them."""
    config = autoencoder.config
    if config.encoder.kind != "features" or config.features.shape is None:
        return tiny_images(2).batch(slice(None))
    return torch.randn(2, *config.features.shape, generator=torch.Generator().manual_seed(0))


def steps(autoencoder: SlotAutoencoder) -> None:
    """A step of training with finite gradients that reach every part that has parameters."""
    images = batch_for(autoencoder)
    optimiser = torch.optim.Adam(autoencoder.parameters(), 1e-3)
    loss = objective(autoencoder)(images)
    loss.backward()
    assert bool(loss.isfinite())
    found = {name: p.grad for name, p in autoencoder.named_parameters() if p.grad is not None}
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    reached = {name for name, gradient in found.items() if bool(gradient.any())}
    parts = ["guide.encoder.", "model.decoder."]
    if any(True for _ in autoencoder.guide.inference.projections.parameters()):
        parts.append("guide.inference.")
    assert all(any(name.startswith(part) for name in reached) for part in parts), parts
    optimiser.step()
    assert bool(objective(autoencoder)(images).isfinite())

"""Features of images by name, for the Frechet distance: a user's callable, a timm network, or a run's encoder."""

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from psa.errors import ConfigError
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.timm_networks import TIMM, normalised, timm_network
from psa.metrics.generation import Features

RUN = "run"


def named_features(name: str, autoencoder: SlotAutoencoder) -> Features:
    """The features that a name stands for.

    Args:
        name: ``run``, the run's encoder; ``timm:ARCHITECTURE:FILE.safetensors``; or a callable by dotted name,
            ``package.module:function`` or ``package.module.function``, which is imported and so runs its module's code.
        autoencoder: The run.

    Raises:
        ConfigError: If the name is none of these, or what it names cannot be had.
        PsaError: If timm is needed and not installed.
    """
    if name == RUN:
        return encoder_features(autoencoder)
    if name.startswith(TIMM):
        architecture, _, path = name.removeprefix(TIMM).partition(":")
        return timm_features(architecture, Path(path))
    return dotted_callable(name)


def encoder_features(autoencoder: SlotAutoencoder) -> Features:
    """The run's tokens, averaged over an image: (B, token_dim)."""

    @torch.no_grad()
    def features(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return autoencoder.guide.encoder(autoencoder.prepare(images)).mean(1)

    return features


def timm_features(architecture: str, weights: Path) -> Features:
    """The pooled features of a timm network, its weights from a local safetensors file; nothing is downloaded.

    Images are resized to the network's size and normalised as it was trained.

    Raises:
        PsaError: If timm is not installed.
        ConfigError: If there is no such architecture, or the file is missing, no safetensors, or of another network.
    """
    network = timm_network(architecture, weights).eval()

    @torch.no_grad()
    def features(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return network(normalised(network, images))

    return features


def dotted_callable(name: str) -> Callable[[Tensor], Tensor]:
    """What ``package.module:function`` or ``package.module.function`` names, imported.

    Raises:
        ConfigError: If there is no such module, or nothing callable of that name in it.
    """
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not module or not attribute:
        raise ConfigError(f"{name}: expected a callable by dotted name, package.module:function")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: expected a callable by dotted name, package.module:function ({error})") from None
    if not callable(found):
        raise ConfigError(f"{name}: expected a callable, got {type(found).__name__}")
    return found

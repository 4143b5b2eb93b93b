"""Features of images by name, for the Frechet distance: a user's callable, a timm network, or a run's encoder."""

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from psa.errors import ConfigError, PsaError
from psa.inference.autoencoder import SlotAutoencoder
from psa.metrics.generation import Features

RUN, TIMM = "run", "timm:"


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
    try:
        import timm  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise PsaError(f"{TIMM}{architecture} needs timm, which is not installed: pip install timm") from None
    name = f"{TIMM}{architecture}:{weights}"
    if not timm.is_model(architecture):
        raise ConfigError(f"{name}: expected an architecture that timm knows, got {architecture!r}")
    network = timm.create_model(architecture, pretrained=False, num_classes=0).eval()
    try:
        missing, _ = network.load_state_dict(load_file(weights), strict=False)  # what is over is the classifier
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(f"{name}: expected a safetensors file of that network's weights ({reason})") from None
    if missing:
        raise ConfigError(f"{name}: expected that network's weights, {len(missing)} are missing, first {missing[0]}")
    settings = network.pretrained_cfg
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    size = tuple(settings["input_size"][1:])

    @torch.no_grad()
    def features(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        resized = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        return network((resized.clamp(0.0, 1.0) - mean) / std)

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

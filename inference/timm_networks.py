"""Networks of timm with weights from a user's file, and images as they take them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from psa.errors import ConfigError, PsaError

TIMM = "timm:"


def timm_network(architecture: str, weights: Path, options: Mapping[str, Any] = MappingProxyType({})) -> nn.Module:
    """A timm network without its classifier, its weights from a local safetensors file; nothing is downloaded.

    Args:
        architecture: Its name in timm.
        weights: The file.
        options: What ``timm.create_model`` takes beside the name, such as ``img_size``.

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
    try:
        network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{name}: expected options that it takes, got {dict(options)} ({error})") from None
    try:
        missing, _ = network.load_state_dict(load_file(weights), strict=False)  # what is over is the classifier
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(f"{name}: expected a safetensors file of that network's weights ({reason})") from None
    if missing:
        raise ConfigError(f"{name}: expected that network's weights, {len(missing)} are missing, first {missing[0]}")
    return network


def normalised(
    network: nn.Module, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch 3 rows columns"]:
    """Images in [0, 1], resized to a timm network's size and normalised as it was trained."""
    settings: Any = network.pretrained_cfg
    mean, std = (images.new_tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    resized = nn.functional.interpolate(images, network_size(network), mode="bicubic", antialias=True)
    return (resized.clamp(0.0, 1.0) - mean) / std


def network_size(network: nn.Module) -> tuple[int, int]:
    """(H, W) of the images that a timm network takes: what it was built for, else what it was trained on."""
    settings: Any = network.pretrained_cfg
    built = getattr(getattr(network, "patch_embed", None), "img_size", None)
    height, width = built or settings["input_size"][1:]
    return height, width

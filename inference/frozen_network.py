"""Maps of features of a frozen network: a timm network, or a small transformer of random weights (docs/decoders.md)."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from psa.errors import ConfigError
from psa.inference.config import FeaturesConfig
from psa.inference.timm_networks import network_size, normalised, timm_network

SMALL = "small"
Shape = tuple[int, int, int]


class PatchTransformer(nn.Module):
    """A small vision transformer: patches of 4 x 4 pixels, learned positions, torch's encoder layers, a last norm.

    For runs that should need nothing from elsewhere: its weights are random, by a seed.

    Args:
        size: Pixels a side of its images, a multiple of 4.
        hidden_dim: Features.
        num_layers: Layers, of 4 heads.
    """

    def __init__(self, size: int = 32, hidden_dim: int = 32, num_layers: int = 2) -> None:
        super().__init__()
        if size % 4 or hidden_dim % 4:
            raise ValueError(f"features.options: size and hidden_dim must be multiples of 4, got {size}, {hidden_dim}")
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, size, size)}
        self.patches = nn.Conv2d(3, hidden_dim, 4, stride=4)
        self.positions = nn.Parameter(0.5 * torch.randn((size // 4) ** 2, hidden_dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(hidden_dim, 4, 2 * hidden_dim, 0.0, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward_features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens features"]:
        """(B, N, hidden), row-major."""
        found = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            found = layer(found)
        return self.norm(found)


@dataclass(frozen=True)
class FrozenNetwork:
    """A network that is not trained, and what it is.

    Attributes:
        maps: Images (B, 3, H, W) in [0, 1] -> features (B, F, rows, columns), on the images' device.
        shape: (F, rows, columns).
        checksum: SHA-256 of its weights, names and values.
        name: Its architecture and options, in words.
    """

    maps: Callable[[Tensor], Tensor]
    shape: Shape
    checksum: str
    name: str


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_network(settings: FeaturesConfig) -> FrozenNetwork:
    """The network that a configuration names, with its weights from a local file; nothing is downloaded.

    Raises:
        ConfigError: If there is no such architecture, the weights are not to be had or not the network's, or are others
            than those that the configuration was written with.
        PsaError: If timm is needed and not installed.
    """
    network: nn.Module
    if settings.architecture == SMALL:
        network = _small(settings)
    elif settings.weights is None:
        raise ConfigError(f"features.weights: expected a safetensors file of {settings.architecture}, got none")
    else:
        network = timm_network(settings.architecture, Path(settings.weights), settings.options)
    network.eval().requires_grad_(False)
    found = FrozenNetwork(
        maps=lambda images: feature_maps(network.to(images.device), images),
        shape=_shape(network),
        checksum=weights_checksum(network.state_dict()),
        name=f"{settings.architecture} {dict(sorted(settings.options.items()))}",
    )
    if settings.checksum is not None and settings.checksum != found.checksum:
        raise ConfigError(
            f"features.weights: expected the weights that the run was made with (SHA-256 {settings.checksum[:12]}...), "
            f"got others ({found.checksum[:12]}...)"
        )
    return found


def _small(settings: FeaturesConfig) -> PatchTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = PatchTransformer(**settings.options)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"features.options: expected those of small ({error})") from None
    if settings.weights is not None:
        try:
            network.load_state_dict(load_file(settings.weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ConfigError(
                f"features.weights: expected a safetensors file of the small network of features.options, "
                f"got {settings.weights} ({reason})"
            ) from None
    return network


@torch.no_grad()
def feature_maps(
    network: nn.Module, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channels rows columns"]:
    """The last features of a network as a map: of a vision transformer those of its patches, without other tokens.

    Images are resized to the network's size and normalised as it was trained.

    Raises:
        ConfigError: If its features are no grid.
    """
    found = network.forward_features(normalised(network, images))  # type: ignore[operator]
    if found.ndim == 4:
        return found
    patches = found[:, getattr(network, "num_prefix_tokens", 0) :].transpose(1, 2)
    height, width = network_size(network)
    rows = round((patches.shape[2] * height / width) ** 0.5)
    if rows == 0 or patches.shape[2] % rows:
        raise ConfigError(
            f"features.architecture: expected a grid of features, got {patches.shape[2]} of {height} x {width} pixels"
        )
    return patches.unflatten(2, (rows, patches.shape[2] // rows))


def _shape(network: nn.Module) -> Shape:
    height, width = network_size(network)
    channels, rows, columns = feature_maps(network, torch.zeros(1, 3, height, width)).shape[1:]
    return channels, rows, columns

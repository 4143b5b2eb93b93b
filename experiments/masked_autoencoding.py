"""A small vision transformer that learns from images alone, by masked autoencoding, so that it can be frozen.

Most patches are hidden; the transformer sees the others, and two more layers tell the hidden pixels from what it makes
of them (He et al. 2022, arXiv 2111.06377). No label takes part. It stands in for a network such as DINO, whose weights
are not to be had here: what it says of a patch must tell of the object around it.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from safetensors.torch import save
from torch import Tensor, nn

from psa.files import write_atomically
from psa.inference.frozen_network import PatchTransformer

PATCH = 4


@dataclass(frozen=True)
class MaskedAutoencoding:
    """The network and how it learns.

    Attributes:
        size: Pixels a side.
        hidden_dim: F.
        num_layers: Of the network.
        steps: Of AdamW.
        batch_size: Images a step.
        learning_rate: After a warm-up of 100 steps; a cosine takes it to 0.
        hidden_share: Of the patches.
        seed: Of weights, images and hidden patches.
    """

    size: int = 32
    hidden_dim: int = 64
    num_layers: int = 3
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    hidden_share: float = 0.6
    seed: int = 0

    @property
    def options(self) -> dict[str, int]:
        """``features.options`` of the network."""
        return {"size": self.size, "hidden_dim": self.hidden_dim, "num_layers": self.num_layers}


class MaskedAutoencoder(nn.Module):
    """The network, and the two layers that are thrown away."""

    def __init__(self, settings: MaskedAutoencoding) -> None:
        super().__init__()
        dim = settings.hidden_dim
        self.network = PatchTransformer(**settings.options)
        self.network.positions = nn.Parameter(0.5 * waves(settings.size // PATCH, dim), requires_grad=False)
        self.seen = nn.Linear(dim, dim)
        self.hidden = nn.Parameter(0.02 * torch.randn(dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3 * PATCH**2))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], order: Int64[Tensor, "batch tokens"], num_seen: int
    ) -> Float[Tensor, "batch hidden pixels"]:
        """What is told of the hidden patches' pixels, (B, hidden, 48), in their order.

        Args:
            images: In [-1, 1].
            order: A permutation of each image's patches; the first ``num_seen`` are seen.
            num_seen: At least 1, and fewer than there are.
        """
        network, positions = self.network, self.network.positions
        seen, hidden = order[:, :num_seen, None], order[:, num_seen:, None]
        found = network.patches(images).flatten(2).transpose(1, 2) + positions
        found = found.gather(1, seen.expand(-1, -1, found.shape[2]))
        for layer in network.layers:
            found = layer(found)
        found = self.seen(network.norm(found))
        tokens = self.hidden.expand(len(images), len(positions), -1)
        tokens = tokens.scatter(1, seen.expand_as(found), found) + positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.gather(1, hidden.expand(-1, -1, tokens.shape[2])))

    def loss(
        self, images: Float[Tensor, "batch 3 height width"], order: Int64[Tensor, "batch tokens"], num_seen: int
    ) -> Float[Tensor, ""]:
        """Mean squared error of what is told."""
        told, hidden = self(images, order, num_seen), order[:, num_seen:, None]
        pixels = rearrange(images, "b c (r p) (k q) -> b (r k) (c p q)", p=PATCH, q=PATCH)
        return (told - pixels.gather(1, hidden.expand_as(told))).square().mean()


def waves(side: int, features: int) -> Float[Tensor, "tokens features"]:
    """Sines and cosines of row and column, (side^2, features): positions of which near ones are alike."""
    rates = 100.0 ** (-torch.arange(features // 4) / (features // 4))
    row, column = (
        place.flatten()[:, None] * rates
        for place in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    )
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)


def learn(
    settings: MaskedAutoencoding, images: Float[Tensor, "images 3 height width"], device: str = "cpu"
) -> MaskedAutoencoder:
    """The autoencoder after training on images in [0, 1]; a function of both, and of the device's rounding."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = MaskedAutoencoder(settings).to(device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], settings.learning_rate)
    tokens = len(model.network.positions)
    for step in range(settings.steps):
        rate = 0.5 * (1.0 + math.cos(math.pi * step / settings.steps)) * min(1.0, (step + 1) / 100)
        optimiser.param_groups[0]["lr"] = settings.learning_rate * rate
        chosen = torch.randint(len(images), (settings.batch_size,), generator=generator)
        order = torch.rand(settings.batch_size, tokens, generator=generator).argsort(1)
        num_seen = round(tokens * (1.0 - settings.hidden_share))
        loss = model.loss((2.0 * images[chosen] - 1.0).to(device), order.to(device), num_seen)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.cpu()


def kept_weights(
    settings: MaskedAutoencoding,
    images: Float[Tensor, "images 3 height width"],
    folder: Path,
    device: str = "cpu",
) -> Path:
    """A file of the network's weights, which is made where it is missing: whoever comes first makes it, all alike."""
    pixels = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    identity = json.dumps({**asdict(settings), "pixels": pixels}, sort_keys=True)
    path = folder / f"masked-autoencoder-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.safetensors"
    if not path.exists():
        weights = {
            name: value.contiguous() for name, value in learn(settings, images, device).network.state_dict().items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(save(weights)))
    return path

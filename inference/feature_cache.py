"""Features of images, computed once and kept in a file; training reads them in the images' place (docs/decoders.md)."""

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psa.data import as_float
from psa.errors import RunError
from psa.files import write_atomically
from psa.inference.frozen_network import FrozenNetwork
from psa.inference.images import ImageSet
from psa.progress import watched

CHUNK = 64
DATASET, IDENTITY = "features", "identity"


@dataclass(frozen=True)
class FeatureImages(ImageSet):
    """Images whose batches are their maps of features, read from a file.

    Attributes:
        path: The file, which :func:`with_features` wrote.
        places: (M,), of the images in the file.
    """

    path: Path = Path()
    places: Int64[Tensor, " images"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def part(self, index: Tensor | slice) -> "FeatureImages":
        """Some of them."""
        masks, classes = (None if values is None else values[index] for values in (self.masks, self.classes))
        return replace(self, images=self.images[index], masks=masks, classes=classes, places=self.places[index])

    def batch(self, index: Tensor | slice) -> Float[Tensor, "batch channels rows columns"]:
        """Maps of some images."""
        places = self.places[index].numpy()
        order, inverse = np.unique(places, return_inverse=True)  # rows are read in rising order
        with _opened(self.path) as file:
            return torch.from_numpy(file[DATASET][order])[torch.from_numpy(inverse)]


def identity_of(images: ImageSet, network: FrozenNetwork) -> dict[str, object]:
    """What features are of: the images as they were prepared, and the network with its weights."""
    pixels = hashlib.sha256(images.images.contiguous().numpy().data).hexdigest()
    return {
        "images": list(images.images.shape),
        "pixels": pixels,
        "network": network.name,
        "weights": network.checksum,
        "shape": list(network.shape),
    }


def with_features(images: ImageSet, network: FrozenNetwork, folder: Path) -> FeatureImages:
    """The images with their features from a file of the folder; where there is none, they are computed and kept.

    The file's name is a hash of the images' pixels, the network and its weights, so that features are never taken for
    those of something else; it appears when it is complete.

    Raises:
        RunError: If the file holds something else or cannot be read, or cannot be written.
    """
    identity = json.dumps(identity_of(images, network), sort_keys=True)
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.h5"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: _write(temporary, images, network, identity))
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    expected = (len(images), *network.shape)
    with _opened(path) as file:
        found = file.attrs.get(IDENTITY)
        if found != identity or DATASET not in file or file[DATASET].shape != expected:
            raise RunError(f"{path}: expected the features of these images by {network.name}, found something else")
    known = {part.name: getattr(images, part.name) for part in fields(ImageSet)}
    return FeatureImages(**known, path=path, places=torch.arange(len(images)))


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise RunError(f"{path}: expected a file of features, got one that cannot be read ({error})") from None


def _write(path: Path, images: ImageSet, network: FrozenNetwork, identity: str) -> None:
    with h5py.File(path, "w") as file:
        file.attrs[IDENTITY] = identity
        rows = file.create_dataset(DATASET, (len(images), *network.shape), "float32", chunks=(1, *network.shape))
        starts = range(0, len(images), CHUNK)
        for start in watched(starts, f"features of {len(images)} images"):
            part = slice(start, min(start + CHUNK, len(images)))
            rows[part] = network.maps(as_float(images.images[part])).numpy()

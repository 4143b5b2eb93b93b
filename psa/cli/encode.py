"""``psa encode``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import psa
from psa.cli.common import JsonOption, print_result, progress_bar, staged
from psa.data import open_images
from psa.errors import ConfigError
from psa.files import write_atomically
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import ImageStream
from psa.npz_columns import write_columns

CHUNK = 64


def encode(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    path: Annotated[Path, typer.Argument(help="An image, a folder of images, an HDF5 or TFRecord file.")],
    out: Annotated[Path, typer.Option(help="The NPZ file to write.")],
    json: JsonOption = False,
) -> None:
    """Write the slots (M, K, D), masks (M, K, H, W), weights (M, K) and sources of a user's images.

    Images are cropped and resized as the run's own were; their order is that of ``source``.
    """
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out}: expected a file ending in .npz")
    autoencoder = psa.load(run)
    dataset = open_images(path, size=autoencoder.size, crop=autoencoder.config.data.crop or "none")
    images = ImageStream(dataset, workers=autoencoder.config.data.workers)
    with progress_bar() as bar, staged(out) as stage:
        task = bar.add_task(f"encoding {path}", total=len(images), figures="")
        rows = _encoded(autoencoder, images, lambda done: bar.update(task, completed=done))

        def packing(done: int, total: int) -> None:
            bar.update(task, description=f"packing {out}, bytes", completed=done, total=total)

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, lambda temporary: write_columns(temporary, rows, len(images), stage, packing))
    print_result({"out": str(out), "images": len(images), "slots": autoencoder.model.num_slots}, "psa encode", json)


def _encoded(
    autoencoder: SlotAutoencoder, images: ImageStream, progress: Callable[[int], None]
) -> Iterator[dict[str, np.ndarray]]:
    """Slots, masks, weights and sources, a chunk of images at a time."""
    source = images.dataset.source
    width = max(len(source(index)) for index in range(len(images)))  # of an array's strings, all of one length
    done = 0
    with images.chunks(CHUNK) as chunks:
        for chunk in chunks:
            posterior, slots, masks = autoencoder.encode(chunk.images)
            span = range(done, done + len(chunk))
            done = span.stop
            yield {
                "slots": slots.numpy(),
                "masks": masks.numpy(),
                "weights": posterior.weights.numpy(),
                "source": np.array([source(index) for index in span], f"U{width}"),
            }
            progress(done)

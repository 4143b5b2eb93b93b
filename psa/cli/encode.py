"""``psa encode``."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import psa
from psa.cli.common import JsonOption, print_result, progress_bar
from psa.data import collate, open_images
from psa.errors import ConfigError
from psa.files import write_atomically

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
    slots, masks, weights = [], [], []
    with progress_bar() as bar:
        task = bar.add_task(f"encoding {path}", total=len(dataset), figures="")
        for start in range(0, len(dataset), CHUNK):
            index = range(start, min(start + CHUNK, len(dataset)))
            posterior, chunk_slots, chunk_masks = autoencoder.encode(collate(dataset.__getitems__(index)).images)
            slots.append(chunk_slots)
            masks.append(chunk_masks)
            weights.append(posterior.weights)
            bar.update(task, completed=index.stop)
    source = np.array([dataset.source(i) for i in range(len(dataset))])

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.savez_compressed(
                handle,
                slots=torch.cat(slots).numpy(),
                masks=torch.cat(masks).numpy(),
                weights=torch.cat(weights).numpy(),
                source=source,
            )

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, write)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print_result({"out": str(out), "images": len(dataset), "slots": autoencoder.model.num_slots}, "psa encode", json)

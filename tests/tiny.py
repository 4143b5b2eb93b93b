"""The smallest runs: scenes of 16 x 16 pixels, a model that trains in milliseconds, and ways to write both to disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image

from psa.data import SpriteOptions, Sprites
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.config import RunConfig, override, parse_config
from psa.inference.images import ImageSet, read_images
from psa.inference.training import Progress, Trainer, seed_everything
from psa.runs import RunDirectory

SIZE = 16
SETTINGS = (
    "encoder.channels=8",
    "encoder.num_layers=1",
    "slots.num_slots=3",
    "slots.slot_dim=8",
    "slots.num_iterations=2",
    "decoder.kind=patch",
    "decoder.patch=4",
    "decoder.hidden_dim=16",
    "decoder.num_layers=1",
    "training.steps=20",
    "training.batch_size=4",
    "training.warmup_steps=2",
    "training.evaluate_every=10",
    "training.checkpoint_every=10",
    "training.num_held_out=6",
    "training.threads=1",
)
SPRITES = ("data.size=16", "data.num_scenes=20")

# Named here, not taken from the recipe, which may change.
QUERIES: dict[str, Any] = {
    "variant": "psa",
    "overrides": {"initialiser": "queries", "readout": "query-mlp", "power": 0.25, "variance_floor": 0.01},
}
WITH_KL: dict[str, Any] = {"slots": QUERIES, "objective": {"sample": True, "kl_weight": 1.0, "sigma": 0.7}}
WITHOUT_KL: dict[str, Any] = {"slots": QUERIES, "objective": {"sample": False, "kl_weight": 0.0, "sigma": 0.3}}
DRAWN_MEANS: dict[str, Any] = {"slots": {"variant": "psa"}, "objective": {"sample": True, "kl_weight": 1.0}}


def tiny_config(values: dict[str, Any], *settings: str) -> RunConfig:
    return parse_config(override(values, [*SETTINGS, *SPRITES, *settings]))


def tiny_images(count: int, split: str = "train", seed: int = 0, masks: bool = True) -> ImageSet:
    images = read_images(Sprites(SpriteOptions(size=SIZE), split, count, seed))
    return images if masks else ImageSet(images.images, None, ())


def tiny_autoencoder(values: dict[str, Any], *settings: str, seed: int = 0) -> SlotAutoencoder:
    seed_everything(seed)
    return build_autoencoder(tiny_config(values, *settings), (SIZE, SIZE))


def tiny_trainer(
    values: dict[str, Any],
    *settings: str,
    path: Path | None = None,
    progress: Progress | None = None,
    num_images: int = 20,
    masks: bool = True,
) -> Trainer:
    """A trainer at step 0 with a run directory at ``path``, its weights drawn from seed 0."""
    config = tiny_config(values, *settings)
    autoencoder = tiny_autoencoder(values, *settings)
    run = None
    if path is not None:
        run = RunDirectory(path)
        run.create()
        run.write_config(config.to_toml())
    held_out = tiny_images(6, "val", masks=masks)
    return Trainer(autoencoder, tiny_images(num_images, masks=masks), held_out, config.training, run, progress)


def write_folder(root: Path, count: int = 12, *, masks: bool = True, size: int = SIZE) -> Path:
    """A folder of PNG scenes; masks beside them under masks/."""
    scenes = Sprites(SpriteOptions(size=max(size, 8)), "train", count)
    (root / "images").mkdir(parents=True)
    for index in range(count):
        scene = scenes[index]
        Image.fromarray(scene.image[:size, :size].copy()).save(root / "images" / f"{index:03}.png")
        if masks:
            (root / "masks").mkdir(exist_ok=True)
            assert scene.mask is not None
            Image.fromarray(scene.mask[:size, :size].astype(np.uint8)).save(root / "masks" / f"{index:03}.png")
    return root


def write_hdf5(path: Path, count: int = 12, *, masks: bool = True) -> Path:
    scenes = tiny_images(count)
    assert scenes.masks is not None
    with h5py.File(path, "w") as file:
        file["image"] = scenes.images.numpy()
        if masks:
            file["mask"] = scenes.masks.numpy()[..., None].astype(np.uint8)
    return path


def options(settings: Sequence[str]) -> list[str]:
    """Settings as the command line takes them."""
    return [part for setting in settings for part in ("--set", setting)]


def same_weights(one: SlotAutoencoder, other: SlotAutoencoder) -> bool:
    """Whether two models hold the same numbers, bit by bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

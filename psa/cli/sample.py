"""``psa sample``."""

import json as json_text
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

import psa
from psa.cli.common import DataOption, JsonOption, print_json, staged, write_line
from psa.cli.priors import build_with_progress
from psa.errors import ConfigError
from psa.inference.autoencoder import SCHEMES, SlotAutoencoder
from psa.inference.sampling import ImageSlots, edited_scenes, image_slots
from psa.inference.sessions import prepared_as, stream_images
from psa.models.scene_prior import BACKGROUND, OBJECT, ROLES, ScenePrior, SlotDraw
from psa.records import DecodedScene
from psa.report.files import save
from psa.report.samples import samples_figure
from psa.runs import RunDirectory

RECORD, PICTURE, ARRAYS = "samples.json", "samples.png", "samples.npz"


def sample(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Scenes.")] = 16,
    scheme: Annotated[
        str, typer.Option(help="scene: a background and a number of objects; independent: every slot from the mixture.")
    ] = "scene",
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Factor of the components' covariances: 0 draws their means.")
    ] = 1.0,
    keep: Annotated[
        str | None, typer.Option(metavar="IMAGE:SLOTS", help="Slots of an image that stay: 3:0,2, 3:objects, 3:all.")
    ] = None,
    others: Annotated[
        str, typer.Option(help="Of the image's other slots: resample, remove, or another image's number.")
    ] = "resample",
    add: Annotated[int, typer.Option(min=0, help="New objects beside what is kept.")] = 0,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Of the images: train, val, test, or all of a folder or file.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers; the same seed gives the same bytes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder of the results; left out, RUN/samples.")] = None,
    json: JsonOption = False,
) -> None:
    """Draw new scenes from a run's aggregate prior, or new variants of one image.

    Writes a picture, the slots and masks, and which component of the prior each slot came from. With --keep it says
    which of the image's slots are the background and objects; --keep IMAGE:all shows the image as it is.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"--scheme {scheme}: expected one of {', '.join(SCHEMES)}")
    if not math.isfinite(temperature):
        raise ConfigError(f"--temperature {temperature}: expected a number of at least 0")
    if keep is None and (add or others != "resample"):
        raise ConfigError("--add and --others: expected --keep IMAGE:SLOTS with them")
    autoencoder = psa.load(run)
    if autoencoder.config.encoder.kind == "features":
        raise ConfigError(f"{run}: decodes features, not pixels: there is no picture to draw")
    if autoencoder.scene_prior is None:
        with RunDirectory(run).held():
            build_with_progress(autoencoder, RunDirectory(run))
    assert autoencoder.scene_prior is not None
    generator = torch.Generator().manual_seed(seed)
    if keep is None:
        draw = autoencoder.draw(n, scheme, temperature, generator)
    else:
        images = _Images(autoencoder, data, split)
        draw = _edited(images, keep, others, (n, add), (generator, temperature))
    record = {
        "run": str(run),
        "scheme": scheme if keep is None else f"keep {keep}, others {others}, add {add}",
        "temperature": temperature,
        "seed": seed,
        "scenes": _described(draw, autoencoder.scene_prior),
    }
    folder = out or run / "samples"
    _save(folder, draw, autoencoder.realise(draw, generator), record)
    write_line(f"{len(draw.slots)} scenes ({record['scheme']}): {PICTURE}, {ARRAYS}, {RECORD} are in {folder}")
    if json:
        print_json({**record, "out": str(folder)})


class _Images(NamedTuple):
    autoencoder: SlotAutoencoder
    data: str | None
    split: str

    def slots(self, option: str, text: str) -> ImageSlots:
        """The slots of the image of a number that a user gave."""
        if not text.isdecimal():
            raise ConfigError(f"{option}: expected the number of an image, got {text!r}")
        images = stream_images(self.autoencoder, prepared_as(self.autoencoder, self.data), self.split)
        if len(images) <= int(text):
            raise ConfigError(f"{option}: expected an image in 0..{len(images) - 1} of split {self.split}, got {text}")
        found = image_slots(self.autoencoder, images.pick([int(text)]).images[0])
        named = (f"{ROLES[role]} {', '.join(map(str, found.of_role(role))) or 'none'}" for role in (BACKGROUND, OBJECT))
        write_line(f"image {text} of {self.split}, its slots: {'; '.join(named)}; the others are empty")
        return found


def _edited(
    images: _Images,
    keep: str,
    others: str,
    numbers: tuple[int, int],
    noise: tuple[torch.Generator, float],
) -> SlotDraw:
    number, colon, text = keep.partition(":")
    if not colon:
        raise ConfigError(f"--keep {keep}: expected IMAGE:SLOTS, such as 3:0,2 or 3:objects")
    image = images.slots(f"--keep {keep}", number)
    rest = others if others in ("resample", "remove") else images.slots(f"--others {others}", others)
    prior = images.autoencoder.scene_prior
    assert prior is not None
    n, add = numbers
    try:
        kept = image.chosen(text)
        return edited_scenes(prior, image, kept, n, rest, add, *noise)
    except ValueError as error:
        raise ConfigError(f"--keep {keep}: {error}") from None


def _described(draw: SlotDraw, prior: ScenePrior) -> list[list[dict[str, Any]]]:
    """Of each scene its slots that are decoded: number, component, and the component's role; null where kept."""
    return [
        [
            {
                "slot": slot,
                "component": int(component) if component >= 0 else None,
                "role": ROLES[int(prior.roles[component])] if component >= 0 else None,
            }
            for slot, component in enumerate(components)
            if draw.active[scene, slot]
        ]
        for scene, components in enumerate(draw.component)
    ]


def _save(folder: Path, draw: SlotDraw, scene: DecodedScene, record: Mapping[str, Any]) -> None:
    """All three files, or none of them."""
    pictures = (scene.mean.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    with staged(folder) as stage:
        samples_figure(pictures.numpy(), scene.labels.numpy(), draw.slots.shape[1], stage / PICTURE)
        with open(stage / ARRAYS, "wb") as handle:
            np.savez_compressed(
                handle,
                images=pictures.numpy(),
                slots=draw.slots.numpy(),
                masks=scene.masks.numpy(),
                active=draw.active.numpy(),
                component=draw.component.numpy(),
            )
        save(stage / RECORD, (json_text.dumps(dict(record), indent=2) + "\n").encode())
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ARRAYS, PICTURE, RECORD):
            os.replace(stage / name, folder / name)

"""Scenes composed of the dSprites file's shapes: what its path opens as, since it holds single shapes and no scenes."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, SupportsIndex

from psa.data.description import Scene, SceneDataset
from psa.data.multi_dsprites import MultiDsprites, MultiDspritesOptions
from psa.data.npz_arrays import array_names
from psa.data.prepare import Preparation
from psa.data.sprites import SPLIT_CODES

LOOK = tuple(field.name for field in fields(MultiDspritesOptions) if field.name != "shapes")
OPTIONS = ("seed", "num_scenes", *LOOK)


class DspritesScenes(SceneDataset):
    """Multi-dSprites scenes, held in memory, of the shapes in a file; factors as :class:`MultiDsprites` has them.

    Args:
        path: The dSprites file.
        split: train, val or test, streams of the seed; all is the three, one after the other.
        preparation: What is done to each image and mask.
        options: num_scenes of each stream, seed, and the fields of ``MultiDspritesOptions``.
    """

    def __init__(
        self, path: str | Path, split: str = "train", preparation: Preparation | None = None, **options: Any
    ) -> None:
        look = MultiDspritesOptions(shapes=path, **{name: options.pop(name) for name in LOOK if name in options})
        streams = tuple(SPLIT_CODES) if split == "all" else (split,)
        self._path = Path(path)
        self._parts = [MultiDsprites(look, stream, preparation=preparation, **options) for stream in streams]
        self.info = replace(self._parts[0].info, name=self._path.stem)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: SupportsIndex) -> Scene:
        part, place = self._place(index)
        return part[place]

    def source(self, index: SupportsIndex) -> str:
        """The file, with the stream and the number of the scene that was composed of it."""
        part, place = self._place(index)
        return f"{self._path}: {part.source(place)}"

    def _place(self, index: SupportsIndex) -> tuple[MultiDsprites, int]:
        part, place = divmod(range(len(self))[index], len(self._parts[0]))
        return self._parts[part], place


def recognises(path: Path) -> bool:
    """Whether it is an .npz that holds the dSprites file's arrays, by their names."""
    return path.suffix.lower() == ".npz" and path.is_file() and array_names(path) >= {"imgs", "latents_values"}

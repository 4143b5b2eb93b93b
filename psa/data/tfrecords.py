"""DeepMind's multi-object data sets from their TFRecord files, without TensorFlow."""

from pathlib import Path
from typing import SupportsIndex

import numpy as np

from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.gzip_streams import MAX_STATES
from psa.data.prepare import Preparation
from psa.data.record_framing import Limits, RecordFile, open_records
from psa.data.splits import split_indices
from psa.data.tf_examples import parse_example
from psa.data.tfrecord_layouts import recognise, to_scene
from psa.errors import DataError

TFRECORD_SUFFIXES = (".tfrecord", ".tfrecords")
FEWEST_STATES = 8  # of a GZIP file in a folder of many; together they keep about as many as one file


class TfrecordScenes(SceneDataset):
    """The scenes of one file, or of a folder of shards of one layout, divided by a fixed permutation.

    The first record tells the layout; the others are read, and their sums checked, when an item is asked for. Mask
    label e is entity e: 0 is the background (0 to 3 in ObjectsRoom), and an entity that is not visible has no pixel.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        path = Path(path)
        self._preparation = preparation or Preparation()
        shards = find_shards(path) or [path]
        limits = Limits(states=max(FEWEST_STATES, MAX_STATES // len(shards)))
        self._files = [open_records(shard, limits) for shard in shards]
        self._starts = np.cumsum([0, *map(len, self._files)])
        self._rows = split_indices(int(self._starts[-1]), split, str(path))
        self._layout = recognise(read_features(self._files[0], 0), self._files[0].source(0))
        self.info = DatasetInfo(
            kind="scenes",
            name=path.resolve().stem,
            size=self._preparation.result_size(self._layout.height, self._layout.width),
            background_labels=tuple(range(self._layout.num_background)),
            num_slots=self._layout.num_entities,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        file, record = self._place(index)
        features, source = read_features(file, record), file.source(record)
        found = recognise(features, source)
        if found != self._layout:
            raise DataError(
                f"{source}: expected {self._layout.name} of {self._layout.num_entities} entities as in the first "
                f"record, got {found.name} of {found.num_entities}"
            )
        scene = to_scene(features, self._layout, source)
        assert scene.mask is not None
        return Scene(self._preparation.image(scene.image), self._preparation.mask(scene.mask), scene.factors)

    def source(self, index: SupportsIndex) -> str:
        """The file with the number of the scene's record in it."""
        file, record = self._place(index)
        return file.source(record)

    def _place(self, index: SupportsIndex) -> tuple[RecordFile, int]:
        row = int(self._rows[index])
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._files[shard], row - int(self._starts[shard])


def recognises(path: Path) -> bool:
    """Whether it is a file that ends as TFRecords do, or a folder that holds such files."""
    return (path.suffix.lower() in TFRECORD_SUFFIXES and path.is_file()) or bool(find_shards(path))


def find_shards(folder: Path) -> list[Path]:
    """The TFRecord files of a folder by name, without hidden ones; none of what is no folder."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in TFRECORD_SUFFIXES)
        return [path for path in paths if path.is_file() and path.name[0] != "."]
    except OSError:
        return []


def read_features(file: RecordFile, record: int) -> dict[str, np.ndarray]:
    """The features of a record by name, each (values,) of uint8, float32 or int64; a list of bytes is joined.

    Raises:
        DataError: The record is damaged, or no tf.train.Example.
    """
    data = file[record]
    try:
        return parse_example(data)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file.source(record)}: expected a tf.train.Example, got {reason}") from error

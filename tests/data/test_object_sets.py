"""Sets of objects are what the scenes' factors say."""

from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pytest
import torch
from layouts import write_clevr
from tolerances import assert_close

from psa.data import ClevrScenes, DatasetInfo, Scene, SceneDataset, SpriteOptions, Sprites
from psa.data.object_sets import CLEVR, SPRITES, Category, ObjectProperties, read_objects
from psa.data.sprites import PALETTE
from psa.errors import DataError


class Listed(SceneDataset):
    """Scenes of given factors."""

    def __init__(self, *factors: dict[str, list], num_slots: int | None = None) -> None:
        self.info = DatasetInfo("scenes", "listed", (8, 8), (0,), num_slots)
        self._factors = [{name: np.array(values) for name, values in scene.items()} for scene in factors]

    def __len__(self) -> int:
        return len(self._factors)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        return Scene(np.zeros((8, 8, 3), np.uint8), None, self._factors[int(index)])

    def source(self, index: SupportsIndex) -> str:
        return f"listed[{int(index)}]"


KIND = ObjectProperties({"kind": Category(3)}, {"x": (-2.0, 2.0)})
ONE = {"kind": [1, 3], "x": [-2.0, 1.0], "visibility": [1, 1]}


def test_objects_of_sprites_have_the_colours_that_are_painted():
    sprites = Sprites(SpriteOptions(size=16), "train", 40)
    found = read_objects(sprites, SPRITES, limit=30)
    assert found.categories.shape == (30, 4, 2)
    assert found.coordinates.shape == (30, 4, 3)
    turns = torch.tensor(sorted(PALETTE.values()), dtype=torch.float64)
    for i, o in found.presence.nonzero().tolist():
        shape, hue = found.categories[i, o].tolist()
        assert shape == sprites.factors["shape"][i, o] - 1
        assert_close(turns[hue], torch.tensor(float(sprites.factors["hue"][i, o]), dtype=torch.float64), 1e-6)
        place = [sprites.factors[name][i, o] for name in ("x", "y", "size")]
        assert_close(found.coordinates[i, o], torch.tensor(np.array(place)))
    assert found.presence.sum(1).tolist() == sprites.factors["num_objects"][:30].tolist()
    assert not found.coordinates[found.presence == 0].any()
    assert not found.categories[found.presence == 0].any()


def test_objects_of_clevr_are_in_the_papers_units(tmp_path: Path):
    scenes = ClevrScenes(write_clevr(tmp_path, 4), "train")
    found = read_objects(scenes, CLEVR)
    assert found.presence.sum(1).tolist() == [0, 1, 2, 3]
    factors = scenes[3].factors
    assert factors is not None
    codes = np.stack([factors[name][:3] - 1 for name in ("color", "material", "shape", "size")], 1)
    assert found.categories[3, :3].tolist() == codes.tolist()
    assert CLEVR.num_codes == (8, 2, 3, 2)
    units = torch.from_numpy(np.stack([factors[name][:3] for name in ("x", "y", "z")], 1))
    assert_close(6 * found.coordinates[3, :3] - 3, units, 1e-5)


def test_a_row_of_the_background_is_no_object():
    rows = {"kind": [9, 1, 3], "x": [7.0, -2.0, 1.0], "visibility": [1, 1, 0]}
    found = read_objects(Listed(rows, num_slots=3), KIND)
    assert found.presence.tolist() == [[1.0, 0.0]]
    assert found.categories.tolist() == [[[0], [0]]]
    assert found.coordinates.tolist() == [[[0.0], [0.0]]]


def test_factors_may_be_of_one_kind_alone():
    counted = {name: values for name, values in ONE.items() if name != "visibility"} | {"num_objects": 1}
    places = read_objects(Listed(counted), ObjectProperties({}, KIND.coordinates))
    kinds = read_objects(Listed(counted), ObjectProperties(KIND.categories, {}))
    assert places.categories.shape == (1, 2, 0)
    assert kinds.coordinates.shape == (1, 2, 0)
    assert places.presence.tolist() == kinds.presence.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": [1, 4]}, r"listed\[1\]: kind: expected one of 3 values, got 4"),
        ({"kind": [1, 2.5]}, r"listed\[1\]: kind: expected one of 3 values, got 2.5"),
        ({"x": [-2.0, 2.5]}, r"listed\[1\]: x: expected a value from -2 to 2, got 2.5"),
    ],
)
def test_an_object_outside_of_the_properties_is_named(change: dict[str, list], message: str):
    with pytest.raises(DataError, match=message):
        read_objects(Listed(ONE, ONE | change), KIND)
    hidden = ONE | change | {"visibility": [1, 0]}
    assert read_objects(Listed(ONE, hidden), KIND).presence.tolist() == [[1.0, 1.0], [1.0, 0.0]]


def test_a_scene_that_lacks_a_factor_is_named():
    with pytest.raises(DataError, match=r"listed\[0\]: expected factors kind, x, found no x"):
        read_objects(Listed({"kind": [1]}), KIND)
    with pytest.raises(DataError, match="expected a factor visibility or num_objects, found neither"):
        read_objects(Listed({"kind": [1], "x": [0.0]}), KIND)

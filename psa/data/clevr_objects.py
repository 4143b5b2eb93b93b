"""The objects that CLEVR's scene files, and ClevrTex's, list: as arrays with a row an object, padded with zeros.

Names become codes. What has few values has a code of one to their number, in the order given here; a material of
ClevrTex, of which no complete list is published with the data, has the CRC-32 of its name.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psa.data.json_files import take, take_numbers
from psa.errors import DataError

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
PLACES = {
    "num_objects": "how many rows of the other factors are objects; those after them are zeros",
    "x": "scene units of Blender, along the ground",
    "y": "scene units of Blender, along the ground, at right angles to x",
    "z": "scene units of Blender, the middle's height above the ground",
    "rotation": "degrees about the vertical axis, 0 to 360",
    "pixel_coords": "column and row of the middle, in pixels before crop and resize; depth in scene units",
}


@dataclass(frozen=True)
class ObjectCodes:
    """What names of a data set's objects stand for.

    Attributes:
        names: For each key of an object whose value is a name, the names in the order of their codes from 1; none for
            a key whose code is the CRC-32 of the name.
        max_objects: The most objects of a scene, which is the number of rows.
    """

    names: Mapping[str, Sequence[str]]
    max_objects: int

    def factors(self) -> dict[str, str]:
        """What each factor is, by name."""
        return PLACES | {key: _legend(names) for key, names in self.names.items()}


def object_factors(record: object, codes: ObjectCodes, source: str) -> dict[str, np.ndarray]:
    """The factors of one scene: ``num_objects``, places as float32 and codes as int64, a row an object.

    Args:
        record: The scene as its JSON has it.
        codes: Of its data set.
        source: What to name in the error.

    Raises:
        DataError: A key that is missing or of another kind, an unknown name, or too many objects.
    """
    objects, rows = take(record, "objects", list, source), codes.max_objects
    if len(objects) > rows:
        raise DataError(f"{source}: expected at most {rows} objects, got {len(objects)}")
    columns: dict[str, np.ndarray] = {name: np.zeros(rows, np.float32) for name in ("x", "y", "z", "rotation")}
    columns["pixel_coords"] = np.zeros((rows, 3), np.float32)
    columns |= {key: np.zeros(rows, np.int64) for key in codes.names}
    for row, item in enumerate(objects):
        where = f"{source}: object {row}"
        columns["x"][row], columns["y"][row], columns["z"][row] = take_numbers(item, "3d_coords", 3, where)
        columns["rotation"][row] = take_numbers(item, "rotation", 1, where)[0]
        columns["pixel_coords"][row] = take_numbers(item, "pixel_coords", 3, where)
        for key, names in codes.names.items():
            columns[key][row] = name_code(take(item, key, str, where), names, f"{where}: {key!r}")
    return {"num_objects": np.array(len(objects))} | columns


def name_code(name: str, names: Sequence[str], source: str) -> int:
    """A name's place in the list from 1, or with an empty list its CRC-32.

    Raises:
        DataError: A name that is not in the list.
    """
    if not names:
        return zlib.crc32(name.encode(errors="replace"))
    if name not in names:
        raise DataError(f"{source}: expected one of {', '.join(names)}, got {name[:40]!r}")
    return names.index(name) + 1


def _legend(names: Sequence[str]) -> str:
    if not names:
        return "the CRC-32 of the name; 0 no object"
    return ", ".join(f"{code} {name}" for code, name in enumerate(names, 1)) + "; 0 no object"

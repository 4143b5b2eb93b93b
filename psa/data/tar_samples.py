"""Shards of scenes: tar files in which the members of a scene share a key, the name up to its first dot."""

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from psa.data.npy_arrays import array_from
from psa.data.splits import split_indices
from psa.data.tar_members import MAX_MEMBER_BYTES, Member, read_members
from psa.errors import DataError
from psa.progress import watched

TAR_SUFFIX = ".tar"


@dataclass(frozen=True)
class Sample:
    """The members of one scene, by their extensions: what follows the key's dot in their names, in small letters."""

    shard: Path
    key: str
    members: dict[str, Member]

    def find(self, extensions: Sequence[str]) -> str | None:
        """The first of some extensions that there is."""
        return next((extension for extension in extensions if extension in self.members), None)

    def source(self, extension: str | None = None) -> str:
        """The shard with the key, or with the member's name, in it."""
        return f"{self.shard}[{self.key}{'' if extension is None else '.' + extension}]"

    def read(self, extension: str) -> bytes:
        """A member's bytes, unpacked where it is GZIP.

        Raises:
            DataError: It cannot be read, or unpacks to more than ``MAX_MEMBER_BYTES``.
        """
        member, source = self.members[extension], self.source(extension)
        try:
            with open(self.shard, "rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
            if extension.endswith(".gz"):
                data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_MEMBER_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"{source}: expected a readable member, got {reason}") from error
        if len(data) > MAX_MEMBER_BYTES:
            raise DataError(f"{source}: expected at most {MAX_MEMBER_BYTES} bytes when unpacked, got more")
        return data

    def read_array(self, extension: str) -> NDArray[Any]:
        """A member that is an array, .npy or .npy.gz, of numbers."""
        return array_from(self.read(extension), self.source(extension))


def find_samples(root: Path, split: str) -> list[Sample]:
    """The scenes of a split of a tar file or a folder of them.

    Shards in ``train``, ``val`` and ``test`` are those splits; otherwise one fixed permutation divides the scenes.

    Raises:
        DataError: There are none, or the shards cannot be read.
    """
    folders = {} if root.is_file() or find_shards(root) else split_folders(root)
    if not folders:
        samples = _read_all(find_shards(root) or [root], root)
        return [samples[i] for i in split_indices(len(samples), split, str(root))]
    if split not in (*folders, "all"):
        raise DataError(f"{root}: expected a folder {split} of shards, found {', '.join(folders)} only")
    return _read_all([shard for name in folders if split in (name, "all") for shard in folders[name]], root)


def find_shards(folder: Path) -> list[Path]:
    """What ends in .tar in a folder, by name, without what is hidden; none of what is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() == TAR_SUFFIX and path.name[0] != ".")
    except OSError:
        return []


def split_folders(root: Path) -> dict[str, list[Path]]:
    """The shards of each split's folder that has any."""
    found = {name: find_shards(root / name) for name in ("train", "val", "test")}
    return {name: shards for name, shards in found.items() if shards}


def _read_all(shards: Sequence[Path], root: Path) -> list[Sample]:
    found = watched(shards, f"opening {root.name}, shards")
    samples = [sample for shard in found for sample in _read_samples(shard)]
    if not samples:
        raise DataError(f"{root}: expected members such as KEY.image.npy.gz, found none")
    return samples


def _read_samples(shard: Path) -> list[Sample]:
    samples: dict[str, Sample] = {}
    for member in read_members(shard):
        folder, slash, name = member.name.rpartition("/")
        if name.startswith((".", "__")):  # hidden, or webdataset's own notes
            continue
        stem, _, extension = name.partition(".")
        key = f"{folder}{slash}{stem}"
        sample = samples.setdefault(key, Sample(shard, key, {}))
        if extension.lower() in sample.members:
            raise DataError(f"{sample.source(extension)}: expected one member of that name, found two")
        sample.members[extension.lower()] = member
    return list(samples.values())

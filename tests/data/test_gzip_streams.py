"""Any place of a GZIP file's content, against Python's gzip of the whole."""

import gzip
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psa.data import gzip_streams
from psa.data.gzip_streams import GzipContent


@pytest.fixture(autouse=True)
def near_states(monkeypatch):
    """States every 512 bytes, of parts of 100, so that small files have many."""
    for name, value in (("LEAST_SPACING", 512), ("SKIPPED_BYTES", 100), ("READ_BYTES", 64)):
        monkeypatch.setattr(gzip_streams, name, value)


def content_of(parts: list[bytes], padding: int = 0) -> bytes:
    """A member a part, zeros behind each."""
    return b"".join(gzip.compress(part, mtime=0) + bytes(padding) for part in parts)


def some_bytes(count: int, seed: int = 0) -> bytes:
    """Half of them zeros, so that packing is worth while."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, count) * rng.integers(0, 2, count)).astype(np.uint8).tobytes()


def read(content: GzipContent, offset: int, count: int) -> bytes:
    with content.stream() as stream:
        stream.seek(offset)
        return stream.read(count)


PLACES = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 900)), max_size=12)


@given(PLACES, st.lists(st.integers(0, 4000), min_size=1, max_size=4), st.sampled_from([0, 7, 300]), st.integers(2, 9))
def test_any_place_in_any_order_is_that_of_the_whole(tmp_path_factory, places, lengths, padding, max_states):
    path = tmp_path_factory.mktemp("packed") / "a.gz"
    parts = [some_bytes(length, seed) for seed, length in enumerate(lengths)]
    path.write_bytes(content_of(parts, padding))
    whole = gzip.decompress(path.read_bytes())
    assert whole == b"".join(parts)
    content = GzipContent(path, max_states)
    for offset, count in places:
        assert read(content, offset, count) == whole[offset : offset + count]
        assert len(content._places) <= max_states
    assert read(content, 0, len(whole) + 1) == whole


def test_zeros_and_matches_that_are_longer_than_what_is_asked_for(tmp_path):
    """A decompressor that stops within a match has bytes to give without input."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(100_000), mtime=0))
    content = GzipContent(path)
    for offset in (99_999, 5, 50_000, 3):
        assert read(content, offset, 12) == bytes(min(12, 100_000 - offset))


@pytest.fixture
def restarts(monkeypatch) -> list[int]:
    """The places that reading began anew from, and those that were kept."""
    copied: list[int] = []
    original = gzip_streams._copied

    def counted(place):
        copied.append(place.unpacked)
        return original(place)

    monkeypatch.setattr(gzip_streams, "_copied", counted)
    return copied


def test_reading_in_order_goes_through_the_file_once_and_back_no_further_than_a_state(tmp_path, restarts):
    whole = some_bytes(20_000)
    (tmp_path / "a.gz").write_bytes(content_of([whole]))
    content = GzipContent(tmp_path / "a.gz")
    for offset in range(0, 20_000, 50):
        assert read(content, offset, 40) == whole[offset : offset + 40]
    kept = [place.unpacked for place in content._places[1:]]
    assert len(kept) >= 20
    assert restarts == kept  # those copies were made to be kept
    restarts.clear()
    assert read(content, 15_000, 10) == whole[15_000:15_010]
    assert len(restarts) == 1
    assert 15_000 - 2 * 512 < restarts[0] <= 15_000


def test_few_states_are_spread_over_the_whole(tmp_path):
    (tmp_path / "a.gz").write_bytes(content_of([some_bytes(40_000)]))
    content = GzipContent(tmp_path / "a.gz", max_states=8)
    read(content, 39_999, 1)
    gaps = np.diff([*(place.unpacked for place in content._places), 40_000])
    assert 4 <= len(gaps) <= 8
    assert gaps.max() <= 40_000 / 2


@pytest.mark.parametrize("members", [1, 30])
def test_a_pickled_copy_reads_the_same(tmp_path, members):
    whole = some_bytes(20_000)
    size = 20_000 // members
    (tmp_path / "a.gz").write_bytes(content_of([whole[i : i + size] for i in range(0, 20_000, size)]))
    content = GzipContent(tmp_path / "a.gz")
    read(content, 12_000, 10)
    copy = pickle.loads(pickle.dumps(content))
    assert (len(copy._places) > 1) == (members > 1)  # the start of a member needs no state
    for offset in (17_000, 3, 9000):
        assert read(copy, offset, 99) == read(content, offset, 99) == whole[offset : offset + 99]


def test_a_file_that_ends_too_soon_or_is_damaged_says_so_and_other_places_can_be_read_afterwards(tmp_path):
    whole = some_bytes(20_000)
    packed = bytearray(content_of([whole]))
    path = tmp_path / "a.gz"
    path.write_bytes(packed[: len(packed) // 2])
    content = GzipContent(path)
    with pytest.raises(EOFError, match="ended before"):
        read(content, 19_000, 10)
    assert read(content, 4000, 10) == whole[4000:4010]
    packed[-5] ^= 1  # of the sum over all
    path.write_bytes(packed)
    content = GzipContent(path)
    assert read(content, 19_000, 10) == whole[19_000:19_010]
    with pytest.raises(zlib.error, match="incorrect data check"):
        read(content, 19_000, 2000)
    path.write_bytes(content_of([whole]) + b"no member")
    with pytest.raises(zlib.error, match="incorrect header check"):
        read(GzipContent(path), 19_000, 2000)


def test_no_file_is_the_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read(GzipContent(tmp_path / "a.gz"), 0, 1)

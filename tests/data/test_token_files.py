import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from psa.data import open_images
from psa.data.token_files import MAX_ABS, read_tokens
from psa.errors import DataError


def saved(path: Path, array: np.ndarray, **others: np.ndarray) -> Path:
    """As .npy, or in an .npz as ``tokens`` behind others."""
    if path.suffix == ".npz":
        np.savez(path, **others, tokens=array)
    else:
        np.save(path, array)
    return path


def refused(path: Path, *words: object, **options: int) -> None:
    """One line that names the file and holds the words."""
    with pytest.raises(DataError) as caught:
        read_tokens(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert ": expected " in message
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


NUMBERS = st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_, np.dtype(">f8")])


@given(
    NUMBERS.flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(min_dims=1, max_dims=3, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False, "max_value": 1e4, "min_value": -1e4}
            if np.dtype(dtype).kind == "f"
            else None,
        )
    ),
    st.sampled_from([".npy", ".npz"]),
    st.booleans(),
)
def test_what_is_saved_is_read_as_float64(tmp_path_factory, array, suffix, fortran):
    path = saved(
        tmp_path_factory.mktemp("tokens") / f"tokens{suffix}", np.asarray(array, order="F" if fortran else "C")
    )
    images = array if array.ndim == 3 else array.reshape(1, len(array), -1)
    for item, image in enumerate(images):
        found = read_tokens(path, item=item)
        assert found.values.dtype == np.float64
        assert found.picture is None
        np.testing.assert_array_equal(found.values, image)
    refused(path, f"item {len(images)}", f"0 to {len(images) - 1}", item=len(images))


def test_of_several_arrays_the_one_called_tokens_is_taken(tmp_path):
    tokens, others = np.arange(6.0).reshape(3, 2), np.zeros(9)
    np.testing.assert_array_equal(read_tokens(saved(tmp_path / "a.npz", tokens, labels=others)).values, tokens)
    np.savez(tmp_path / "b.npz", anything=tokens)
    np.testing.assert_array_equal(read_tokens(tmp_path / "b.npz").values, tokens)
    np.savez(tmp_path / "c.npz", one=tokens, other=tokens)
    refused(tmp_path / "c.npz", "called tokens", "one, other")
    np.savez(tmp_path / "d.npz")
    refused(tmp_path / "d.npz", "none")


def test_a_picture_becomes_its_pixels_row_by_row(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.PNG")
    found = read_tokens(tmp_path / "picture.PNG", size=4)
    assert found.picture is not None
    np.testing.assert_array_equal(found.picture, picture)
    for token, values in enumerate(found.values):
        row, column = divmod(token, 4)
        np.testing.assert_allclose(values, [(column + 0.5) / 4, (row + 0.5) / 4, *picture[row, column] / 255])


def test_any_picture_becomes_a_square_of_the_size_asked_for(tmp_path):
    Image.new("L", (9, 5), 255).save(tmp_path / "grey.jpg")
    found = read_tokens(tmp_path / "grey.jpg", size=3)
    assert found.values.shape == (9, 5)
    np.testing.assert_array_equal(found.values[:, 2:], 1.0)
    refused(tmp_path / "grey.jpg", "item 0", "item 1", item=1)


def test_pictures_are_read_as_by_the_other_commands(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 30, 3), dtype=np.uint8)).save(path)
    np.testing.assert_array_equal(read_tokens(path, size=8).picture, open_images(path, size=8)[0].image)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 4, 5)), "(2, 3, 4, 5)"),
        (np.array(3.0), "()"),
        (np.zeros((0, 3)), "(0, 3)"),
        (np.zeros((3, 0)), "(3, 0)"),
        (np.zeros((0, 3, 2)), "(0, 3, 2)"),
        (np.zeros((3, 2), complex), "complex128"),
        (np.array(["a", "b"]), "<U1"),
        (np.zeros(3, "datetime64[s]"), "datetime64"),
        (np.zeros(3, [("x", float)]), "'x'"),
        (np.array([[0, 1], [2, np.nan], [np.inf, 3]]), "nan in feature 1 of token 1"),
        (np.array([0.0, -np.inf]), "-inf in feature 0 of token 1"),
        (np.array([1.0, 10 * MAX_ABS]), "1e+101 in feature 0 of token 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_that_cannot_be_tokens_is_named_with_what_it_is(tmp_path, array, words, suffix):
    refused(saved(tmp_path / f"tokens{suffix}", array), words)


def test_a_nan_of_another_image_does_not_matter(tmp_path):
    images = np.zeros((2, 3, 2))
    images[1, 2, 0] = np.nan
    path = saved(tmp_path / "tokens.npy", images)
    assert read_tokens(path, item=0).values.shape == (3, 2)
    refused(path, "nan in feature 0 of token 2", item=1)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "sprung"))


@pytest.mark.parametrize("kind", ["object.npy", "object.npz", "pickle.npy", "pickle.npz"])
def test_nothing_is_unpickled(tmp_path, kind):
    path, sprung = tmp_path / kind, tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(Trap(sprung)))
    elif path.suffix == ".npz":
        np.savez(path, tokens=trap, allow_pickle=True)
    else:
        np.save(path, trap, allow_pickle=True)
    refused(path, "a readable .np" if kind.startswith("pickle") else "pickled Python objects")
    assert not sprung.exists()


def numpy_bytes(suffix: str) -> bytes:
    buffer = io.BytesIO()
    array = np.arange(600.0).reshape(300, 2)
    np.savez(buffer, tokens=array) if suffix == ".npz" else np.save(buffer, array)
    return buffer.getvalue()


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
@pytest.mark.parametrize("kept", [0, 3, 20, 0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path, suffix, kept):
    whole = picture_bytes() if suffix == ".png" else numpy_bytes(suffix)
    path = tmp_path / f"tokens{suffix}"
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    refused(path, "an empty file" if kept == 0 else "got")


def test_a_damaged_archive_is_named(tmp_path):
    whole = bytearray(numpy_bytes(".npz"))
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "tokens.npz").write_bytes(whole)
    refused(tmp_path / "tokens.npz", "BadZipFile")


def test_a_header_that_promises_too_much_is_no_crash(tmp_path):
    path = saved(tmp_path / "tokens.npy", np.zeros((3, 2)))
    path.write_bytes(path.read_bytes().replace(b"(3, 2), }           ", b"(3000000000000, 2), }"[:20]))
    refused(path, "a readable .npy file")
    path = saved(tmp_path / "tokens.npy", np.zeros((3, 2)))
    path.write_bytes(path.read_bytes().replace(b"(3, 2), }" + b" " * 12, b"(3000000000000, 2), }"))
    refused(path, "expected 48000000000000 bytes for an array of shape (3000000000000, 2), got 48")


def test_what_is_no_such_file_is_named(tmp_path):
    refused(tmp_path / "nowhere.npy", "nothing of that name")
    refused(tmp_path, "a folder")
    (tmp_path / "tokens.csv").write_text("1,2")
    refused(tmp_path / "tokens.csv", ".npy, .npz, .png, .jpg, .jpeg")
    (tmp_path / "tokens.npy").write_text("1,2")
    refused(tmp_path / "tokens.npy", "a readable .npy file")

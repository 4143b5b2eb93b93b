import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from fuzzing import fuzz
from PIL import ExifTags, Image
from png_bytes import chunk, png

from psa.data import FolderScenes, Preparation, open_dataset
from psa.data.image_files import MAX_PIXELS
from psa.errors import DataError
from psa.metrics import num_objects

RNG = np.random.default_rng(0)


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(height: int = 6, width: int = 9) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)


def labels(height: int = 6, width: int = 9) -> np.ndarray:
    return RNG.integers(0, 5, (height, width)).astype(np.uint8)


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


def fill(root: Path, images: str, masks: str | None, num_items: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(picture(), labels()) for _ in range(num_items)]
    for i, (image, mask) in enumerate(pairs):
        write(root / images / f"{i:02}.png", image)
        if masks is not None:
            write(root / masks / f"{i:02}.png", mask)
    return pairs


def holds(dataset: FolderScenes, pairs: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    return len(dataset) == len(pairs) and all(
        np.array_equal(scene.image, image) and np.array_equal(scene.mask, mask)
        for scene, (image, mask) in zip(dataset, pairs, strict=True)
    )


@pytest.mark.parametrize(("images", "masks"), [("", "masks"), ("images", "masks"), ("image", "mask")])
def test_a_folder_without_splits_holds_its_pictures_by_name(tmp_path, images, masks):
    pairs = fill(tmp_path, images, masks)
    dataset = FolderScenes(tmp_path, "all")
    assert holds(dataset, pairs)
    assert (dataset.info.name, dataset.info.size) == (tmp_path.name, (6, 9))
    assert (dataset.info.background_labels, dataset.info.num_slots) == ((0,), None)
    assert dataset.source(1) == str(tmp_path / images / "01.png")


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("image", "mask")])
def test_a_folder_with_splits_keeps_them_and_all_is_their_union(tmp_path, images, masks):
    pairs = {split: fill(tmp_path / split, images, masks, 2) for split in ("test", "val", "train")}
    for split, expected in pairs.items():
        assert holds(FolderScenes(tmp_path, split), expected)
    assert holds(FolderScenes(tmp_path, "all"), pairs["train"] + pairs["val"] + pairs["test"])


def test_splits_of_a_flat_folder_are_disjoint_and_cover(tmp_path):
    fill(tmp_path, "", None, 23)
    sources = {}
    for split in ("train", "val", "test", "all"):
        dataset = FolderScenes(tmp_path, split)
        sources[split] = [dataset.source(i) for i in range(len(dataset))]
    assert sorted(sources["train"] + sources["val"] + sources["test"]) == sources["all"]
    assert [len(sources[split]) for split in ("train", "val", "test", "all")] == [19, 2, 2, 23]


def test_two_pictures_can_only_be_taken_whole(tmp_path):
    fill(tmp_path, "", None, 2)
    with pytest.raises(DataError, match=r": expected at least 3 images .*, got 2; use split 'all'"):
        FolderScenes(tmp_path, "train")
    assert len(FolderScenes(tmp_path, "all")) == 2


def test_pictures_need_no_masks(tmp_path):
    fill(tmp_path, "", None)
    dataset = FolderScenes(tmp_path, "all")
    assert dataset[0].mask is None
    assert dataset.info.background_labels == ()


def test_extensions_of_any_case_count_and_hidden_or_other_files_do_not(tmp_path):
    for name in ("a.PNG", "b.Jpg", "c.jpeg", "d.JPEG", "e.png"):
        write(tmp_path / name, picture())
    for name in ("._e.png", "notes.txt"):
        (tmp_path / name).write_text("no picture")
    assert len(FolderScenes(tmp_path, "all")) == 5


def test_crop_and_resize_treat_image_and_mask_alike(tmp_path):
    mask = np.zeros((20, 44), np.uint8)
    mask[:10, 12:22] = 7
    mask[10:, 22:32] = 9
    write(tmp_path / "a.png", np.repeat(mask[..., None], 3, axis=2) * 20)
    write(tmp_path / "masks" / "a.png", mask)
    dataset = FolderScenes(tmp_path, "all", Preparation((40, 40), "center"))
    scene = dataset[0]
    assert dataset.info.size == scene.mask.shape == (40, 40)
    assert set(scene.mask.flat) == {0, 7, 9}
    inner = [(9, 9, 7), (30, 30, 9), (9, 30, 0), (30, 9, 0)]
    for row, column, label in inner:
        assert scene.mask[row, column] == label
        assert (scene.image[row, column] == label * 20).all()


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path, orientation):
    image = picture()
    upright = TURNED[orientation](image)
    write(tmp_path / "a.png", image, exif=oriented(orientation))
    write(tmp_path / "b.jpg", image, exif=oriented(orientation), quality=100, subsampling=0)
    write(tmp_path / "masks" / "a.png", upright[..., 0])
    write(tmp_path / "masks" / "b.png", upright[..., 0])
    dataset = FolderScenes(tmp_path, "all")
    assert dataset.info.size == upright.shape[:2]
    assert np.array_equal(dataset[0].image, upright)
    assert np.abs(dataset[1].image.astype(int) - upright).max() < 20
    assert np.array_equal(dataset[1].mask, upright[..., 0])


def test_an_orientation_hidden_behind_the_pixels_is_told_when_they_are_read(tmp_path):
    data = write(tmp_path / "a.png", picture()).read_bytes()
    exif = chunk(b"eXIf", oriented(6).tobytes().removeprefix(b"Exif\x00\x00"))
    (tmp_path / "a.png").write_bytes(data[:-12] + exif + data[-12:])
    with pytest.raises(DataError, match=r"a\.png: expected 6x9 .* as its header said, got 9x6"):
        FolderScenes(tmp_path, "all")[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_every_mode_become_rgb(tmp_path, mode):
    gray = np.where(labels() > 2, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.repeat(gray[..., None], 3, axis=2)).convert(mode)
    image.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), **({"quality": 100} if mode == "CMYK" else {}))
    read = FolderScenes(tmp_path, "all")[0].image
    assert np.abs(read.astype(int) - gray[..., None]).max() <= (8 if mode == "CMYK" else 0)


def test_sixteen_bit_gray_keeps_its_high_byte(tmp_path):
    values = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    write(tmp_path / "a.png", values)
    assert np.array_equal(FolderScenes(tmp_path, "all")[0].image, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_a_palette_with_transparency_becomes_rgb(tmp_path):
    image = Image.fromarray(picture()).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    assert np.array_equal(FolderScenes(tmp_path, "all")[0].image, np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_integer_masks_are_read_as_they_are(tmp_path, mode):
    mask = labels() > 2 if mode == "1" else labels().astype(np.uint16 if mode == "I;16" else np.uint8)
    mask[0, 0] = 40000 if mode == "I;16" else 0
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
    assert image.mode == mode
    write(tmp_path / "a.png", picture())
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / "a.PNG")
    read = FolderScenes(tmp_path, "all")[0].mask
    assert read.dtype == np.int64
    assert np.array_equal(read, mask)


def test_a_mask_of_0_and_255_is_one_object(tmp_path):
    pixels = np.where(labels() > 2, 255, 0).astype(np.uint8)
    write(tmp_path / "a.png", picture())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(png(pixels))
    dataset = FolderScenes(tmp_path, "all")
    np.testing.assert_array_equal(dataset[0].mask, pixels)
    assert num_objects(torch.from_numpy(dataset[0].mask)[None], dataset.info.background_labels).tolist() == [1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("with_black", [True, False])
def test_each_colour_of_an_rgb_mask_is_a_label_and_black_is_zero(tmp_path, mode, with_black):
    colours = np.array([(0, 0, 0), (0, 0, 255), (0, 255, 0), (9, 0, 0), (255, 0, 0)], np.uint8)
    mask = labels() if with_black else labels() % 4 + 1
    write(tmp_path / "a.png", picture())
    (tmp_path / "masks").mkdir()
    Image.fromarray(colours[mask]).convert(mode).save(tmp_path / "masks" / "a.png")
    assert np.array_equal(FolderScenes(tmp_path, "all")[0].mask, mask)


def test_a_gray_mask_with_transparency_is_refused(tmp_path):
    fill(tmp_path, "", None, 1)
    write(tmp_path / "masks" / "00.png", np.zeros((6, 9, 2), np.uint8))
    with pytest.raises(
        DataError, match=r"masks/00\.png: expected a mask of integers or RGB colours, got image mode LA"
    ):
        FolderScenes(tmp_path, "all")[0]


def test_the_first_picture_without_a_mask_is_named(tmp_path):
    fill(tmp_path, "", "masks")
    for name in ("01.png", "03.png"):
        (tmp_path / "masks" / name).unlink()
    with pytest.raises(DataError, match=r"01\.png: expected a mask 01\.png, .* found none \(2 of 4 images lack one\)$"):
        FolderScenes(tmp_path, "train")


def test_masks_of_one_split_alone_are_refused_only_for_all(tmp_path):
    fill(tmp_path / "train", "images", "masks", 2)
    fill(tmp_path / "val", "images", None, 2)
    assert FolderScenes(tmp_path, "train")[0].mask is not None
    assert FolderScenes(tmp_path, "val")[0].mask is None
    with pytest.raises(DataError, match=r"val/images/00\.png: expected a mask 00\.png"):
        FolderScenes(tmp_path, "all")


def test_a_split_that_is_not_there_is_named(tmp_path):
    fill(tmp_path / "train", "images", None, 2)
    with pytest.raises(DataError, match=r": expected a folder val/images for split 'val', found train only$"):
        FolderScenes(tmp_path, "val")


def test_a_mask_of_another_size_is_refused_at_once(tmp_path):
    write(tmp_path / "a.png", picture())
    write(tmp_path / "masks" / "a.png", labels(6, 8))
    with pytest.raises(
        DataError,
        match=r"masks/a\.png: expected 6x9 \(height x width\) as its image a\.png, got 6x8 \(height x width\)$",
    ):
        FolderScenes(tmp_path, "all", Preparation((4, 4)))


def test_mixed_sizes_are_refused_unless_they_end_the_same(tmp_path):
    write(tmp_path / "a.png", picture(6, 9))
    write(tmp_path / "b.png", picture(6, 9))
    write(tmp_path / "c.png", picture(6, 7))
    with pytest.raises(
        DataError, match=r"c\.png: expected 6x9 .* like a\.png, got 6x7 .*; data\.size=\.\.\. makes all"
    ):
        FolderScenes(tmp_path, "all")
    for preparation in (Preparation((4, 4)), Preparation(crop="center")):
        sizes = {scene.image.shape for scene in FolderScenes(tmp_path, "all", preparation)}
        assert len(sizes) == 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_picture_is_named_when_it_is_read(tmp_path, name):
    path = write(tmp_path / name, picture(60, 60))
    path.write_bytes(path.read_bytes()[:2000])
    dataset = FolderScenes(tmp_path, "all")
    with pytest.raises(DataError, match=rf"{name}: expected a readable PNG or JPEG image, got \w+: .*$") as caught:
        dataset[0]
    assert "\n" not in str(caught.value)


def test_a_picture_of_another_format_is_refused_whatever_its_name(tmp_path):
    write(tmp_path / "a.gif", labels()).rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected a readable PNG or JPEG image, got UnidentifiedImageError"):
        FolderScenes(tmp_path, "all")


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named_at_once(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: expected a readable PNG or JPEG image, got \w+"):
        FolderScenes(tmp_path, "all")


def test_an_unreadable_mask_is_named(tmp_path):
    path = write(tmp_path / "masks" / "a.png", RNG.integers(0, 256, (60, 60)).astype(np.uint8))
    write(tmp_path / "a.png", picture(60, 60))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"masks/a\.png: expected a readable PNG or JPEG image"):
        FolderScenes(tmp_path, "all")[0]


def claiming(height: int, width: int) -> bytes:
    """A PNG of a few bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(height * (width + 1)), 1)) if height * width < 10**9 else b""
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


# Above the limit here; where Pillow would warn; and where it would refuse.
@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize("is_mask", [False, True])
def test_a_picture_that_would_decode_to_too_much_is_refused_at_once(tmp_path, size, is_mask):
    image, mask = write(tmp_path / "a.png", picture()), write(tmp_path / "masks" / "a.png", labels())
    path = mask if is_mask else image
    path.write_bytes(claiming(*size))
    assert path.stat().st_size < 1 << 20
    message = (
        f"an image of at most {MAX_PIXELS} pixels" if max(size) < 60_000 else "a readable .* DecompressionBombError"
    )
    with pytest.raises(DataError, match=rf"^{path}: expected {message}"):
        FolderScenes(tmp_path, "all")


def test_the_largest_picture_allowed_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("psa.data.image_files.MAX_PIXELS", 54)
    write(tmp_path / "a.png", picture(6, 9))
    assert FolderScenes(tmp_path, "all")[0].image.shape == (6, 9, 3)
    write(tmp_path / "a.png", picture(5, 11))
    with pytest.raises(DataError, match=r"a\.png: expected an image of at most 54 pixels, got 5x11$"):
        FolderScenes(tmp_path, "all")


@pytest.mark.parametrize("target", ["itself.png", "nowhere.png", "b.png"])
def test_links_that_lead_nowhere_are_named_and_others_followed(tmp_path, target):
    write(tmp_path / "b.png", picture())
    link = tmp_path / "itself.png"
    link.symlink_to(tmp_path / target)
    if target == "b.png":
        assert len(FolderScenes(tmp_path, "all")) == 2
        return
    with pytest.raises(DataError, match=rf"^{link}: expected a picture, found a link that leads nowhere"):
        FolderScenes(tmp_path, "all")


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    write(tmp_path / "b.png", picture())
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected a picture, found .* no regular file$"):
        FolderScenes(tmp_path, "all")


@pytest.mark.parametrize("name", ["images", "masks"])
def test_a_loop_of_folders_ends(tmp_path, name):
    fill(tmp_path, "", None, 3)
    (tmp_path / name).symlink_to(tmp_path)
    dataset = open_dataset(tmp_path, "all")
    assert len(dataset) == 3
    assert (dataset[0].mask is None) == (name == "images")


@pytest.mark.parametrize(("folder", "twin"), [("", "01.jpg"), ("", "01.PNG"), ("masks", "01.PNG")])
def test_of_two_files_of_a_stem_one_is_named_where_there_are_masks(tmp_path, folder, twin):
    fill(tmp_path, "", "masks")
    write(tmp_path / folder / twin, labels())
    with pytest.raises(
        DataError, match=r"01\.(png|jpg|PNG): expected one file of that stem, .*, found 01\.(png|PNG|jpg)$"
    ):
        FolderScenes(tmp_path, "all")


def test_without_masks_two_files_of_a_stem_are_two_pictures(tmp_path):
    for name in ("a.png", "a.jpg", "a.b.png"):
        write(tmp_path / name, picture())
    assert len(FolderScenes(tmp_path, "all")) == 3


def test_damage_is_told_in_one_line_or_leaves_sound_scenes(tmp_path):
    found = fuzz(tmp_path, lambda root: tiny.write_folder(root, 3), lambda root: FolderScenes(root, "all"), range(20))
    assert set(found) == {"refused", "read"}


def test_a_picture_removed_after_opening_is_named(tmp_path):
    fill(tmp_path, "", None)
    dataset = FolderScenes(tmp_path, "all")
    (tmp_path / "02.png").unlink()
    with pytest.raises(DataError, match=r"02\.png: expected a readable PNG or JPEG image, got FileNotFoundError"):
        dataset[2]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: expected a folder of images, found none of that name$"):
        FolderScenes(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r": expected PNG or JPEG images in it, .* found none$"):
        FolderScenes(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r": expected a folder that can be listed, got Permission denied$"):
        FolderScenes(tmp_path)


def test_a_folder_within_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "images", "masks")
    stat = Path.stat

    def refuse(path, **options):
        if path.parent.name == "masks":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DataError, match=rf"^{tmp_path}/masks/00\.png: expected .* listed, got Permission denied$"):
        FolderScenes(tmp_path)

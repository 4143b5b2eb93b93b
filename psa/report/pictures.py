"""Arrays as pictures: colours for slots, cut-outs, pixel-exact scaling, PNG."""

import base64
import colorsys
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from matplotlib.figure import Figure
from PIL import Image

INK, FAINT, LINE = "#1f2937", "#6b7280", "#d1d5db"

# Neighbours in this order differ in hue and lightness; told apart with the common colour deficiencies up to eight.
_PALETTE = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#edc948",
    "#76b7b2",
    "#9c755f",
    "#ff9da7",
    "#79706e",
)
_BACKGROUND = "#c3c8d0"
_GOLDEN_RATIO = 0.6180339887
_CHECKER = (250, 232)


def colour(index: int) -> str:
    """The colour of a slot as "#rrggbb": the same everywhere, never repeated in the first thirty."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    rgb = colorsys.hls_to_rgb(index * _GOLDEN_RATIO % 1.0, 0.45 + 0.12 * (index % 3), 0.5)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def rgb(hexadecimal: str) -> UInt8[np.ndarray, " 3"]:
    """A "#rrggbb" as bytes."""
    return np.frombuffer(bytes.fromhex(hexadecimal.removeprefix("#")), dtype=np.uint8)


def scene_colours(labels: Int64[np.ndarray, "height width"], num_slots: int) -> list[str]:
    """The colours of a scene's slots.

    A slot keeps its colour through all scenes; only the slot that owns most of the image's rim, as a rule the
    background, is grey, so that the objects stand out.

    Args:
        labels: (H, W) in [0, num_slots), the slot that owns each pixel.
        num_slots: K.

    Returns:
        K times "#rrggbb", all different up to thirty slots.
    """
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    colours = [colour(index) for index in range(num_slots)]
    colours[int(np.bincount(rim).argmax())] = _BACKGROUND
    return colours


def label_picture(
    labels: Int64[np.ndarray, "height width"], slot_colours: Sequence[str]
) -> UInt8[np.ndarray, "height width 3"]:
    """Paint labels 0, 1, ... in the slots' colours; a label past the slots gets a colour that no slot has."""
    further = [colour(index) for index in range(len(slot_colours), int(labels.max()) + 1)]
    return np.stack([rgb(hexadecimal) for hexadecimal in [*slot_colours, *further]])[labels]


def labels_like(
    true: Int64[np.ndarray, "height width"], slots: Int64[np.ndarray, "height width"], num_slots: int
) -> Int64[np.ndarray, "height width"]:
    """Number true segments by the slots that cover them, so that one object has one colour in both pictures.

    Pairs of a segment and a slot are taken in order of intersection over union, each slot once. A segment left over
    gets a number from ``num_slots`` on, a colour that no slot has.

    Args:
        true: (H, W), any labels.
        slots: (H, W) in [0, num_slots), the slot that owns each pixel.
        num_slots: K.

    Returns:
        (H, W), the same partition as ``true``.
    """
    segments, compact = np.unique(true, return_inverse=True)
    compact = compact.reshape(true.shape)
    counts = np.bincount(compact.ravel() * num_slots + slots.ravel(), minlength=len(segments) * num_slots)
    overlap = counts.reshape(len(segments), num_slots).astype(np.float64)
    union = overlap.sum(axis=1, keepdims=True) + overlap.sum(axis=0, keepdims=True) - overlap
    iou = overlap / np.maximum(union, 1.0)
    numbers = np.full(len(segments), -1)
    while iou.size and iou.max() > 0:
        segment, slot = np.unravel_index(iou.argmax(), iou.shape)
        numbers[segment] = slot
        iou[segment, :] = iou[:, slot] = 0.0
    left_over = numbers < 0
    numbers[left_over] = num_slots + np.arange(left_over.sum())
    return numbers[compact]


def mask_picture(mask: Float32[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """A mask in grey: 0 black, 1 white."""
    return np.round(255 * mask.clip(0, 1)).astype(np.uint8)


def cut_out(
    picture: UInt8[np.ndarray, "height width 3"], mask: Float32[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 4"]:
    """A picture that is transparent where its mask is 0, RGBA."""
    return np.dstack([picture, mask_picture(mask)])


def on_checker(picture: UInt8[np.ndarray, "height width 4"], square: int) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a transparent picture over light grey squares of so many pixels."""
    rows, columns = np.indices(picture.shape[:2]) // square
    checker = np.where((rows + columns) % 2, *_CHECKER)[..., None]
    alpha = picture[..., 3:] / 255.0
    return np.round(alpha * picture[..., :3] + (1 - alpha) * checker).astype(np.uint8)


def scaled(picture: UInt8[np.ndarray, "..."], height: int, width: int) -> UInt8[np.ndarray, "..."]:
    """Scale to so many pixels: up by repeating pixels, down by averaging them."""
    enlarged = height >= picture.shape[0] and width >= picture.shape[1]
    resample = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((width, height), resample))


def png_data_uri(picture: UInt8[np.ndarray, "..."]) -> str:
    """A grey (H, W), colour (H, W, 3) or transparent (H, W, 4) picture as the text of an ``img``'s ``src``."""
    return data_uri(png(picture))


def png(picture: UInt8[np.ndarray, "..."]) -> bytes:
    """A grey (H, W), colour (H, W, 3) or transparent (H, W, 4) picture as a PNG; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """The bytes of a PNG as the text of an ``img``'s ``src``."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def figure_png(figure: Figure) -> bytes:
    """Render a matplotlib figure at its own resolution; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()

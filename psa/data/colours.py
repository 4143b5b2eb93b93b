"""Colours of generated scenes: from hue, saturation and value, and nearer to their background's."""

import numpy as np
from jaxtyping import Float64, UInt8


def from_hsv(hsv: Float64[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB bytes of a hue in turns (0 red, 1/3 green, 2/3 blue), a saturation and a value, each in [0, 1]."""
    hue, saturation, value = hsv[..., :1], hsv[..., 1:2], hsv[..., 2:]
    from_channel = (6 * hue - np.array([0, 2, 4]) + 3) % 6 - 3  # in sixths of a turn, -3 to 3
    saturated = np.clip(2 - np.abs(from_channel), 0, 1)
    return np.round(255 * value * (1 - saturation * (1 - saturated))).astype(np.uint8)


def camouflaged(
    colour: UInt8[np.ndarray, "scenes objects 3"], ground: UInt8[np.ndarray, "scenes 3"], share: float
) -> UInt8[np.ndarray, "scenes objects 3"]:
    """Each object's colour moved by a share of the way to its background's."""
    near = ground[:, None].astype(np.float64)
    return np.round(near + (1 - share) * (colour - near)).astype(np.uint8)

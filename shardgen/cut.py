"""Where samples are cut out of a field, and which of them are background: pure functions."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bie_stream.codecs import Pixels
from bie_stream.compiled import compiled

SIGNAL_SHARE = 0.01  # of a sample's pixels that have to reach a level, or it is background: 25 pixels across in 224


def grid(shape: tuple[int, int], tile: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Top left corners of tiles side by side; what is left over at the right and bottom edges is not taken.

    Args:
        shape, tile: height and width, in pixels.
    """
    (height, width), (down, across) = shape, tile
    return tuple(
        (top, left) for top in range(0, height - down + 1, down) for left in range(0, width - across + 1, across)
    )


def around(
    centres: npt.NDArray[np.float64], tile: tuple[int, int], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Top left corners [N, 2] of tiles whose centres are nearest to these [N, 2], and which [N] lie in the field."""
    corners = np.floor(centres - (np.array(tile) - 1) / 2 + 0.5).astype(np.int64)
    inside = ((corners >= 0) & (corners + np.array(tile) <= np.array(shape))).all(axis=1)
    return corners, inside


def is_background(sample: Pixels, levels: Mapping[int, float]) -> bool:
    """Whether in none of these channels of a sample [C, Y, X] enough pixels reach the channel's level."""
    enough = SIGNAL_SHARE * sample[0].size
    return bool(levels) and all(np.count_nonzero(sample[c] >= level) < enough for c, level in levels.items())


def binned(pixels: Pixels, side: int) -> Pixels:
    """[C, Y / side, X / side]: means over squares of pixels, of integers rounded half up; an incomplete square at the
    right or bottom edge is not taken."""
    if side == 1:
        return pixels
    channels, height, width = pixels.shape
    out = np.empty((channels, height // side, width // side), pixels.dtype)
    for channel, channel_out in zip(pixels, out, strict=True):
        _mean_of_squares(channel, side, 0.5 if out.dtype.kind == "u" else 0.0, channel_out)
    return out


@compiled
def _mean_of_squares(pixels: Pixels, side: int, half: float, out: Pixels) -> None:
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            total = 0.0
            for dy in range(side):
                for dx in range(side):
                    total += pixels[y * side + dy, x * side + dx]
            out[y, x] = total / (side * side) + half

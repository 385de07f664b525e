"""Rotation and scale: pixels taken from between the pixels of a sample, natively and as parameters for DALI.

Bilinear in float32, at matrix · offset + centre (see `bie_stream.augment.View`). A place outside the sample counts as
the nearest one inside: the one border that DALI's `warp_affine` has, besides a constant.
"""

import numpy as np

from bie_stream.augment import Doubles, Floats, Integers, View, reach
from bie_stream.codecs import Pixels
from bie_stream.compiled import compiled


def centre(view: View, crop: tuple[int, int]) -> Doubles:
    """[B, 2] centre of each crop, y and x in pixels; 0 is the centre of the first pixel."""
    return np.stack([view.top, view.left], axis=1) + (np.asarray(crop) - 1) / 2


def window(matrix: Doubles, about: Doubles, shapes: Integers, crop: tuple[int, int]) -> tuple[Integers, Integers]:
    """Corner and size [B, 2] of the part of each sample of which a crop is made, y and x in pixels.

    Args:
        matrix, about: [B, 2, 2] and [B, 2], of a view and of `centre`.
        shapes: [B, 2] of the samples.
    """
    beyond = reach(matrix, crop)
    corner = np.floor(about - beyond).clip(0, shapes - 1).astype(np.int64)
    end = np.floor(about + beyond).clip(0, shapes - 1).astype(np.int64)
    return corner, np.minimum(end + 2, shapes) - corner


def dali_matrix(matrix: Doubles, about: Doubles, corner: Integers, crop: tuple[int, int]) -> Floats:
    """[B, 2, 3] for DALI's `fn.warp_affine` of windows with this corner: x before y, 0 at the first pixel's edge."""
    edge = about - corner + 0.5 - np.einsum("bij,j->bi", matrix, np.asarray(crop) / 2)
    by_y_and_x = np.concatenate([matrix, edge[:, :, None]], axis=2)
    return np.ascontiguousarray(by_y_and_x[:, ::-1, [1, 0, 2]], np.float32)


@compiled
def sample(
    pixels: Pixels, channels: Integers, matrix: Doubles, about: Doubles, shift: Floats, scale: Floats, out: Floats
) -> None:
    """Writes one image: bilinear, then (x − shift) · scale, in float32. For Python and for compiled functions.

    Args:
        pixels: [C, Y, X] uint8, uint16 or float32, of one sample.
        channels: [D] which of them; -1 for zeros, whatever shift and scale.
        matrix, about: [2, 2] and [2], of a view and of `centre`.
        shift, scale: [D] float32.
        out: [D, Y', X'] float32.
    """
    bottom, right = pixels.shape[1] - 1, pixels.shape[2] - 1
    height, width = out.shape[1:]
    above, below, before, behind = np.empty((4, width), np.uint32)
    down, across = np.empty((2, width), np.float32)
    for y in range(height):
        for x in range(width):
            dy, dx = y - (height - 1) / 2, x - (width - 1) / 2
            at_y = min(max(about[0] + matrix[0, 0] * dy + matrix[0, 1] * dx, 0.0), bottom)
            at_x = min(max(about[1] + matrix[1, 0] * dy + matrix[1, 1] * dx, 0.0), right)
            row, column = int(at_y), int(at_x)
            above[x], below[x], down[x] = row, min(row + 1, bottom), at_y - row
            before[x], behind[x], across[x] = column, min(column + 1, right), at_x - column
        for c in range(len(channels)):
            if channels[c] < 0:
                out[c, y] = 0
                continue
            plane, line = pixels[channels[c]], out[c, y]
            for x in range(width):
                a, b = np.float32(plane[above[x], before[x]]), np.float32(plane[above[x], behind[x]])
                d, e = np.float32(plane[below[x], before[x]]), np.float32(plane[below[x], behind[x]])
                upper, lower = a + across[x] * (b - a), d + across[x] * (e - d)
                line[x] = (upper + down[x] * (lower - upper) - shift[c]) * scale[c]

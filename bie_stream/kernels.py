"""The one pass of the native back end, compiled: crop, turn, mirror, normalise and cast, from where the pixels lie.

Of each sample only the rows of its crop are read, and every image is written once, into its place in the batch: rows of
the crop become rows, or columns, of the image in memory that stays in the cache, and leave it in whole lines.
The GIL is not held, so that threads prepare batches side by side.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from bie_stream.compiled import compiled
from bie_stream.memory import (
    LINE,
    U,
    address,
    array_at,
    at,
    bits_of,
    lines_are_there,
    will_read,
    write_lines,
    write_turned,
)  # fmt: skip
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR

_FLOOR = IMAGE_VARIANCE_FLOOR
_AHEAD_BYTES = 1536  # of a crop, that are asked for before they are read; half and twice as much were slower


def _stored(value: Any, out: Any, source: Any) -> Any:
    """A float32 in the type of the batch; uint16 stands for the bits of bfloat16, which NumPy does not have.

    Args:
        source: array that the value comes from: of integers it is never NaN.
    """
    raise AssertionError("for compiled functions only")


@overload(_stored)
def _stored_compiled(value: Any, out: Any, source: Any) -> Any:
    def bfloat16(value: Any, out: Any, source: Any) -> Any:  # the nearest, of two the even one
        bits = bits_of(value)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    def bfloat16_or_nan(value: Any, out: Any, source: Any) -> Any:
        bits = bits_of(value)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.uint16(0x7FC0) if value != value else np.uint16(rounded)

    def as_it_is(value: Any, out: Any, source: Any) -> Any:
        return value

    if out.dtype != types.uint16:
        return as_it_is
    return bfloat16_or_nan if isinstance(source.dtype, types.Float) else bfloat16


@compiled
def crop_into(
    addresses: npt.NDArray[np.int64], shapes: npt.NDArray[np.int64], dtype: npt.NDArray[Any],
    channels: npt.NDArray[np.int64], top: npt.NDArray[np.int64], left: npt.NDArray[np.int64],
    swap: npt.NDArray[np.bool_], flip_y: npt.NDArray[np.bool_], flip_x: npt.NDArray[np.bool_],
    shift: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], per_image: bool, rows: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:  # fmt: skip
    """Writes the images of B samples.

    Args:
        addresses: [B] where the pixels [C, Y, X] of each sample begin in memory, in C order.
        shapes: [B, 3] their C, Y, X.
        dtype: [0] of theirs.
        channels: [C'] which of them; -1 for an image of zeros, whatever shift and scale.
        top, left, swap, flip_y, flip_x: [B], as `bie_stream.augment.View` has them.
        shift, scale: [B, C'] of each image: (x − shift) · scale, in float32.
        per_image: then to mean 0 and variance 1, see `bie_stream.normalise`.
        rows: [B] where in the batch each image stands.
        out: [rows, C', Y', X'] float32, or uint16 for the bits of bfloat16.
    """
    lines = np.empty((LINE // out.itemsize, max(out.shape[2], out.shape[3])), out.dtype)
    for b in range(len(addresses)):
        pitch = shapes[b, 2] * dtype.itemsize
        for c in range(out.shape[1]):
            if channels[c] < 0:
                out[rows[b], c] = 0
                continue
            start = addresses[b] + (channels[c] * shapes[b, 1] + top[b]) * pitch + left[b] * dtype.itemsize
            image, mean, by = out[rows[b], c], np.float32(0), np.float32(1)
            if per_image:
                mean, by = _moments(start, pitch, dtype, swap[b], shift[b, c], scale[b, c], image)
            to = shift[b, c], scale[b, c], mean, by
            if swap[b]:
                _turned(start, pitch, dtype, flip_y[b], flip_x[b], to, image, lines)
            else:
                _straight(start, pitch, dtype, flip_y[b], flip_x[b], to, image, lines)
    lines_are_there()


@functools.partial(compiled, reorder_sums=True)
def _moments(
    start: int, pitch: int, dtype: npt.NDArray[Any], swap: bool, shift: Any, scale: Any, image: npt.NDArray[Any]
) -> Any:
    """Mean, and 1 / standard deviation, of a crop of the image's size."""
    height, width = (image.shape[1], image.shape[0]) if swap else image.shape
    total, squares = 0.0, 0.0
    for y in range(height):
        _look_ahead(start, pitch, height, width * dtype.itemsize, y)
        row = array_at(at(start + y * pitch), (width,), dtype.dtype)
        for x in range(width):
            value = np.float64((np.float32(row[x]) - shift) * scale)
            total += value
            squares += value * value
    mean = total / image.size
    variance = max(squares / image.size - mean * mean, 0.0)
    return np.float32(mean), np.float32(1 / np.sqrt(variance + _FLOOR))


@compiled
def _straight(
    start: int, pitch: int, dtype: npt.NDArray[Any], flip_y: bool, flip_x: bool, to: Any, image: npt.NDArray[Any],
    lines: npt.NDArray[Any],
) -> None:  # fmt: skip
    height, width = image.shape
    whole, line = _in_whole_lines(image), lines[0]
    if flip_y:
        start, pitch = start + (height - 1) * pitch, -pitch
    for y in range(height):
        _look_ahead(start, pitch, height, width * dtype.itemsize, y)
        row = array_at(at(start + y * pitch), (width,), dtype.dtype)
        if whole:
            _write_row(row, flip_x, to, line)
            write_lines(address(image[y]), address(line), width * image.itemsize // LINE)
        else:
            _write_row(row, flip_x, to, image[y])


@compiled
def _turned(
    start: int, pitch: int, dtype: npt.NDArray[Any], flip_y: bool, flip_x: bool, to: Any, image: npt.NDArray[Any],
    lines: npt.NDArray[Any],
) -> None:  # fmt: skip
    """As many rows of the crop at a time as a line holds numbers become as many columns of the image."""
    height, width = image.shape
    lanes = len(lines)
    whole = _in_whole_lines(image)
    if flip_x:
        start, pitch = start + (width - 1) * pitch, -pitch
    for first in range(0, width, lanes):
        count = min(lanes, width - first)
        for i in range(count):
            x = first + i
            _look_ahead(start, pitch, width, height * dtype.itemsize, x)
            _write_row(array_at(at(start + x * pitch), (height,), dtype.dtype), flip_y, to, lines[i])
        turned = height // lanes * lanes if whole else 0
        for y in range(0, turned, lanes):
            write_turned(
                image, address(image[y, first:]), U(image.strides[0]), address(lines[0, y:]), U(lines.strides[0])
            )
        for y in range(turned, height):
            for i in range(count):
                image[y, first + i] = lines[i, y]


@compiled
def _write_row(row: npt.NDArray[Any], flip: bool, to: Any, out: npt.NDArray[Any]) -> None:
    """Normalised by shift, scale, and the mean and 1 / standard deviation of its image."""
    shift, scale, mean, by = to
    width = len(row)
    if flip:
        for x in range(width):
            out[x] = _stored((((np.float32(row[U(width - 1 - x)]) - shift) * scale) - mean) * by, out, row)
    else:
        for x in range(width):
            out[x] = _stored((((np.float32(row[x]) - shift) * scale) - mean) * by, out, row)


@compiled
def _in_whole_lines(image: npt.NDArray[Any]) -> bool:
    """Whether each row begins and ends where a line does."""
    return address(image) % U(LINE) == 0 and image.shape[1] * image.itemsize % LINE == 0


@compiled
def _look_ahead(start: int, pitch: int, rows: int, row_bytes: int, y: int) -> None:
    """Asks for a row that comes some rows after row y; with the first one, for all before it too."""
    ahead = _AHEAD_BYTES // row_bytes + 1
    for row in range(0 if y == 0 else y + ahead, min(y + ahead + 1, rows)):
        for place in range(start + row * pitch, start + row * pitch + row_bytes + LINE - 1, LINE):
            will_read(U(place))

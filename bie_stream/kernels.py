"""The one pass of the native back end, compiled: crop, turn, mirror, normalise and cast, from where the pixels lie.

Of each sample only the rows of its crop are read, and every image is written once, into its place in the batch.
The GIL is not held, so that threads prepare batches side by side.
"""

import functools
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils
from numba.extending import intrinsic, overload

from bie_stream.compiled import compiled
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR

_U = np.uint64  # an index that cannot be below 0: the compiler need not ask, and may use vectors
_FLOOR = IMAGE_VARIANCE_FLOOR
_COLUMNS = 8  # 16 and 32 were slower


def _to_pointer(context: Any, address: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(address), build


def _to_bits(context: Any, value: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.types.uint32))

    return numba.types.uint32(numba.types.float32), build


_pointer: Any = intrinsic(_to_pointer)
_bits: Any = intrinsic(_to_bits)
_carray: Any = numba.carray  # type: ignore[attr-defined]  # public, though not in its list


def _stored(value: Any, out: Any, source: Any) -> Any:
    """A float32 in the type of the batch; uint16 stands for the bits of bfloat16, which NumPy does not have.

    Args:
        source: array that the value comes from: of integers it is never NaN.
    """
    raise AssertionError("for compiled functions only")


@overload(_stored)
def _stored_compiled(value: Any, out: Any, source: Any) -> Any:
    def bfloat16(value: Any, out: Any, source: Any) -> Any:  # the nearest, of two the even one
        bits = _bits(value)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    def bfloat16_or_nan(value: Any, out: Any, source: Any) -> Any:
        bits = _bits(value)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.uint16(0x7FC0) if value != value else np.uint16(rounded)

    def as_it_is(value: Any, out: Any, source: Any) -> Any:
        return value

    if out.dtype != numba.types.uint16:
        return as_it_is
    return bfloat16_or_nan if isinstance(source.dtype, numba.types.Float) else bfloat16


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
        channels: [C'] which of them.
        top, left, swap, flip_y, flip_x: [B], as `bie_stream.augment.View` has them.
        shift, scale: [B, C'] of each image: (x − shift) · scale, in float32.
        per_image: then to mean 0 and variance 1, see `bie_stream.normalise`.
        rows: [B] where in the batch each image stands.
        out: [rows, C', Y', X'] float32, or uint16 for the bits of bfloat16.
    """
    for b in range(len(addresses)):
        pixels = _carray(_pointer(addresses[b]), (shapes[b, 0], shapes[b, 1], shapes[b, 2]), dtype.dtype)
        for c in range(out.shape[1]):
            plane, image = pixels[channels[c]], out[rows[b], c]
            mean, by = np.float32(0), np.float32(1)
            if per_image:
                mean, by = _moments(plane, top[b], left[b], swap[b], shift[b, c], scale[b, c], image)
            if swap[b]:
                _turned(plane, top[b], left[b], flip_y[b], flip_x[b], shift[b, c], scale[b, c], mean, by, image)
            else:
                _straight(plane, top[b], left[b], flip_y[b], flip_x[b], shift[b, c], scale[b, c], mean, by, image)


@functools.partial(compiled, reorder_sums=True)
def _moments(
    plane: npt.NDArray[Any], top: int, left: int, swap: bool, shift: Any, scale: Any, image: npt.NDArray[Any]
) -> Any:
    """Mean, and 1 / standard deviation, of a crop of the image's size."""
    height, width = (image.shape[1], image.shape[0]) if swap else image.shape
    total, squares = 0.0, 0.0
    for y in range(height):
        row = plane[top + y, left : left + width]
        for x in range(width):
            value = np.float64((np.float32(row[x]) - shift) * scale)
            total += value
            squares += value * value
    mean = total / image.size
    variance = max(squares / image.size - mean * mean, 0.0)
    return np.float32(mean), np.float32(1 / np.sqrt(variance + _FLOOR))


@compiled
def _straight(
    plane: npt.NDArray[Any], top: int, left: int, flip_y: bool, flip_x: bool, shift: Any, scale: Any, mean: Any,
    by: Any, image: npt.NDArray[Any],
) -> None:  # fmt: skip
    height, width = image.shape
    for y in range(height):
        # A part of a row of a whole plane: so the compiler knows that its pixels lie side by side, and uses vectors.
        row, out = plane[top + (height - 1 - y if flip_y else y), left : left + width], image[y]
        if flip_x:
            for x in range(width):
                out[x] = _stored((((np.float32(row[_U(width - 1 - x)]) - shift) * scale) - mean) * by, out, plane)
        else:
            for x in range(width):
                out[x] = _stored((((np.float32(row[x]) - shift) * scale) - mean) * by, out, plane)


@compiled
def _turned(
    plane: npt.NDArray[Any], top: int, left: int, flip_y: bool, flip_x: bool, shift: Any, scale: Any, mean: Any,
    by: Any, image: npt.NDArray[Any],
) -> None:  # fmt: skip
    """A few rows of the crop at a time become as many columns of the image, side by side in memory."""
    height, width = image.shape
    rows = np.empty((_COLUMNS, height), np.float32)
    for first in range(0, width, _COLUMNS):
        count = min(_COLUMNS, width - first)
        for i in range(count):
            x = first + i
            row, out = plane[top + (width - 1 - x if flip_x else x), left : left + height], rows[i]
            for y in range(height):
                out[y] = (((np.float32(row[y]) - shift) * scale) - mean) * by
        for y in range(height):
            column, out = _U(height - 1 - y if flip_y else y), image[y, first : first + count]
            for i in range(count):
                out[i] = _stored(rows[i, column], out, plane)

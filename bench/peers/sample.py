"""What a user of a Python loader writes for one sample: decode, crop, mirror, normalise, in few passes of NumPy.

Draws from `random`, which DataLoader seeds differently in each worker and which any thread may use.
"""

import functools
import io
import random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.works import Codec, Pixels, Work

Image = npt.NDArray[np.float32]


class View(NamedTuple):
    """Rows and columns of a crop, and the step along a row: −1 mirrors."""

    rows: slice
    columns: slice
    step: int


def draw(work: Work) -> View:
    """Any place, mirrored or not."""
    _, height, width = work.shape
    top, left = random.randrange(height - work.crop + 1), random.randrange(width - work.crop + 1)
    return View(slice(top, top + work.crop), slice(left, left + work.crop), random.choice((1, -1)))


def finish(crop: Pixels, step: int, work: Work, out: Image | None = None) -> Image:
    """Mirrors and normalises a crop."""
    shift, scale = _numbers(work)
    image: Image = np.subtract(crop[:, :, ::step], shift, out=out, dtype=np.float32, order="C")
    image *= scale
    return image


def view(pixels: Pixels, work: Work, out: Image | None = None) -> Image:
    """All of it, of a whole sample [C, Y, X]."""
    rows, columns, step = draw(work)
    return finish(pixels[:, rows, columns], step, work, out)


def decode(payload: Any, codec: Codec) -> Pixels:
    """The sample [C, Y, X] in these bytes; of npy a view of them."""
    return _DECODE[codec](payload)


@functools.cache
def _numbers(work: Work) -> tuple[Image, Image]:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (work.mean, work.std))
    return mean, np.float32(1) / std


def _npy(payload: Any) -> Pixels:
    start = 10 + int.from_bytes(payload[8:10], "little")
    shape, dtype = _npy_header(bytes(payload[:start]))
    return np.frombuffer(payload, dtype, offset=start).reshape(shape)


@functools.cache
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype


def _tif(payload: Any) -> Pixels:
    import tifffile

    pixels = tifffile.imread(io.BytesIO(payload), maxworkers=1)
    return np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]


def _jph(payload: Any) -> Pixels:
    import imagecodecs

    tall = imagecodecs.htj2k_decode(payload)  # OpenJPH: twice as fast as the OpenJPEG that bie_stream trusts
    return tall.reshape(-1, *_jph_tile(payload))


def _jph_tile(payload: Any) -> tuple[int, int]:
    """Height and width of a tile, which is a channel: in the marker SIZ."""
    width, height = (int.from_bytes(payload[at : at + 4], "big") for at in (24, 28))
    return height, width


def _blosc2(payload: Any) -> Pixels:
    return np.asarray(_blosc2_module().ndarray_from_cframe(bytes(payload))[:])


@functools.cache
def _blosc2_module() -> Any:
    import blosc2

    blosc2.set_nthreads(1)  # workers and threads come from the loader
    blosc2.set_releasegil(True)
    return blosc2


_DECODE = {"npy": _npy, "tif": _tif, "jph": _jph, "blosc2": _blosc2}

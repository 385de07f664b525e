"""One pixel array ↔ bytes. Lossless: what the microscope wrote is what comes out.

`npy`     NumPy's own format, version 1.0: a 128-byte header, then the pixels as they lie in memory. The fastest to
          read, and WebDataset, DALI and NumPy all read it without our code.
`tif`     one deflated image of C samples per pixel (contiguous), integers as horizontal differences. Not planar:
          DALI's decoder has no planar TIFF, and of three planes it makes a wrong image without an error.
`jph`     High-Throughput JPEG 2000, a raw codestream: a tall grey image (C·Y, X) of one tile per channel, so the
          number of channels is in the payload and any decoder takes any number. uint8 and uint16 only.
`blosc2`  a contiguous frame of a Blosc2 NDArray, bytes shuffled, zstd 1, in bands of some rows of a channel: a crop
          is decoded without the rest (`decode_rows`). Opened as an NDArray frame, it holds shape and dtype as text and
          is never unpickled (`blosc2.unpack_array` would be; that form is not used).

All but `npy` need the extra `codecs`.
"""

import functools
import importlib
import io
import math
import struct
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from bie_stream.errors import DatasetError, SampleError, SourceError

Codec = Literal["npy", "tif", "jph", "blosc2"]
Dtype = Literal["uint8", "uint16", "float32"]
Pixels = npt.NDArray[np.generic]

CODECS: tuple[Codec, ...] = get_args(Codec)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
SUFFIX: dict[Codec, str] = {"npy": "npy", "tif": "tif", "jph": "jph", "blosc2": "b2nd"}
MAX_BYTES = 2**30  # of pixels, decoded where nobody said how many to expect

_ZLIB_LEVEL = 1  # level 6 took three times as long on fields of idr0036, for the same size
_BAND_BYTES = 2**16  # with half as much whole samples took 11 % longer, with twice as much crops took 9 %
_BLOSC_HEADER, _BLOSC_STORED_WHOLE = 32, 0x02
_BLOSC_OTHER = 0x71  # of byte 31: a dictionary, or one value for all
_BLOSC_STORED, _BLOSC_ZSTD, _BLOSC_FILTERS = 0, 4, {0, 1}  # formats and filters (none, shuffle) of a chunk's header


class Form(NamedTuple):
    """What a payload must hold: C, Y, X and the dtype."""

    shape: tuple[int, ...]
    dtype: str


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """Bytes of one [C, Y, X] array; the same array gives the same bytes.

    Raises:
        SourceError: the codec does not take such pixels.
        DatasetError: a package that it needs is not installed.
    """
    return b"".join(encoded_parts(pixels, codec))


def encoded_parts(pixels: Pixels, codec: Codec) -> tuple[bytes | memoryview, ...]:
    """The same in parts that follow each other: of npy the header, and the pixels where they lie."""
    require(codec, pixels.dtype.name)
    return _ENCODE[codec](pixels)


def decode(payload: memoryview, codec: Codec, expected: Form | None = None) -> Pixels:
    """The [C, Y, X] array in these bytes; of npy a read-only view, no copy.

    Args:
        expected: what the table says; anything else is refused before memory is taken for it.
            None: whatever the payload holds, up to MAX_BYTES.

    Raises:
        SampleError: the bytes are not a whole array of pixels.
        DatasetError: a package that the codec needs is not installed.
    """
    try:
        return _DECODE[codec](payload, expected)
    except DatasetError:
        raise
    except Exception as error:  # codecs raise whatever the bytes lead them to
        raise SampleError(f"not a whole {codec} array of pixels: {error}") from error


def require(codec: Codec, dtype: str) -> None:
    """Holds a codec to the pixels it takes.

    Raises:
        SourceError: it does not take this dtype.
    """
    if codec == "jph" and dtype not in ("uint8", "uint16"):
        takers = ", ".join(other for other in CODECS if other != "jph")
        raise SourceError(f"codec jph takes uint8 and uint16, not {dtype}; codecs for {dtype}: {takers}")


def _admit(shape: tuple[int, ...], dtype: np.dtype[Any], expected: Form | None) -> None:
    """Before memory is taken: is this what it should be?"""
    if expected is not None and (shape != expected.shape or dtype != expected.dtype):
        raise ValueError(f"{dtype} {list(shape)}, the table says {expected.dtype} {list(expected.shape)}")
    if expected is None and math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"{dtype} {list(shape)} is more than {MAX_BYTES} bytes")


def _held(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 3 or min(shape) < 0 or dtype.name not in DTYPES:
        raise ValueError(f"shape {shape}, dtype {dtype}, expected [C, Y, X] of {', '.join(DTYPES)}")


@functools.cache
def _extra(name: str) -> Any:
    """A package of the extra `codecs`, imported when it is first needed."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise DatasetError(f"this codec needs the package {name}: pip install 'bie-stream[codecs]'") from error
    if name == "blosc2":
        module.set_releasegil(True)  # threads come from the loader, so one of Blosc2's own is enough
        module.set_nthreads(1)
    return module


def _encode_npy(pixels: Pixels) -> tuple[bytes, memoryview]:
    pixels = np.ascontiguousarray(pixels)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(pixels))
    return header.getvalue(), pixels.data


def npy_begin(payload: memoryview, expected: Form) -> int:
    """Where in an npy its pixels begin, in bytes; raises as `decode`."""
    pixels = decode(payload, "npy", expected)
    return len(payload) - pixels.nbytes


def _decode_npy(payload: memoryview, expected: Form | None) -> Pixels:
    start = 10 + int.from_bytes(payload[8:10], "little")
    shape, dtype = _npy_header(bytes(payload[:start]))
    if expected is not None:  # without it nothing is to be bounded: a view takes no memory
        _admit(shape, dtype, expected)
    return np.frombuffer(payload, dtype, offset=start).reshape(shape)


@functools.lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("npy version is not 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order:
        raise ValueError("Fortran order, expected C order")
    _held(shape, dtype)
    return shape, dtype


def _encode_tif(pixels: Pixels) -> tuple[bytes]:
    _extra("imagecodecs")  # with it or without it tifffile would write other bytes
    import tifffile  # here, because it imports imagecodecs

    channels, height, _ = pixels.shape
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        byteorder="<",
        photometric="minisblack",
        planarconfig=None if channels == 1 else "contig",
        rowsperstrip=height,
        compression="zlib",
        compressionargs={"level": _ZLIB_LEVEL},
        predictor=pixels.dtype.kind == "u",
        metadata=None,
        software=False,
        maxworkers=1,
    )
    return (buffer.getvalue(),)


def _decode_tif(payload: memoryview, expected: Form | None) -> Pixels:
    _extra("imagecodecs")  # without it tifffile would not bound what a strip inflates to
    import tifffile

    with tifffile.TiffFile(io.BytesIO(payload)) as file:
        page = file.pages.first
        shape = (page.samplesperpixel, page.imagelength, page.imagewidth)
        if page.dtype is None or page.shape != ((*shape[1:], shape[0]) if shape[0] > 1 else shape[1:]):
            raise ValueError(f"a TIFF of shape {page.shape}, dtype {page.dtype}, expected samples side by side")
        if (page.compression, page.rowsperstrip, len(page.dataoffsets)) != (8, shape[1], 1):  # 8: zlib
            raise ValueError("a TIFF of another layout than one deflated strip")
        _held(shape, page.dtype)
        _admit(shape, page.dtype, expected)
        pixels = page.asarray(maxworkers=1)
    return np.moveaxis(pixels.reshape(*shape[1:], shape[0]), -1, 0)


def _encode_jph(pixels: Pixels) -> tuple[bytes]:
    channels, height, width = pixels.shape
    tall = np.ascontiguousarray(pixels).reshape(channels * height, width)
    return (bytes(_extra("imagecodecs").htj2k_encode(tall, tile=(width, height), reversible=True)),)


def _decode_jph(payload: memoryview, expected: Form | None) -> Pixels:
    # OpenJPEG, not OpenJPH: on damaged bytes OpenJPH ends the process, runs for minutes, or gives a part of the image
    # without an error. It is half as fast on one core.
    shape, dtype = _jph_header(payload)
    _admit(shape, dtype, expected)
    tall = _extra("imagecodecs").jpeg2k_decode(payload, numthreads=1)
    if tall.dtype != dtype:
        raise ValueError(f"decoded to {tall.dtype}")
    return np.asarray(tall).reshape(shape)


def _jph_header(payload: memoryview) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """[C, Y, X] and dtype, from the sizes of image and tile (marker SIZ; ISO/IEC 15444-1, A.5.1)."""
    markers, _, _, width, tall, left, top, tile_width, height, tile_left, tile_top, components, depth, dx, dy = (
        struct.unpack_from(">IHHIIIIIIIIHBBB", payload)
    )
    if markers != 0xFF4FFF51 or bytes(payload[-2:]) != b"\xff\xd9":
        raise ValueError("no codestream from its start to its end")
    plain = (left, top, tile_left, tile_top, components, dx, dy) == (0, 0, 0, 0, 1, 1, 1)
    if not plain or tile_width != width or not height or tall % height or depth not in (7, 15):
        raise ValueError("another layout than one tile for each channel of 8 or 16 bits")
    return (tall // height, height, width), np.dtype(np.uint8 if depth == 7 else np.uint16)


def _encode_blosc2(pixels: Pixels) -> tuple[bytes]:
    blosc2 = _extra("blosc2")
    how = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        filters=[blosc2.Filter.SHUFFLE],
        typesize=pixels.dtype.itemsize,
        nthreads=1,
    )
    # One chunk, so that it is decoded in one call; its blocks are decoded one by one, if they are not all wanted.
    blocks = (1, _band_rows(pixels.shape, pixels.dtype), pixels.shape[2])
    array = blosc2.asarray(np.ascontiguousarray(pixels), cparams=how, chunks=pixels.shape, blocks=blocks)
    return (bytes(array.to_cframe()),)


def _band_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return min(shape[1], max(1, _BAND_BYTES // (shape[2] * dtype.itemsize)))


def _decode_blosc2(payload: memoryview, expected: Form | None) -> Pixels:
    chunk, shape, dtype = _chunk(payload, expected)
    bands = -(-shape[1] // _band_rows(shape, dtype))
    return _decompressed(chunk, shape, dtype, np.arange(shape[0] * bands))[:, : shape[1]]


def decode_rows(
    payload: memoryview, expected: Form, channels: npt.NDArray[np.int64], first: int, last: int
) -> tuple[Pixels, int]:
    """Of a `blosc2` payload the bands that hold rows `first`..`last`, of some channels.

    Returns:
        [D, R, X], and which row of the sample is the first of them. Behind the last row of the sample there may be
        others, of any value.

    Raises:
        SampleError, DatasetError: as `decode`.
    """
    try:
        chunk, shape, dtype = _chunk(payload, expected)
        rows = _band_rows(shape, dtype)
        bands = np.arange(first // rows, -(-last // rows))
        blocks = channels[:, None] * -(-shape[1] // rows) + bands
        return _decompressed(chunk, (len(channels), *shape[1:]), dtype, blocks.ravel()), first // rows * rows
    except DatasetError:
        raise
    except Exception as error:  # as above
        raise SampleError(f"not a whole blosc2 array of pixels: {error}") from error


def _chunk(payload: memoryview, expected: Form | None) -> tuple[bytes, tuple[int, ...], np.dtype[Any]]:
    """The compressed bytes of an array, its shape and dtype."""
    array = _extra("blosc2").ndarray_from_cframe(bytes(payload))
    shape, dtype = array.shape, array.dtype
    _held(shape, dtype)
    _admit(shape, dtype, expected)
    blocks = (1, _band_rows(shape, dtype), shape[2])
    if array.chunks != shape or array.blocks != blocks or array.schunk.nchunks != 1:
        raise ValueError(f"chunks {array.chunks} of blocks {array.blocks}, expected one chunk of blocks {blocks}")
    chunk: bytes = array.schunk.get_chunk(0)
    # Blosc2 loads a plug-in for a codec or filter that it does not know: none is loaded because a payload says so.
    if chunk[2] >> 5 not in (_BLOSC_STORED, _BLOSC_ZSTD) or not set(chunk[16:22]) <= _BLOSC_FILTERS:
        raise ValueError("another compressor than zstd, or another filter than shuffle")
    whole = shape[0] * -(-shape[1] // blocks[1]) * math.prod(blocks) * dtype.itemsize
    if int.from_bytes(chunk[4:8], "little") != whole:
        raise ValueError("a chunk of another size than the array")
    return chunk, shape, dtype


def _decompressed(chunk: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: npt.NDArray[np.int64]) -> Pixels:
    """[C, R, X] of these blocks, as many of each of the C channels of `shape`.

    Source of the layout: Blosc2's README_CHUNK_FORMAT. A header says how many bytes follow and where each block begins;
    so of some blocks a chunk of their own is made, and decoded in one call, in which the GIL is not held.
    """
    size = _band_rows(shape, dtype) * shape[2] * dtype.itemsize
    every = int.from_bytes(chunk[4:8], "little") // size
    out = np.empty((shape[0], len(blocks) // shape[0] * size // (shape[2] * dtype.itemsize), shape[2]), dtype)
    plain = chunk[2] & _BLOSC_STORED_WHOLE or chunk[31] & _BLOSC_OTHER  # no blocks in it
    if plain or np.array_equal(blocks, np.arange(every)):
        whole = np.empty(every * size // dtype.itemsize, dtype) if plain else out
        _extra("blosc2").decompress2(chunk, dst=whole, nthreads=1)
        return out if whole is out else whole.reshape(every, -1)[blocks].reshape(out.shape)
    begins = np.frombuffer(chunk, "<i4", every, _BLOSC_HEADER).astype(np.int64)
    order = np.sort(np.append(begins, len(chunk)))
    ends = order[np.searchsorted(order, begins, side="right").clip(max=every)]
    parts = [chunk[begin:end] for begin, end in zip(begins[blocks].tolist(), ends[blocks].tolist(), strict=True)]
    lengths = [len(part) for part in parts]
    places = _BLOSC_HEADER + 4 * len(parts) + np.cumsum([0, *lengths])
    sizes = np.array([out.nbytes, size, places[-1]], "<i4").tobytes()  # decoded, of a block, encoded
    own = b"".join([chunk[:4], sizes, chunk[16:_BLOSC_HEADER], places[:-1].astype("<i4").tobytes(), *parts])
    _extra("blosc2").decompress2(own, dst=out, nthreads=1)
    return out


_ENCODE: dict[Codec, Callable[[Pixels], tuple[bytes | memoryview, ...]]] = {
    "npy": _encode_npy, "tif": _encode_tif, "jph": _encode_jph, "blosc2": _encode_blosc2,
}  # fmt: skip
_DECODE: dict[Codec, Callable[[memoryview, Form | None], Pixels]] = {
    "npy": _decode_npy, "tif": _decode_tif, "jph": _decode_jph, "blosc2": _decode_blosc2,
}  # fmt: skip

"""Planes → pixels. The only place that reads pixels of an archive: pages of TIFF files, planes of Zarr arrays."""

import functools
import io
import itertools
import math
from typing import IO, Any

import numpy as np
import tifffile

from bie_stream.codecs import DTYPES, Dtype, Pixels
from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Archive, Field, Plane, require_size
from shardgen.files import Files, Local

LARGEST_PLANE_BYTES = 2**30  # unpacked; what claims to be larger is refused before memory is taken for it
MOST_CHUNKS = 2**16  # of a Zarr plane: each is a file or a request
MOST_CHUNKS_OF_SHARD = 2**22  # their index is read first, 16 bytes each


def probe(archive: Archive) -> tuple[Dtype, tuple[int, int]]:
    """dtype and shape of the archive's planes, from the header of the first one that is there.

    Raises:
        SourceError: it cannot be read, or has a dtype that shards do not hold.
    """
    files = archive.files
    planes = (plane for field in archive.fields for planes in field.planes for plane in planes)
    for tries, plane in enumerate(planes):
        try:
            dtype, shape = header(files, plane, archive.format)
        except SourceMissing:
            if tries == 100:
                raise
            continue
        for known in DTYPES:
            if dtype == known:
                if math.prod(shape) * np.dtype(known).itemsize > LARGEST_PLANE_BYTES:
                    raise SourceError(
                        f"{plane.path} claims {shape[0]} x {shape[1]} pixels; "
                        f"a plane may take {LARGEST_PLANE_BYTES / 2**20:.0f} MiB"
                    )
                return known, shape
        raise SourceError(f"{plane.path} has pixels of {dtype}; shards hold {', '.join(DTYPES)}")
    raise SourceError(f"none of the planes of {archive.source} is there")


def header(files: Files, plane: Plane, layout: str) -> tuple[str, tuple[int, int]]:
    """dtype and shape of a plane; raises as `probe`."""
    return (_tiff_header if layout == "tiff" else _zarr_header)(files, plane)


def read_field(archive: Archive, field: Field, dtype: str, shape: tuple[int, int], out: Pixels | None = None) -> Pixels:
    """[C, Y, X] of a field; where a channel has several planes, their maximum.

    Args:
        out: where to put it, of that shape; memory that is used again costs a third of new memory.

    Raises:
        SourceError: a plane is missing, damaged, or not of this dtype and shape.
    """
    stack = np.empty((len(field.planes), *shape), dtype) if out is None else out
    for channel, planes, channel_out in zip(archive.channels, field.planes, stack, strict=True):
        if not planes:
            raise SourceError(
                f"plate {field.plate} well {field.well} field {field.field} has no plane of channel {channel.name!r}"
            )
        read_plane(archive.files, planes[0], archive.format, channel_out)
        for plane in planes[1:]:
            other = np.empty_like(channel_out)
            read_plane(archive.files, plane, archive.format, other)
            np.maximum(channel_out, other, out=channel_out)
    return stack


def read_plane(files: Files, plane: Plane, layout: str, out: Pixels) -> None:
    """Reads a plane into an array [Y, X] of its dtype and shape; raises as `read_field`."""
    (_tiff_plane if layout == "tiff" else _zarr_plane)(files, plane, out)
    if out.dtype.kind == "f" and (wrong := out.size - np.count_nonzero(np.isfinite(out))):
        raise SourceError(f"{plane.path} has {wrong} pixels that are NaN or infinite; no statistics could be taken")


def _require_form(plane: Plane, dtype: Any, shape: tuple[int, ...], out: Pixels) -> None:
    if dtype != out.dtype or shape != out.shape:
        raise SourceError(
            f"{plane.path} is {dtype} {shape}, the archive's first plane is {out.dtype} {out.shape}; "
            "build planes of one dtype and shape together, and the others apart"
        )


def _tiff_header(files: Files, plane: Plane) -> tuple[str, tuple[int, int]]:
    stream: IO[bytes] = files.open(plane.path) if isinstance(files, Local) else in_blocks(files, plane.path)
    with stream:
        try:
            with tifffile.TiffFile(stream) as tif:
                page = _page(tif, plane)
                return str(page.dtype), (page.shape[0], page.shape[1])
        except SourceError:
            raise
        except Exception as error:  # tifffile raises whatever the bytes lead it to
            raise SourceError(f"{plane.path} is not a readable TIFF: {error}") from error


def _tiff_plane(files: Files, plane: Plane, out: Pixels) -> None:
    with _stream(files, plane) as stream:
        require_size(plane, stream.seek(0, io.SEEK_END))
        stream.seek(0)
        try:
            with tifffile.TiffFile(stream) as tif:
                page = _page(tif, plane)
                _require_form(plane, page.dtype, page.shape, out)
                if math.prod(page.chunks) * page.dtype.itemsize > LARGEST_PLANE_BYTES:
                    raise ValueError(f"it claims tiles or strips of {page.chunks} pixels")
                pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
                if (end := max(map(sum, pieces))) > (size := stream.seek(0, io.SEEK_END)):
                    raise ValueError(f"it ends at byte {size}, its pixels at {end}")
                stored = sum(size for _, size in pieces)
                if page.compression == 1 and page.bitspersample % 8 == 0 and stored < out.nbytes:
                    raise ValueError(f"it holds {stored} bytes of its {out.nbytes} bytes of pixels")
                if _plain(page, pieces, out):
                    _read_into(stream, pieces[0][0], out)
                else:
                    out[:] = page.asarray()
        except SourceError:
            raise
        except Exception as error:  # tifffile raises whatever the bytes lead it to
            raise SourceError(f"{plane.path} is damaged: {error}") from error


def _stream(files: Files, plane: Plane) -> IO[bytes]:
    """The file of a plane. From a server, of one with many pages only what is asked for; any other in one request."""
    if isinstance(files, Local):
        return files.open(plane.path)
    return in_blocks(files, plane.path) if plane.index else io.BytesIO(files.read(plane.path))


def _plain(page: Any, pieces: list[tuple[int, int]], out: Pixels) -> bool:
    """Whether the file holds, in one run of bytes, just what the array is to hold."""
    one_run = all(at + size == after for (at, size), (after, _) in itertools.pairwise(pieces))
    whole = sum(size for _, size in pieces) == out.nbytes
    return page.is_final and one_run and whole and np.dtype(page.parent.byteorder + out.dtype.char) == out.dtype


def _read_into(stream: IO[bytes], at: int, out: Pixels) -> None:
    stream.seek(at)
    rest = out.data.cast("B")
    while rest:
        if not (taken := stream.readinto(rest)):  # type: ignore[attr-defined]
            raise ValueError("it ends within its pixels")
        rest = rest[taken:]


def _page(tif: tifffile.TiffFile, plane: Plane) -> Any:
    # Not len(tif.pages): each page names the next one, and tifffile would go round in a large circle for ever.
    number = plane.index[0] if plane.index else 0
    try:
        page: Any = tif.pages[number]
    except IndexError as error:
        raise SourceError(f"{plane.path} has no page {number}, which the first file has") from error
    if not all(isinstance(size, int) for size in page.shape) or len(page.shape) != 2:
        raise SourceError(f"{plane.path} has shape {page.shape}; expected one plane (y, x) a page")
    if not plane.index and _is_followed_by(tif, page):
        raise SourceError(f"{plane.path} has several pages; expected one plane (y, x) a file")
    return page


def _is_followed_by(tif: tifffile.TiffFile, page: Any) -> bool:
    """Whether the file has a second page of the same shape; a smaller one is a thumbnail."""
    try:
        return tif.pages[1].shape == page.shape
    except IndexError:
        return False


def _zarr_header(files: Files, plane: Plane) -> tuple[str, tuple[int, int]]:
    array = open_zarr(files, plane.path)
    _require_plane(array, plane)
    return array.dtype.name, (array.shape[-2], array.shape[-1])


def _zarr_plane(files: Files, plane: Plane, out: Pixels) -> None:
    array = open_zarr(files, plane.path)
    _require_plane(array, plane)
    native = array.dtype.newbyteorder("=")  # bioformats2raw writes big-endian pixels
    _require_form(plane, native, array.shape[-2:], out)
    try:
        out[:] = np.asarray(array[plane.index])
    except SourceError:
        raise
    except Exception as error:  # codecs raise whatever the bytes lead them to
        raise SourceError(f"{plane.path} is damaged: {error}") from error


def _require_plane(array: Any, plane: Plane) -> None:
    """The array has this plane, and reading it takes no more memory and requests than a plane may."""
    *leading, height, width = array.shape
    if len(plane.index) != len(leading) or not all(0 <= i < n for i, n in zip(plane.index, leading, strict=True)):
        raise SourceError(f"{plane.path} has shape {array.shape}; no plane {plane.index}")
    chunk = math.prod(array.chunks)
    of_shard = math.prod(array.shards or array.chunks) // chunk
    chunks = math.ceil(height / array.chunks[-2]) * math.ceil(width / array.chunks[-1])
    largest = max(height * width, chunk) * array.dtype.itemsize
    if largest > LARGEST_PLANE_BYTES or chunks > MOST_CHUNKS or of_shard > MOST_CHUNKS_OF_SHARD:
        raise SourceError(
            f"{plane.path} has shape {array.shape} in chunks of {array.chunks}, shards of {array.shards}; "
            f"a plane or chunk may take {LARGEST_PLANE_BYTES / 2**20:.0f} MiB, a plane {MOST_CHUNKS} chunks "
            f"and a shard {MOST_CHUNKS_OF_SHARD}"
        )


@functools.lru_cache(maxsize=1024)
def open_zarr(files: Files, path: str) -> Any:
    """The Zarr array (version 2 or 3) at a path; raises as `shardgen.zarr_store.open_array`."""
    from shardgen.zarr_store import open_array  # zarr takes long to import, and most archives have none

    return open_array(files, path)


def in_blocks(files: Files, path: str) -> io.BufferedReader:
    """A file, perhaps on a server, read in blocks as they are asked for: the header of a TIFF without its pixels."""
    return io.BufferedReader(_Blocks(files, path))


class _Blocks(io.RawIOBase):
    _BLOCK = 2**16

    def __init__(self, files: Files, path: str) -> None:
        self._files, self._path, self._at, self._size = files, path, 0, files.size(path)
        self._block = functools.lru_cache(maxsize=64)(self._fetch)

    def _fetch(self, number: int) -> bytes:
        first = number * self._BLOCK
        return self._files.read(self._path, first, min(first + self._BLOCK, self._size) - 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        number, skip = divmod(self._at, self._BLOCK)
        if self._at >= self._size:
            return 0
        part = self._block(number)[skip : skip + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

"""How much a build reads from its archive: told before it reads, from sizes alone."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bie_stream.codecs import Dtype
from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Archive, Plane
from shardgen.files import Files
from shardgen.pixels import open_zarr
from shardgen.plan import Plan, readable_bytes

_ASKED = 8  # files whose size is asked for, where the archive does not list it
_GOLDEN = 0.618034


@dataclass(frozen=True)
class TransferSize:
    """What has to be read of an archive.

    Attributes:
        pieces: how many files of TIFF, or chunks of Zarr.
        exactness: `at most` is of chunks before they were compressed; empty where it is exact.
    """

    bytes: int
    pieces: int
    unit: Literal["files", "chunks"] = "files"
    exactness: Literal["", "about", "at most"] = ""

    def __str__(self) -> str:
        unit = self.unit[:-1] if self.pieces == 1 else self.unit
        return f"{self.exactness} {readable_bytes(self.bytes)} in {self.pieces:,} {unit}".lstrip()


def to_fetch(plan: Plan) -> str:
    """What has to be read for the fields of a plan, and for their masks; for a person."""
    fields = tuple(planned.field for shard in plan.shards for planned in shard)
    images = transfer_size(replace(plan.archive, fields=fields), plan.dtype, plan.shape)
    masks = plan.archive.masks
    if masks is None:
        return str(images)
    planes = [(field, masks.planes[field.place]) for field in fields if field.place in masks.planes]
    masked = tuple(replace(field, planes=((plane,),)) for field, plane in planes)
    archive = replace(plan.archive, files=masks.files, format=masks.format, fields=masked)
    return f"{images}; of masks {transfer_size(archive, 'uint16', plan.shape)}"


def transfer_size(archive: Archive, dtype: Dtype, shape: tuple[int, int]) -> TransferSize:
    """What has to be read for all fields; asks a server for the sizes of a few files.

    Args:
        dtype, shape: of one plane.
    """
    plane_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return _of_tiffs(archive, plane_bytes) if archive.format == "tiff" else _of_zarr(archive)


def _of_tiffs(archive: Archive, plane_bytes: int) -> TransferSize:
    listed = {plane.path: plane.file_bytes for plane in _planes(archive)}
    unlisted = [path for path, size in listed.items() if size is None]
    asked = list(_sizes(archive.files, _spread(unlisted)))
    mean = sum(asked) / len(asked) if asked else plane_bytes
    total = sum(size for size in listed.values() if size is not None) + round(mean * len(unlisted))
    pages = sum(bool(plane.index) for plane in _planes(archive))
    if pages:  # of a file with many, only those that are wanted
        total = min(total, pages * plane_bytes)
    exact = not pages and len(asked) == len(unlisted)
    return TransferSize(total, len(listed), exactness="" if exact else "about")


def _of_zarr(archive: Archive) -> TransferSize:
    """For each plane the chunks that it is in, before they were compressed; all arrays as the first one."""
    array = _first_array(archive)
    shape, chunk = np.array(array.shape), np.array(array.chunks)
    chunks = -(-shape // chunk)
    chunks[:-2] = 1
    pixels = chunks * chunk  # along each axis
    if array.compressors:  # what is beyond the array's edges takes next to nothing
        pixels = np.minimum(pixels, shape)
    planes = sum(1 for _ in _planes(archive))
    plane_bytes = math.prod(pixels.tolist()) * array.dtype.itemsize
    return TransferSize(planes * plane_bytes, planes * math.prod(chunks.tolist()), "chunks", "at most")


def _planes(archive: Archive) -> Iterator[Plane]:
    return (plane for field in archive.fields for planes in field.planes for plane in planes)


def _spread(paths: Sequence[str]) -> list[str]:
    """Some of them, from all over, but not at equal distances: those could all be of one channel."""
    if len(paths) <= _ASKED:
        return list(paths)
    return [paths[int(len(paths) * (number * _GOLDEN % 1))] for number in range(_ASKED)]


def _sizes(files: Files, paths: Sequence[str]) -> Iterator[int]:
    for path in paths:
        with contextlib.suppress(SourceError):  # a build will say what is wrong with it
            yield files.size(path)


def _first_array(archive: Archive) -> Any:
    for plane in _planes(archive):
        with contextlib.suppress(SourceMissing):
            return open_zarr(archive.files, plane.path)
    raise SourceError(f"none of the planes of {archive.source} is there")

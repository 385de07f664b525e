"""Planes of one field → samples. The only place that reads pixels of an archive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from bie_stream.codecs import DTYPES, Dtype, Pixels
from bie_stream.errors import SourceError
from shardgen.archive import Archive
from shardgen.plan import Plan, Planned


def probe(archive: Archive) -> tuple[Dtype, tuple[int, int]]:
    """dtype and shape of the archive's planes, from the header of the first one.

    Raises:
        SourceError: it is no TIFF of one plane, or of a dtype that shards do not hold.
    """
    file = archive.root / next(file for field in archive.fields for file in field.files if file)
    try:
        with tifffile.TiffFile(file) as tif:
            shape, dtype = tif.series[0].shape, str(tif.series[0].dtype)
    except Exception as error:  # tifffile raises whatever the bytes lead it to
        raise SourceError(f"{file} is not a readable TIFF: {error}") from error
    if len(shape) != 2:
        raise SourceError(f"{file} has shape {shape}; expected one plane (y, x) a file")
    for known in DTYPES:
        if dtype == known:
            return known, (shape[0], shape[1])
    raise SourceError(f"{file} has pixels of {dtype}; shards hold {', '.join(DTYPES)}")


def read_plane(file: Path, dtype: str, shape: tuple[int, int]) -> Pixels:
    """The pixels of one plane.

    Raises:
        SourceError: the file is damaged, or not of this dtype and shape.
    """
    try:
        with tifffile.TiffFile(file) as tif:
            pixels: Pixels = tif.series[0].asarray()
            pages = [page for page in tif.series[0] if page]
            end = max(at + size for page in pages for at, size in zip(page.dataoffsets, page.databytecounts))
            if end > (found := tif.filehandle.size):
                raise ValueError(f"it ends at byte {found}, its pixels at {end}")
    except Exception as error:
        raise SourceError(f"{file} is damaged: {error}") from error
    if pixels.dtype != dtype or pixels.shape != shape:
        raise SourceError(
            f"{file} is {pixels.dtype} {pixels.shape}, the archive's first plane is {dtype} {shape}; "
            "build planes of one dtype and shape together, and the others apart"
        )
    return pixels


def samples(plan: Plan, planned: Planned) -> Iterator[tuple[Pixels, dict[str, Any]]]:
    """Pixels [C, Y, X] and table row of each sample of a field.

    Raises:
        SourceError: a plane is missing or cannot be used.
    """
    field, (height, width) = planned.field, plan.tile_shape
    for channel, file in zip(plan.archive.channels, field.files, strict=True):
        if file is None:
            raise SourceError(
                f"plate {field.plate} well {field.well} field {field.field} has no plane of channel {channel.name!r}"
            )
    planes = [read_plane(plan.archive.root / file, plan.dtype, plan.shape) for file in field.files if file]
    stack = np.stack(planes)
    for top, left in plan.tiles:
        row = {
            "key": plan.key(field, top, left),
            "shape": [len(planes), height, width],
            "plate": field.plate,
            "well": field.well,
            "field": field.field,
            "z": field.z,
            "t": field.t,
            "top": top,
            "left": left,
            "split": planned.split,
            **planned.labels,
        }
        yield stack[:, top : top + height, left : left + width], row

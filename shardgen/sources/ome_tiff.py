"""TIFFs of many pages (OME-TIFF, ImageJ): from a field per file to a field per z and t, and a plane per page.

What the pages are is read from the first file alone; the others are held to its shape when their pixels are read.
"""

import math
import posixpath
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tifffile

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.archive import Layout, Plane
from shardgen.files import Files
from shardgen.pixels import in_blocks
from shardgen.sources.markup import for_people, parse_xml, whole

_AXES = "TCZ"


def expand(files: Files, layout: Layout) -> Layout:
    """The layout with its files' pages as planes; the same where files have one page.

    Raises:
        SourceError: it is not said what the pages are, or the pattern and the file both say it.
    """
    path = next(plane.path for field in layout.fields for planes in field.planes for plane in planes)
    axes, shape, pages, names = _pages(files, path)
    if len(pages) == 1:
        return layout
    if len(layout.channels) > 1 or any(field.z or field.t for field in layout.fields):
        raise SourceError(
            f"{path} has {len(pages)} pages ({_said(axes, shape)}), and the pattern tells channels or slices apart "
            "by name; one or the other should"
        )
    sizes = dict(zip(axes, shape, strict=True))
    steps = {axis: _step(shape, number) for number, axis in enumerate(axes)}

    def planes(file: Plane, t: int, z: int) -> tuple[tuple[Plane, ...], ...]:
        at = t * steps.get("T", 0) + z * steps.get("Z", 0)
        numbers = (pages[at + c * steps.get("C", 0)] for c in range(sizes.get("C", 1)))
        return tuple((Plane(file.path, (number,), file.file_bytes),) for number in numbers)

    fields = tuple(
        replace(field, z=z, t=t, planes=planes(field.planes[0][0], t, z))
        for field in layout.fields
        for t in range(sizes.get("T", 1))
        for z in range(sizes.get("Z", 1))
    )
    named = names if len(set(names)) == sizes.get("C", 1) else [f"c{c}" for c in range(sizes.get("C", 1))]
    return replace(
        layout,
        channels=tuple(Channel(name=name) for name in named),
        fields=tuple(sorted(fields, key=lambda field: field.order)),
    )


def _pages(files: Files, path: str) -> tuple[str, tuple[int, ...], list[int], list[str]]:
    """Axes before y and x, their sizes, the page of each plane in that order, and the channels' names."""
    try:
        # Through a nameless stream: a set of several files would make tifffile open those that the first one names.
        with tifffile.TiffFile(in_blocks(files, path)) as tif:
            count = _count(tif)
            if count == 1 == len(tif.pages) and not (tif.is_imagej or tif.is_shaped):  # of these a page may hold many
                return "", (), [0], []
            axes, shape, pages, names = _of_ome(tif, path, count) if tif.is_ome else _of_series(tif)
    except SourceError:
        raise
    except Exception as error:  # tifffile raises whatever the bytes lead it to
        raise SourceError(f"{path} is not a readable TIFF: {error}") from error
    if not axes:
        return "", (), [0], []
    if len(pages) != math.prod(shape) or not set(axes) <= set(_AXES):
        raise SourceError(
            f"{path} has {count} pages as {_said(axes, shape)}; expected all of C, Z or T in this file, as OME-TIFF "
            "or ImageJ says it"
        )
    return axes, shape, pages, names


def _count(tif: tifffile.TiffFile) -> int:
    """How many pages there are. Each names the next one, and tifffile would go round in a large circle for ever."""
    file, form, at = tif.filehandle, tif.tiff, tif.pages.first.offset
    seen: set[int] = set()
    while 0 < at < file.size:
        if at in seen:
            raise ValueError("its pages lead back to an earlier one")
        seen.add(at)
        file.seek(at)
        try:
            (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
            file.seek(at + form.tagnosize + tags * form.tagsize)
            (at,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
        except struct.error:  # the file ends here, and so do its pages
            break
    return len(seen)


def _of_series(tif: tifffile.TiffFile) -> tuple[str, tuple[int, ...], list[int], list[str]]:
    """As tifffile understands it; pages that are not there are left out."""
    series = tif.series[0]
    pages: list[Any] = [page.index for page in series.pages if page is not None]
    return series.axes[:-2], series.shape[:-2], pages, []


def _of_ome(tif: tifffile.TiffFile, path: str, count: int) -> tuple[str, tuple[int, ...], list[int], list[str]]:
    """As the OME-XML of the first image says; pages that are not in this file are left out.

    Not tifffile's own reading of it, which minds no entities and takes memory for whatever sizes are claimed.
    """
    root = parse_xml(tif.pages.first.description.encode(), path)
    pixels = root.find("{*}Image/{*}Pixels")
    order = "" if pixels is None else pixels.get("DimensionOrder", "")
    if pixels is None or order[:2] != "XY" or sorted(order[2:]) != sorted(_AXES):
        raise SourceError(
            f"{path} has OME-XML without Image/Pixels and their DimensionOrder; is it one of several files?"
        )
    axes = order[:1:-1]  # it is written with the fastest first
    shape = tuple(whole(pixels.get(f"Size{axis}"), f"Size{axis}", path) for axis in axes)
    pages: dict[int, int] = {}
    if math.prod(shape) <= count:
        for data in pixels.iterfind("{*}TiffData"):
            for at, page in _of_data(data, axes, shape, path) if _is_here(data, root, path) else ():
                if at in pages:
                    raise SourceError(f"{path} has OME-XML that names plane {at} twice; expected one TiffData for each")
                pages[at] = page
    names = [for_people(channel.get("Name")) for channel in pixels.iterfind("{*}Channel")]
    return axes, shape, [pages[at] for at in sorted(pages)], [name for name in names if name]


def _is_here(data: ET.Element, root: ET.Element, path: str) -> bool:
    """Whether these planes are in this file, of a set of several."""
    uuid = data.find("{*}UUID")
    return uuid is None or uuid.text == root.get("UUID") or uuid.get("FileName") == posixpath.basename(path)


def _of_data(data: ET.Element, axes: str, shape: tuple[int, ...], path: str) -> Iterator[tuple[int, int]]:
    """The number of each plane, and its page."""
    first, planes = 0, math.prod(shape)
    for axis, size in zip(axes, shape, strict=True):
        first = first * size + whole(data.get(f"First{axis}", "0"), f"First{axis}", path, 0, size - 1)
    page = whole(data.get("IFD", "0"), "IFD", path, 0)
    count = whole(data.get("PlaneCount", "1" if "IFD" in data.attrib else str(planes)), "PlaneCount", path, 0)
    return ((first + number, page + number) for number in range(min(count, planes - first)))


def _step(shape: tuple[int, ...], number: int) -> int:
    step = 1
    for size in shape[number + 1 :]:
        step *= size
    return step


def _said(axes: str, shape: tuple[int, ...]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)) or "no axes"

"""TIFFs of many pages (OME-TIFF, ImageJ): from a field per file to a field per z and t, and a plane per page.

What the pages are is read from the first file alone; the others are held to its shape when their pixels are read.
"""

from dataclasses import replace
from typing import Any

import tifffile

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.archive import Layout, Plane
from shardgen.files import Files
from shardgen.pixels import in_blocks
from shardgen.sources.markup import parse_xml

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

    def planes(file: str, t: int, z: int) -> tuple[tuple[Plane, ...], ...]:
        at = t * steps.get("T", 0) + z * steps.get("Z", 0)
        return tuple((Plane(file, (pages[at + c * steps.get("C", 0)],)),) for c in range(sizes.get("C", 1)))

    fields = tuple(
        replace(field, z=z, t=t, planes=planes(field.planes[0][0].path, t, z))
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
            series = tif.series[0]
            axes, shape = series.axes[:-2], series.shape[:-2]
            pages = [None if page is None else page.index for page in series.pages]
            count, ome = len(tif.pages), tif.ome_metadata
    except SourceError:
        raise
    except Exception as error:  # tifffile raises whatever the bytes lead it to
        raise SourceError(f"{path} is not a readable TIFF: {error}") from error
    if count == 1 or not axes:
        return "", (), [0], []
    if None in pages or not set(axes) <= set(_AXES):
        raise SourceError(
            f"{path} has {count} pages as {_said(axes, shape)}; expected all of C, Z or T in this file, as OME-TIFF "
            "or ImageJ says it"
        )
    return axes, shape, [int(page) for page in pages if page is not None], _names(ome, path) if ome else []


def _names(ome: str, path: str) -> list[str]:
    root = parse_xml(ome.encode(), path)
    image: Any = next((node for node in root if node.tag.endswith("}Image")), None)
    if image is None:
        return []
    found = [node.get("Name") for node in image.iter() if node.tag.endswith("}Channel")]
    return [name for name in found if name]


def _step(shape: tuple[int, ...], number: int) -> int:
    step = 1
    for size in shape[number + 1 :]:
        step *= size
    return step


def _said(axes: str, shape: tuple[int, ...]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)) or "no axes"

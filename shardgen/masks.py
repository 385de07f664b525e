"""Label images: which pixels of a field are of which object.

a pattern, or the name of a label image  ──find_masks──►  Masks  ──read_mask──►  [Y, X]  ──objects_of──►  Objects
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bie_stream.errors import SourceError
from shardgen.archive import Archive, Masks, Objects, Plane, by_place, describe_place, only_plate
from shardgen.files import Files
from shardgen.pixels import header, read_plane
from shardgen.sources import ome_zarr, tiff_folder

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def find_masks(said: str, archive: Archive, open_root: Callable[[str], Files]) -> Masks:
    """The label images of an archive's fields.

    Args:
        said: a folder or URL and a pattern of the TIFFs in it, as `shardgen.sources.tiff_folder` has it:
            `masks/{well}_s{field}.tif`. Without `{field}` a mask is of field 1, without `{plate}` of the only plate,
            without `{z}` or `{t}` of all. Or, of OME-Zarr, a name: `nuclei` lies at `<image>/labels/nuclei`.
        open_root: gives the files under a folder or URL.

    Raises:
        SourceError: none is there for any field, or two are for one.
    """
    if "{" in said:
        return _masks_by_name(said, archive, open_root)
    if archive.format != "zarr":
        raise SourceError(
            f"--masks {said!r} has no placeholder, and only OME-Zarr has label images by name; "
            "expected a pattern, as in 'masks/{plate}/{well}_s{field}.tif'"
        )
    return Masks(archive.files, ome_zarr.find_labels(archive.files, archive.fields, said), "zarr")


def _masks_by_name(said: str, archive: Archive, open_root: Callable[[str], Files]) -> Masks:
    cut = said.rfind("/", 0, said.index("{"))
    root, pattern = said[:cut] or "/" if cut >= 0 else ".", said[cut + 1 :]
    told = set(re.findall(r"{([^{}]*)}", pattern))
    if "channel" in told:
        raise SourceError(f"--masks {said!r}: a mask is of all channels; write {{*}}, or one's name, for {{channel}}")
    if told & {"z", "t"} and any(len(planes) > 1 for field in archive.fields for planes in field.planes):
        raise SourceError(f"--masks {said!r} tells z or t apart, and fields are a maximum over them; choose one slice")
    plate = "" if "plate" in told else only_plate(archive.fields, f"--masks {said!r} has no {{plate}}")
    files = open_root(root)
    masks = by_place(tiff_folder.find(files, pattern, plate=plate).fields, told)
    fields = by_place(archive.fields, told)
    planes = {field.place: masks[key][0].planes[0][0] for key in fields if key in masks for field in fields[key]}
    if not planes:
        (mask, *_), *_ = masks.values()
        raise SourceError(
            f"--masks {said!r} has none of a field of the archive: {mask.planes[0][0].path} is of "
            f"{describe_place(mask.place)}, the archive has {describe_place(archive.fields[0].place)}"
        )
    return Masks(files, planes, "tiff")


def read_mask(masks: Masks, plane: Plane, shape: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """A label image [Y, X], in its own dtype.

    Args:
        plane: where it is, as `masks.planes` says it.
        shape: height and width of the field, in pixels.

    Raises:
        SourceError: it is not there or damaged, has another shape, or pixels that are no integers.
    """
    dtype, found = header(masks.files, plane, masks.format)
    if dtype not in _INTEGERS:
        raise SourceError(f"{plane.path} has pixels of {dtype}; a mask has whole numbers, as uint16: convert it")
    if found != shape:
        raise SourceError(f"{plane.path} is {found[0]} x {found[1]} pixels, its field is {shape[0]} x {shape[1]}")
    mask = np.empty(shape, dtype)
    read_plane(masks.files, plane, masks.format, mask)
    return mask


def objects_of(mask: NDArray[np.integer[Any]]) -> Objects:
    """The objects of a label image [Y, X]: 0 is background, every other number one object, in one piece or in several.

    Their centres are the means of their pixels; they have no labels.

    Raises:
        SourceError: a number is below 0 or beyond 63 bits.
    """
    pixels, width = mask.ravel(), mask.shape[1]
    begins = np.append(True, pixels[1:] != pixels[:-1])
    begins[::width] = True
    first = np.flatnonzero(begins)  # of runs of one number in one row; they are far fewer than pixels
    length = np.diff(first, append=pixels.size)
    taken = pixels[first] != 0
    first, length = first[taken], length[taken]
    numbers, of_run = np.unique(pixels[first], return_inverse=True)
    for number in map(int, (*numbers[:1], *numbers[-1:])):
        if not 0 < number < 2**63:
            raise SourceError(f"a mask has object {number}; expected numbers from 1 to 2**63 - 1, 0 for background")
    row, column = first // width, first % width + (length - 1) / 2
    sums = [np.bincount(of_run, weights, len(numbers)) for weights in (length, length * row, length * column)]
    return Objects(numbers.astype(np.int64), np.stack(sums[1:], axis=1) / sums[0][:, None], {})

"""OME-Zarr images and plates of versions 0.1 to 0.5, and plain Zarr arrays. Nothing is listed: metadata is walked.

    plate.zarr                plate: wells[].path
    ├── A/1                   well: images[].path
    │   ├── 0                 image: multiscales[0].datasets[0].path, axes, omero.channels[].label
    │   │   └── 0             array of full resolution: its shape, of a plate's first image only
    │   └── 1 …
    └── B/7 …                 may be absent

    <image>/labels/nuclei     label image: an image of whole numbers beside the one that it belongs to

    series.zarr               bioformats2raw.layout: the images in OME's `series`, else in 0, 1, … as far as they go
    image.zarr                multiscales
    array.zarr                an array (y, x), (c, y, x), (c, z, y, x) or (t, c, z, y, x)

Metadata of Zarr version 2 is in `.zattrs`, of version 3 in `zarr.json` under `attributes.ome`. It is not trusted.

All images must have one order of axes and the same channels. The shape of a plate's first image is taken for that of
all others, whose arrays are looked at when their pixels are read: fewer planes, or planes of another size, are an
error then; more z or t than the first image has are not seen.
"""

import itertools
import logging
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from bie_stream.errors import SourceError, SourceMissing
from bie_stream.shards import Channel
from shardgen.archive import Field, Layout, Place, Plane, some, split_well, well_name
from shardgen.files import Files
from shardgen.pixels import open_zarr
from shardgen.sources.markup import for_people

MOST_PLANES = 10_000_000  # of one plate; metadata that claims more would fill the memory
MOST_SERIES = 10_000  # asked for one by one: a server that has an answer to everything would never end
_THREADS = 8
_TRIES = 100  # first images of a plate whose array is looked for
_VERSION = re.compile(r"0\.[1-5]([.-].*)?")
_PLAIN_AXES = {2: "yx", 3: "cyx", 4: "czyx", 5: "tczyx"}
_AXES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_UM = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
_log = logging.getLogger("shardgen")
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class _Place:
    """Where an image belongs, and the group it is in."""

    well: str
    field: str
    group: str


@dataclass(frozen=True)
class _Image:
    """What the metadata of one image says.

    Attributes:
        array: path of its level 0.
        axes: their letters in the array's order, as in `tczyx`.
        labels: of its channels; None where it says nothing of them.
    """

    place: _Place
    array: str
    axes: str
    labels: tuple[str, ...] | None = None
    pixel_size_um: float | None = None


@dataclass(frozen=True)
class _Label:
    """A label image, and the image that it belongs to.

    Attributes:
        size: of the label image's axes.
    """

    image: _Image
    label: _Image
    size: dict[str, int]

    def plane(self, planes: Sequence[Plane]) -> Plane:
        """The one that belongs to these of the image: one, or several where their maximum is taken."""
        return Plane(self.label.array, tuple(self._index(axis, planes) for axis in self.label.axes[:-2]))

    def _index(self, axis: str, planes: Sequence[Plane]) -> int:
        if self.size[axis] == 1:
            return 0
        number = self.image.axes.find(axis)
        found = {plane.index[number] for plane in planes} if number >= 0 and axis != "c" else set()
        if len(found) > 1:
            raise SourceError(
                f"{self.label.array} has labels for each {axis}, not for the maximum over all: choose one"
            )
        if not found or max(found) >= self.size[axis]:
            expected = "1" if axis == "c" else f"1, or as {self.image.array} has it ({self.image.axes})"
            raise SourceError(f"{self.label.array} has {axis} of size {self.size[axis]}; expected {expected}")
        return found.pop()


@dataclass(frozen=True)
class _Groups:
    """Reads what the groups of one Zarr hierarchy, all of version 2 or all of version 3, say of OME."""

    files: Files
    version: int

    def about(self, group: str) -> dict[str, Any]:
        """The OME attributes of a group; raises SourceMissing where it has none."""
        from shardgen.zarr_store import read_json  # zarr takes long to import, and most archives have none

        if self.version == 2:
            return read_json(self.files, _join(group, ".zattrs"))
        attributes = _object(read_json(self.files, _join(group, "zarr.json")).get("attributes", {}), "attributes")
        return _object(attributes.get("ome", {}), f"attributes.ome of {group}")

    def where_there(self, groups: Sequence[str]) -> list[dict[str, Any] | None]:
        """Of each group what `about` gives; None where it is not there."""

        def about(group: str) -> dict[str, Any] | None:
            try:
                return self.about(group)
            except SourceMissing:
                return None

        return _each(about, groups)


def there(names: list[str]) -> bool:
    """Whether a folder with these entries is a Zarr group or array."""
    return not {".zattrs", ".zgroup", ".zarray", "zarr.json"}.isdisjoint(names)


def find(files: Files, folder: str, plate: str | None = None, wells: frozenset[str] | None = None) -> Layout:
    """The fields of a plate, of an image, of a series of images, or of a plain array.

    What is no plate is in well A1; the first image of a series is field 1, as is the first of a well.

    Args:
        folder: below the files' root; "" is the root itself.
        plate: the plate's name; None: as its metadata says, else the folder's name without `.ome.zarr` or `.zarr`.
        wells: only these are read, as in A1. None: all.

    Raises:
        SourceMissing: there is no Zarr.
        SourceError: it is none of these, is damaged, or its images do not fit together.
    """
    folder = folder.strip("/")
    groups, about = _root(files, folder)
    if "plate" in about:
        described = _object(about["plate"], "plate")
        _require_version(described.get("version", about.get("version")), "the plate")
        images = _images(groups, _places(groups, folder, _wells(described, wells)))
        shapes = [_first_shape(files, images)] * len(images)
        plate = plate or for_people(described.get("name"))
    else:
        if wells is not None and "A1" not in wells:
            raise SourceError(f"{folder or files.root} is no plate: it has only well A1, not {some(sorted(wells))}")
        images = _of_no_plate(groups, folder, about)
        shapes = _each(lambda image: _shape(files, image), images)
    return _layout(plate or re.sub(r"(\.ome)?\.zarr$", "", (folder or files.root).rsplit("/", 1)[-1]), images, shapes)


def find_labels(files: Files, fields: Sequence[Field], name: str) -> dict[Place, Plane]:
    """The planes of a label image (OME-NGFF, `<image>/labels/<name>`, of full resolution), for each field that has one.

    A label image may lack c, z and t, or have one of them for all; else its z and t are those of its image. Its height
    and width are looked at when it is read.

    Raises:
        SourceError: no image has a label image of this name, or one is damaged or does not fit its image.
    """
    planes = {field.place: next(filter(None, field.planes)) for field in fields if any(field.planes)}
    arrays = list(dict.fromkeys(of_field[0].path for of_field in planes.values()))
    images = _each(lambda array: _image_of(files, array), arrays)
    labels = dict(zip(arrays, _each(lambda image: _label_image(*image, name), images), strict=True))
    if not any(labels.values()):
        raise SourceError(f"no image has a label image {name!r}; {_known_labels(*images[0])}")
    return {place: label.plane(of_field) for place, of_field in planes.items() if (label := labels[of_field[0].path])}


def _root(files: Files, folder: str) -> tuple[_Groups, dict[str, Any]]:
    """What the outermost group says; nothing where there is none."""
    for version in (2, 3):
        groups = _Groups(files, version)
        try:
            return groups, groups.about(folder)
        except SourceMissing:
            continue
    return groups, {}


def _of_no_plate(groups: _Groups, folder: str, about: dict[str, Any]) -> list[_Image]:
    if "multiscales" in about:
        return [_image(about, _Place("A1", "1", folder))]
    if "bioformats2raw.layout" in about:
        series = enumerate(_series(groups, folder), 1)
        return _images(groups, [_Place("A1", str(number), group) for number, group in series])
    where = folder or groups.files.root
    try:
        dimensions = open_zarr(groups.files, folder).ndim
    except SourceError as error:
        if about:
            raise SourceError(f"{where} has {reprlib.repr(sorted(about))}, neither plate nor image: {error}") from error
        raise
    if dimensions not in _PLAIN_AXES:
        raise SourceError(f"{where} has {dimensions} axes; an array of {', '.join(_PLAIN_AXES.values())} can be read")
    return [_Image(_Place("A1", "1", folder), folder, _PLAIN_AXES[dimensions])]


def _series(groups: _Groups, folder: str) -> Iterator[str]:
    """The images of a collection of bioformats2raw: as listed, else numbered."""
    (listed,) = groups.where_there([_join(folder, "OME")])
    if listed and "series" in listed:
        yield from (_below(folder, path) for path in _items(listed["series"], "series of OME"))
        return
    for number in range(MOST_SERIES):
        group = _join(folder, str(number))
        if groups.where_there([group]) == [None]:
            return
        yield group
    raise SourceError(f"{folder or groups.files.root} has more than {MOST_SERIES} series; can it be?")


def _wells(plate: dict[str, Any], wanted: frozenset[str] | None) -> dict[str, str]:
    """The path of each well that a plate lists."""
    found: dict[str, str] = {}
    for item in _items(plate.get("wells"), "wells of the plate"):
        listed = _object(item, "a well of the plate")
        path = _below("", listed.get("path"))
        other = found.setdefault(_well(path, listed), path)
        if other != path:
            raise SourceError(f"the plate lists {path!r} and {other!r}, which are one well")
    if wanted is None:
        return found
    taken = {well: path for well, path in found.items() if well in wanted}
    if not taken:
        raise SourceError(f"the plate has none of wells {some(sorted(wanted))}; it has {some(sorted(found))}")
    return taken


def _well(path: str, listed: dict[str, Any]) -> str:
    """The name of a well: from its path, since the indices count only the rows and columns that the plate lists."""
    if re.fullmatch(r"[A-Za-z]{1,2}/0*[0-9]{1,3}", path):
        row, column = split_well(path.replace("/", ""))
        return f"{row}{column}"
    at = listed.get("rowIndex"), listed.get("columnIndex")
    match at:
        case (int(row_index), int(column_index)) if path.count("/") == 1:
            if 0 <= row_index < 27 * 26 and 0 <= column_index < 999:
                return well_name(row_index, column_index)
    raise SourceError(f"well {path!r} at {reprlib.repr(at)}; expected row/column, as in A/1")


def _places(groups: _Groups, folder: str, wells: dict[str, str]) -> list[_Place]:
    """The images of the wells that are there."""
    paths = [_below(folder, path) for path in wells.values()]
    read = dict(zip(wells, zip(paths, groups.where_there(paths), strict=True), strict=True))
    absent = [well for well, (_, about) in read.items() if about is None]
    if len(absent) == len(wells):
        raise SourceError(f"{folder or groups.files.root} lists {len(wells)} wells, none is there: {some(absent)}")
    if absent:
        _log.warning("%d of %d wells that the plate lists are not there: %s", len(absent), len(wells), some(absent))
    return [
        _Place(well, str(number), image)
        for well, (path, about) in read.items()
        if about is not None
        for number, image in enumerate(_of_well(path, about), 1)
    ]


def _of_well(path: str, about: dict[str, Any]) -> list[str]:
    images = _items(_object(about.get("well"), f"well of {path}").get("images"), f"images of {path}")
    found = [_below(path, _object(image, f"an image of {path}").get("path")) for image in images]
    if len(set(found)) < len(found):
        raise SourceError(f"{path} lists an image twice: {some(found)}")
    return found


def _images(groups: _Groups, places: list[_Place]) -> list[_Image]:
    """The images that are there; they must be alike."""
    read = groups.where_there([place.group for place in places])
    images = [_image(about, place) for place, about in zip(places, read, strict=True) if about is not None]
    if not images:
        raise SourceError(f"none of {len(places)} images is there: {some([place.group for place in places], 3)}")
    if len(images) < len(places):
        _log.warning("%d of %d images that are listed are not there", len(places) - len(images), len(places))
    _require_alike(images)
    return images


def _require_alike(images: list[_Image]) -> None:
    first, labelled = images[0], next((image for image in images if image.labels is not None), images[0])
    for image in images:
        if image.axes != first.axes:
            raise SourceError(f"{first.array} has axes {first.axes}, {image.array} has {image.axes}; read them apart")
        if image.labels not in (None, labelled.labels):
            raise SourceError(
                f"{labelled.array} has {_channels(labelled.labels)}, {image.array} has {_channels(image.labels)}; "
                "read their wells apart"
            )


def _channels(labels: tuple[str, ...] | None) -> str:
    return f"{len(labels or ())} channels ({some(list(labels or ()))})"


def _image(about: dict[str, Any], place: _Place) -> _Image:
    where = place.group or "the image"
    multiscale = _object(_items(about.get("multiscales"), f"multiscales of {where}")[0], f"multiscales of {where}")
    version = multiscale.get("version", about.get("version"))
    _require_version(version, where)
    dataset = _object(_items(multiscale.get("datasets"), f"datasets of {where}")[0], f"datasets of {where}")
    if "axes" not in multiscale and version not in (None, "0.1", "0.2"):
        raise SourceError(f"{where} has no axes, which OME-Zarr {version} must have")
    named = _items(multiscale.get("axes", ["t", "c", "z", "y", "x"]), f"axes of {where}")
    axes = "".join(_axis(axis, where) for axis in named)
    if not axes.endswith("yx") or len(set(axes)) < len(axes):
        raise SourceError(f"{where} has axes {axes[:20]}; expected each of t, c, z at most once, then y, x")
    return _Image(
        place,
        _below(place.group, dataset.get("path")),
        axes,
        _labels(about.get("omero"), where),
        _pixel_size_um(named, dataset, multiscale, where),
    )


def _require_version(version: object, where: str) -> None:
    if version is not None and not (isinstance(version, str | float) and _VERSION.fullmatch(str(version))):
        raise SourceError(f"{where} is OME-Zarr {reprlib.repr(version)}; this reads 0.1 to 0.5")


def _axis(axis: object, where: str) -> str:
    """One of t, c, z, y, x: a string in version 0.3, later an object with a name and perhaps a type."""
    described = {"name": axis} if isinstance(axis, str) else _object(axis, f"an axis of {where}")
    name, kind = described.get("name"), described.get("type")
    if isinstance(name, str) and isinstance(kind, str | None):
        letter = {"time": "t", "channel": "c"}.get(kind or "", name)  # these may have any name
        if kind in (None, _AXES.get(letter)) and letter in _AXES and (name == letter or name not in _AXES):
            return letter
    raise SourceError(
        f"{where} has an axis {reprlib.repr(name)} of type {reprlib.repr(kind)}; expected {', '.join(_AXES)}"
    )


def _labels(omero: object, where: str) -> tuple[str, ...] | None:
    """What `omero` calls the channels; "" where it is no name."""
    channels = _object(omero, f"omero of {where}").get("channels") if omero is not None else None
    if not channels:
        return None
    described = (_object(channel, f"a channel of {where}") for channel in _items(channels, f"channels of {where}"))
    return tuple(for_people(channel.get("label")) or "" for channel in described)


def _pixel_size_um(axes: list[Any], dataset: dict[str, Any], multiscale: dict[str, Any], where: str) -> float | None:
    """The width of a pixel, if it is known and, within 1 %, the height."""
    level, all_levels = (
        _scale(one.get("coordinateTransformations"), len(axes), where) for one in (dataset, multiscale)
    )
    factors = [um for axis in axes[-2:] if (um := _um(axis))]
    if level is None or len(factors) < 2:
        return None
    height, width = (factors[i] * level[i] * (all_levels or (1.0, 1.0))[i] for i in (0, 1))
    return width if width > 0 and math.isclose(height, width, rel_tol=0.01) else None


def _um(axis: object) -> float | None:
    """Micrometres in the axis's unit."""
    unit = axis.get("unit") if isinstance(axis, dict) else None
    return _UM.get(unit) if isinstance(unit, str) else None


def _scale(transformations: object, axes: int, where: str) -> tuple[float, float] | None:
    """Of y and x; None where none is given, or only the path of an array that holds it."""
    scale = None
    for item in _items(transformations, f"transformations of {where}") if transformations else []:
        one = _object(item, f"a transformation of {where}")
        if one.get("type") != "scale" or "path" in one:
            continue
        values = _items(one.get("scale"), f"scale of {where}")
        known = [float(n) for n in values if isinstance(n, int | float) and abs(n) < 1e100]  # which NaN is not
        if not len(known) == len(values) == axes:
            raise SourceError(f"{where} has scale {reprlib.repr(values)}; expected {axes} finite numbers")
        scale = known[-2], known[-1]
    return scale


def _first_shape(files: Files, images: list[_Image]) -> tuple[int, ...]:
    """The shape of the first image whose array is there."""
    for image in images[:_TRIES]:
        try:
            return _shape(files, image)
        except SourceMissing:
            continue
    raise SourceError(f"{images[0].array} and the arrays after it are not there")


def _shape(files: Files, image: _Image) -> tuple[int, ...]:
    shape: tuple[int, ...] = open_zarr(files, image.array).shape
    if len(shape) != len(image.axes):
        raise SourceError(f"{image.array} has shape {shape}, its axes are {image.axes}")
    return shape


def _layout(plate: str, images: list[_Image], shapes: list[tuple[int, ...]]) -> Layout:
    """The fields of images that have these shapes."""
    planes = sum(math.prod(shape[:-2]) for shape in shapes)
    if planes > MOST_PLANES:
        raise SourceError(f"{plate} has {planes:.2g} planes; {MOST_PLANES:,} can be read at once, so choose wells")
    first = _size(images[0], shapes[0])
    for image, shape in zip(images, shapes, strict=True):
        size = _size(image, shape)
        if any(first.get(axis, 1) != size.get(axis, 1) for axis in "cyx"):
            raise SourceError(
                f"{images[0].array} has {images[0].axes} {shapes[0]}, {image.array} has {image.axes} {shape}; "
                "read what differs in channels, height or width apart"
            )
    fields = (
        field
        for image, shape in zip(images, shapes, strict=True)
        for field in _fields(plate, image, _size(image, shape))
    )
    return Layout(
        channels=tuple(Channel(name=name) for name in _channel_names(images, first.get("c", 1))),
        fields=tuple(sorted(fields, key=lambda field: field.order)),
        format="zarr",
        pixel_size_um=_common([image.pixel_size_um for image in images]),
    )


def _image_of(files: Files, array: str) -> tuple[_Groups, _Image]:
    """The image that an array is the full resolution of; its group is one of the folders that the array is in."""
    parts = array.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        group = "/".join(parts[:depth])
        groups, about = _root(files, group)
        if "multiscales" in about and (image := _image(about, _Place("", "", group))).array == array:
            return groups, image
    raise SourceError(f"{array or files.root} is in no OME-Zarr image; only beside images there are label images")


def _label_image(groups: _Groups, image: _Image, name: str) -> _Label | None:
    """The label image beside an image; None where it has none of this name."""
    group = _below(_join(image.place.group, "labels"), name)
    try:
        label = _image(groups.about(group), _Place("", "", group))
    except SourceMissing:
        return None
    return _Label(image, label, _size(label, _shape(groups.files, label)))


def _known_labels(groups: _Groups, image: _Image) -> str:
    """Which label images an image has, for a message."""
    (about,) = groups.where_there([_join(image.place.group, "labels")])
    listed = (about or {}).get("labels")
    known = [known for name in listed if (known := for_people(name))] if isinstance(listed, list) else []
    return f"{image.place.group or groups.files.root} has {some(known) or 'none'}"


def _common(sizes: list[float | None]) -> float | None:
    """The first of sizes that are, within 1 %, the same; None where they are not or one is unknown."""
    first = sizes[0]
    alike = first is not None and all(size is not None and math.isclose(size, first, rel_tol=0.01) for size in sizes)
    return first if alike else None


def _fields(plate: str, image: _Image, size: dict[str, int]) -> Iterator[Field]:
    """A field for every t and z of an image."""
    for t, z in itertools.product(range(size.get("t", 1)), range(size.get("z", 1))):
        indices = ({"t": t, "c": c, "z": z} for c in range(size.get("c", 1)))
        planes = tuple((Plane(image.array, tuple(index[axis] for axis in image.axes[:-2])),) for index in indices)
        yield Field(plate, image.place.well, image.place.field, z, t, planes)


def _size(image: _Image, shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(image.axes, shape, strict=True))


def _channel_names(images: list[_Image], channels: int) -> list[str]:
    """The labels, where each channel has one of its own."""
    labels = next((image.labels for image in images if image.labels), ())
    unique = len(set(labels)) == len(labels) == channels and all(labels)
    return list(labels) if unique else [f"c{number}" for number in range(channels)]


def _each(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """The function's results, in order; it waits for a server, so several threads call it."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SourceError(f"{what}: {reprlib.repr(value)}; expected a JSON object")
    return value


def _items(value: object, what: str) -> list[Any]:
    if not (isinstance(value, list) and value):
        raise SourceError(f"{what}: {reprlib.repr(value)}; expected a JSON array that is not empty")
    return value


def _below(folder: str, path: object) -> str:
    """A path inside a folder, as metadata names it."""
    if not (isinstance(path, str) and path.isprintable() and len(path) < 1000 and "\\" not in path):
        raise SourceError(f"{reprlib.repr(path)} in {folder!r} is no path")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in path.split("/")):
        raise SourceError(f"{path!r} in {folder!r} is not a path inside it")
    return _join(folder, path)


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path

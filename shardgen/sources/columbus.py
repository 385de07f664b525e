"""A measurement exported from Columbus (PerkinElmer), in a folder or one folder further down.

    ESP0025769[6377]/
      2020-03-31T111336+0200[6690]/
        MeasurementIndex.ColumbusIDX.xml    names the image indexes in elements `Reference`
        ImageIndex.ColumbusIDX.xml          for each image row, column, field, plane, time point, channel, URL
        001001-1.tif                        a page for each plane: the URL's `BufferNo`

URLs start from the folder of their index. Indexes in several folders are of one time point each.
"""

import posixpath
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import NamedTuple

from bie_stream.errors import SourceError, SourceMissing, nearest
from bie_stream.shards import Channel
from shardgen.archive import Layout, Plane, some
from shardgen.files import Files
from shardgen.sources.markup import Found, channel_names, decimal, gather, parse_xml, path_below, well_at, whole

_MEASUREMENT = "MeasurementIndex.ColumbusIDX.xml"
_IMAGES = "ImageIndex.ColumbusIDX.xml"
_STAMPED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}[+-][0-9]{4}\[[0-9]+\]/")
_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "nm": 1e-3}


class _Image(NamedTuple):
    found: Found
    channel: Channel
    pixel_size_um: float | None


def there(names: list[str]) -> bool:
    """Whether a folder with these entries is such a measurement, or has one in a folder named by time and number."""
    return _is_measurement(names) or any(_STAMPED.fullmatch(name) for name in names)


def find(files: Files, folder: str, plate: str) -> Layout:
    """The fields of the measurement in a folder. An image without a file is a missing one.

    Raises:
        SourceError: there is no measurement, or several; an index is damaged, or names two planes for one place.
        SourceMissing: the folder or an index is not there.
    """
    home = _measurement(files, folder)
    images: list[_Image] = []
    times: dict[str, int] = {}
    for index, root in _image_indexes(files, home):
        t = times.setdefault(posixpath.dirname(index), len(times))
        read = list(_images(root, index))
        if all(image.found.t == 0 for image in read):  # the folder tells the time point, the index does not
            read = [image._replace(found=image.found._replace(t=t)) for image in read]
        images += read
    numbers, fields = gather(plate, (image.found for image in images))
    if not fields:
        raise SourceError(f"{files.root}/{home} has an index without images; expected elements Images/Image with a URL")
    channels = {image.found.channel: image.channel for image in reversed(images)}
    names = channel_names(numbers, {number: channel.name for number, channel in channels.items()})
    sizes = {image.pixel_size_um for image in images}
    return Layout(
        channels=tuple(channels[n].model_copy(update={"name": name}) for n, name in zip(numbers, names, strict=True)),
        fields=fields,
        pixel_size_um=sizes.pop() if len(sizes) == 1 else None,
    )


def _is_measurement(names: list[str]) -> bool:
    return _MEASUREMENT in names or _IMAGES in names


def _measurement(files: Files, folder: str) -> str:
    """The folder with the indexes: this one, or the only one of those in it."""
    names = files.list(folder)
    if _is_measurement(names):
        return folder
    below = [posixpath.join(folder, name[:-1]) for name in names if name.endswith("/")]
    found = [path for path in below if _is_measurement(files.list(path))]
    if not found:
        raise SourceError(
            f"{files.root}/{folder} holds no {_MEASUREMENT}, and no folder in it does; expected a Columbus export"
        )
    if len(found) > 1:
        raise SourceError(f"{files.root}/{folder} holds {len(found)} measurements; give one of {some(found)}")
    return found[0]


def _image_indexes(files: Files, home: str) -> Iterator[tuple[str, ET.Element]]:
    """Each image index with its path, in the order in which the measurement names them."""
    measurement = posixpath.join(home, _MEASUREMENT)
    try:
        root = parse_xml(files.read(measurement), measurement)
    except SourceMissing:
        references = []
    else:
        named = [(element.text or "").strip() for element in root.iterfind(".//{*}Reference")]
        references = [path_below(name, measurement) for name in named if name.lower().endswith(".columbusidx.xml")]
    for reference in references or [_IMAGES]:
        path = posixpath.join(home, reference)
        try:
            data = files.read(path)
        except SourceMissing:
            if "/" not in reference:
                raise
            path = posixpath.join(home, posixpath.basename(reference))  # moved beside the measurement's index
            data = files.read(path)
        yield path, parse_xml(data, path)


def _images(root: ET.Element, index: str) -> Iterator[_Image]:
    for i, element in enumerate(root.iterfind("{*}Images/{*}Image"), start=1):
        where = f"{index}, image {i}"
        parts = {part.tag.rpartition("}")[2]: part for part in element}
        texts = {name: part.text for name, part in parts.items()}
        url = parts.get("URL")
        if url is None:
            raise SourceError(f"{where}: URL is missing; the file is damaged, or of a version not known here")
        if not (url.text or "").strip():  # planned, not taken
            continue
        yield _Image(_found(url, texts, index, where), _channel(texts, where), _pixel_size_um(parts, where))


def _found(url: ET.Element, texts: dict[str, str | None], index: str, where: str) -> Found:
    file = path_below((url.text or "").strip(), where)
    return Found(
        well=well_at(texts.get("Row"), texts.get("Col"), where),
        field=str(whole(texts.get("FieldID"), "FieldID", where)),
        z=whole(texts.get("PlaneID"), "PlaneID", where) - 1,
        t=whole(texts.get("TimepointID"), "TimepointID", where) - 1,
        channel=whole(texts.get("ChannelID"), "ChannelID", where),
        plane=Plane(
            posixpath.join(posixpath.dirname(index), file),
            (whole(url.get("BufferNo"), "BufferNo of the URL", where, lowest=0),),
        ),
    )


def _channel(texts: dict[str, str | None], where: str) -> Channel:
    def wavelength_nm(name: str) -> float | None:  # 0, as for transmitted light: none
        return decimal(texts[name], name, where) or None if texts.get(name) else None

    return Channel(
        name=texts.get("ChannelName") or "",
        excitation_nm=wavelength_nm("MainExcitationWavelength"),
        emission_nm=wavelength_nm("MainEmissionWavelength"),
    )


def _pixel_size_um(parts: dict[str, ET.Element], where: str) -> float | None:
    element = parts.get("ImageResolutionX")
    if element is None:
        return None
    unit = element.get("Unit", "")
    if unit not in _UM:
        raise SourceError(f"{where}: ImageResolutionX has unit {unit!r}; {nearest(unit, list(_UM))}")
    # Nine digits: 6.5e-07 m is 0.65 µm, not 0.6499999999999999.
    return float(f"{decimal(element.text, 'ImageResolutionX', where) * _UM[unit]:.9g}") or None

"""A plate of a Yokogawa CellVoyager (CV7000, CV8000), in one folder.

    001/
      001.wpi                             the plate; not always called so, and not read
      MeasurementData.mlf                 XML, a record for each image: row, column, field, z, t, channel, file
      MeasurementDetail.mrf               XML, the channels and the size of their pixels
      001_D08_T0001F001L01A01Z01C01.tif   one plane each; the record tells what it is, not the name
      DC_DCAM#1_CAM3.tif, SC_….tif        corrections of camera and shading, in no record

Channels are named by their numbers: what they show is not written in these files.
"""

import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator

from bie_stream.errors import SourceError, SourceMissing
from bie_stream.shards import Channel
from shardgen.archive import Layout, Plane
from shardgen.files import Files
from shardgen.sources.markup import Found, decimal, file_name, gather, parse_xml, well_at, whole

_DATA = "MeasurementData.mlf"
_DETAIL = "MeasurementDetail.mrf"


def there(names: list[str]) -> bool:
    """Whether a folder with these entries is such a plate."""
    return _DATA in names


def find(files: Files, folder: str, plate: str) -> Layout:
    """The fields of the plate in a folder: what its image records say. No image is looked at, or for.

    The size of pixels is unknown without `MeasurementDetail.mrf`, and where channels differ in it.

    Raises:
        SourceError: a file is damaged, there is no image record, or two for one place.
        SourceMissing: there is no `MeasurementData.mlf`.
    """
    data = posixpath.join(folder, _DATA)
    numbers, fields = gather(plate, _found(parse_xml(files.read(data), data), folder, data))
    if not fields:
        raise SourceError(f"{data} has no record of an image (Type IMG); the measurement failed, leave the plate out")
    channels = tuple(Channel(name=str(number)) for number in numbers)
    return Layout(channels, fields, pixel_size_um=_pixel_size_um(files, posixpath.join(folder, _DETAIL), numbers))


def _found(root: ET.Element, folder: str, data: str) -> Iterator[Found]:
    bts = _namespace(root, "MeasurementData", data)
    for i, record in enumerate(root.iter(f"{bts}MeasurementRecord"), start=1):
        get, where = record.attrib.get, f"{data}, record {i}"
        kind = get(f"{bts}Type")
        if kind is None:
            raise SourceError(f"{where}: Type is missing; the file is damaged, or of a version not known here")
        if kind != "IMG":  # ERR, where focus or camera failed: it has no field and no file
            continue
        yield Found(
            well=well_at(get(f"{bts}Row"), get(f"{bts}Column"), where),
            field=str(whole(get(f"{bts}FieldIndex"), "FieldIndex", where)),
            z=whole(get(f"{bts}ZIndex"), "ZIndex", where) - 1,
            t=whole(get(f"{bts}TimePoint"), "TimePoint", where) - 1,
            channel=whole(get(f"{bts}Ch"), "Ch", where),
            plane=Plane(posixpath.join(folder, file_name((record.text or "").strip(), where))),
        )


def _pixel_size_um(files: Files, detail: str, channels: Collection[int]) -> float | None:
    try:
        root = parse_xml(files.read(detail), detail)
    except SourceMissing:
        return None
    bts, sizes = _namespace(root, "MeasurementDetail", detail), set()
    for channel in root.iter(f"{bts}MeasurementChannel"):
        if whole(channel.get(f"{bts}Ch"), "Ch", detail) in channels:
            for name in ("HorizontalPixelDimension", "VerticalPixelDimension"):
                sizes.add(decimal(channel.get(f"{bts}{name}"), name, detail))
    return sizes.pop() or None if len(sizes) == 1 else None


def _namespace(root: ET.Element, name: str, where: str) -> str:
    """What comes before each name in a document: its version of the schema."""
    if root.tag.rpartition("}")[2] != name:
        raise SourceError(f"{where} is a document {root.tag!r}; expected a {name} of a CellVoyager")
    return root.tag.removesuffix(name)

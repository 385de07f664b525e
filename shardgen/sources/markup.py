"""What microscopes write beside their images, read with suspicion: XML, numbers, names; and the fields these make.

    bytes ─▶ parse_xml ─▶ whole, decimal, well_at, file_name ─▶ Found ─▶ gather ─▶ channels, fields

Every fault is a SourceError that names the file (`where`) and what is wrong in it.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bie_stream.errors import SourceError
from shardgen.archive import Field, Plane, well_name

_ROWS = 26 + 26 * 26  # A to ZZ: what a well's name can say
_COLUMNS = 999


class Found(NamedTuple):
    """One plane of a plate, as its name or a record tells it; z and t from 0, the channel by its number."""

    well: str
    field: str
    z: int
    t: int
    channel: int
    plane: Plane


def parse_xml(data: bytes, where: str) -> ET.Element:
    """The root of an XML document in UTF-8, with or without a byte order mark.

    Raises:
        SourceError: it is not such a document, or it has a DOCTYPE: no microscope writes one, and with its entities
            a few bytes grow into gigabytes.
    """
    try:
        text = data.decode("utf-8-sig")  # decoded first: what is searched below is what the parser sees
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not UTF-8 ({error}); fetch it again") from error
    if "\0" in text:  # UTF-16 without a mark, which the parser would recognise: nothing below would be seen
        raise SourceError(f"{where} is not UTF-8 (it has a byte 0); fetch it again")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SourceError(f"{where} has a DOCTYPE; expected plain XML, and entities are not read")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise SourceError(f"{where} is not whole XML ({error}); fetch it again") from error


def whole(text: str | None, what: str, where: str, lowest: int = 1, highest: int = 10**6) -> int:
    """A whole number.

    Raises:
        SourceError: it is missing (None), not a number, or not in `lowest`..`highest`.
    """
    digits = _there(text, what, where)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and lowest <= int(digits) <= highest):
        raise SourceError(f"{where}: {what} is {digits!r}; expected a whole number, {lowest} to {highest}")
    return int(digits)


def decimal(text: str | None, what: str, where: str) -> float:
    """A number of at least 0, with a decimal point.

    Raises:
        SourceError: it is missing (None), not such a number, or so large that arithmetic with it would overflow.
    """
    digits = _there(text, what, where)
    try:
        number = float(digits)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e100:
        raise SourceError(f"{where}: {what} is {digits!r}; expected a number of at least 0")
    return number


def well_at(row: str | None, column: str | None, where: str, first: int = 1) -> str:
    """`B3` from the texts of a row and a column that are counted from `first`.

    Raises:
        SourceError: one of them is missing, not a number, or on no plate.
    """
    return well_name(
        whole(row, "the row", where, first, first + _ROWS - 1) - first,
        whole(column, "the column", where, first, first + _COLUMNS - 1) - first,
    )


def path_below(path: str, where: str) -> str:
    """A relative path, if it can only lead below the folder that it starts from.

    Raises:
        SourceError: it is empty, absolute, or has `..` or a backslash.
    """
    if "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise SourceError(f"{where} names the file {path!r}; expected a path below its own folder, with /")
    return path


def file_name(name: str, where: str) -> str:
    """The name of a file in a folder itself.

    Raises:
        SourceError: it leads to another folder, or is empty.
    """
    if "/" in path_below(name, where):
        raise SourceError(f"{where} names the file {name!r}; expected a name in its own folder, without /")
    return name


def gather(plate: str, found: Iterable[Found]) -> tuple[tuple[int, ...], tuple[Field, ...]]:
    """The channels that have a plane, in the order of their numbers, and the fields by `Field.order`.

    Raises:
        SourceError: two planes claim one place.
    """
    places: dict[tuple[str, str, int, int], dict[int, Plane]] = {}
    for one in found:
        other = places.setdefault(one[:4], {}).setdefault(one.channel, one.plane)
        if other != one.plane:
            raise SourceError(
                f"{other.path} and {one.plane.path} are both plate {plate} well {one.well} field {one.field} z {one.z} "
                f"t {one.t} channel {one.channel}; expected one measurement in the folder"
            )
    channels = tuple(sorted({channel for planes in places.values() for channel in planes}))
    fields = (
        Field(plate, *place, planes=tuple((planes[channel],) if channel in planes else () for channel in channels))
        for place, planes in places.items()
    )
    return channels, tuple(sorted(fields, key=lambda field: field.order))


def channel_names(channels: Iterable[int], known: Mapping[int, str]) -> list[str]:
    """Names as known; the numbers where a name is none for people, and for all where two have one name."""
    numbers = list(channels)
    names = [for_people(known.get(number)) or str(number) for number in numbers]
    return names if len(set(names)) == len(names) else [str(number) for number in numbers]


def for_people(text: object) -> str | None:
    """A name that can be shown and typed, if it is one."""
    name = text.strip() if isinstance(text, str) else ""
    return name if 0 < len(name) <= 200 and name.isprintable() else None


def _there(text: str | None, what: str, where: str) -> str:
    if text is None:
        raise SourceError(f"{where}: {what} is missing; the file is damaged, or of a version not known here")
    return text.strip()

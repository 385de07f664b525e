"""What a source finds: fields with their planes, and what is known about them. No pixels."""

import functools
import hashlib
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.files import Files

Label = str | int | float | None
Place = tuple[str, str, str, int, int]  # plate, well, field, z, t


@dataclass(frozen=True, slots=True, order=True)
class Plane:
    """Where one plane [Y, X] lies.

    Attributes:
        path: of a TIFF file or a Zarr array, relative to the archive's root, with `/`.
        index: page of the TIFF, or leading indices of the array; empty for the only plane of a file.
        file_bytes: size of the file, where the archive lists it.
    """

    path: str
    index: tuple[int, ...] = ()
    file_bytes: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of view at one z and t.

    Attributes:
        well: `A1`, not `A01`.
        planes: for each channel the plane; several where their maximum is to be taken, none where it is missing.
    """

    plate: str
    well: str
    field: str
    z: int
    t: int
    planes: tuple[tuple[Plane, ...], ...]

    @property
    def place(self) -> Place:
        """What tells it from all others of its archive."""
        return self.plate, self.well, self.field, self.z, self.t

    @property
    def order(self) -> tuple[object, ...]:
        """As a person would sort: plate, row, column, field, t, z."""
        row, column = split_well(self.well)
        return natural(self.plate), len(row), row, column, natural(self.field), self.t, self.z


@dataclass(frozen=True)
class Layout:
    """What a source finds in one place: the fields of a plate, or of several. Sorted by `Field.order`.

    Attributes:
        channels: in the order of every field's planes.
    """

    channels: tuple[Channel, ...]
    fields: tuple[Field, ...]
    format: Literal["tiff", "zarr"] = "tiff"
    pixel_size_um: float | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """N objects of one field, in order of their numbers.

    Attributes:
        numbers: [N] int64, from 0, distinct in the field.
        centres: [N, 2] float64: y and x in pixels of the field; the centre of its top left pixel is (0, 0).
        labels: for each label column its N values.
    """

    numbers: NDArray[np.int64]
    centres: NDArray[np.float64]
    labels: Mapping[str, Sequence[Label]]

    def binned(self, side: int) -> NDArray[np.float64]:
        """Centres [N, 2] in a field of which squares of so many pixels on a side have become one."""
        return (self.centres + 0.5) / side - 0.5

    @property
    def fingerprint(self) -> str:
        """The same for the same objects."""
        said = [self.numbers.astype("<i8").tobytes(), self.centres.astype("<f8").tobytes(), repr(self.labels).encode()]
        return hashlib.sha256(b"".join(said)).hexdigest()


@dataclass(frozen=True)
class ObjectTable:
    """What a table says.

    Attributes:
        columns: the label columns, in order.
        by_field: of the fields that were asked for those that have objects.
    """

    columns: tuple[str, ...]
    by_field: Mapping[Place, Objects]


@dataclass(frozen=True)
class Masks:
    """Where label images are.

    Attributes:
        planes: of the fields that have one; paths are below `files`.
    """

    files: Files
    planes: Mapping[Place, Plane]
    format: Literal["tiff", "zarr"]


@dataclass(frozen=True)
class Archive:
    """A study's fields and its labels, as found.

    Attributes:
        files: where the planes' paths start from.
        labels: for each (plate, well) its value of each label column; every column in every row.
        objects: what samples are cut around, where a table says it.
        masks: what samples are cut around, where label images say it.
    """

    files: Files
    study: str
    source: str
    channels: tuple[Channel, ...]
    fields: tuple[Field, ...]
    format: Literal["tiff", "zarr"] = "tiff"
    labels: Mapping[tuple[str, str], Mapping[str, Label]] = field(default_factory=dict)
    licence: str | None = None
    citation: str | None = None
    pixel_size_um: float | None = None
    objects: ObjectTable | None = None
    masks: Masks | None = None


def require_size(plane: Plane, found: int) -> None:
    """Holds the size of a plane's file, in bytes, against the one that the archive lists.

    Raises:
        SourceError: it is another.
    """
    if plane.file_bytes not in (None, found):
        raise SourceError(
            f"{plane.path} has {found} bytes, its archive lists it with {plane.file_bytes}: it is damaged or another; "
            "tell the archive, or build without it (--max-rejects)"
        )


@functools.lru_cache(maxsize=4096)
def split_well(well: str) -> tuple[str, int]:
    """`A1`, `A01`, `a001` → ("A", 1)."""
    match = re.fullmatch(r"([A-Za-z]{1,2})0*([0-9]{1,3})", well.strip())
    if not match:
        raise SourceError(
            f"{well!r} is not a well; expected a row of one or two letters and a column, as in B7 or AA12"
        )
    return match[1].upper(), int(match[2])


def well_name(row: int, column: int) -> str:
    """Row and column, both from 0, → `A1`; row 26 is `AA`."""
    first, second = divmod(row, 26)
    return f"{chr(64 + first) if first else ''}{chr(65 + second)}{column + 1}"


@functools.lru_cache(maxsize=4096)
def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A sort key under which `f10` comes after `f9`; numbers may have any length."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", text)
    return tuple((-1, other) if other else (len(number.lstrip("0")), number.lstrip("0")) for number, other in parts)


def describe_place(place: Place) -> str:
    """A place, for a message."""
    plate, well, field, z, t = place
    return f"plate {plate} well {well} field {field} z {z} t {t}"


def some(items: list[str], show: int = 5) -> str:
    """The first few of many, for a message."""
    more = f" and {len(items) - show} more" if len(items) > show else ""
    return ", ".join(items[:show]) + more


def field_name(text: str) -> str:
    """One name of a field that is called 1 in one place and 01 in another."""
    return text.lstrip("0") or "0" if text.isdecimal() else text


def by_place(fields: Iterable[Field], told: Container[str]) -> dict[Place, list[Field]]:
    """Fields by what is told of their places: where z or t is not, those of all have one key.

    Raises:
        SourceError: two fields are one by their numbers.
    """
    found: dict[Place, list[Field]] = {}
    for one in fields:
        plate, well, name, z, t = one.place
        key = plate, well, field_name(name), z if "z" in told else 0, t if "t" in told else 0
        alike = found.setdefault(key, [])
        if alike and alike[0].field != name:
            raise SourceError(
                f"{describe_place(alike[0].place)} and field {name} are one by their numbers; rename one of them"
            )
        alike.append(one)
    return found


def only_plate(fields: Sequence[Field], said: str) -> str:
    """The plate of all fields.

    Args:
        said: what does not name it, for a message.

    Raises:
        SourceError: there are several.
    """
    plates = sorted({field.plate for field in fields})
    if len(plates) > 1:
        raise SourceError(f"{said}, and the archive has {len(plates)} plates: {some(plates)}")
    return plates[0]

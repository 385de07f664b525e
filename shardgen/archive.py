"""What a source finds: fields with their files, and what is known about them. No pixels."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bie_stream.errors import SourceError
from bie_stream.shards import Channel

Label = str | int | float | None


@dataclass(frozen=True)
class Field:
    """One field of view at one z and t.

    Attributes:
        well: `A1`, not `A01`.
        files: one per channel, relative to the archive's root; None where the plane is missing.
    """

    plate: str
    well: str
    field: str
    z: int
    t: int
    files: tuple[str | None, ...]

    @property
    def order(self) -> tuple[object, ...]:
        """As a person would sort: plate, row, column, field, t, z."""
        row, column = split_well(self.well)
        return natural(self.plate), len(row), row, column, natural(self.field), self.t, self.z


@dataclass(frozen=True)
class Archive:
    """A study's fields and its labels, as found.

    Attributes:
        labels: for each (plate, well) its value of each label column; every column in every row.
    """

    root: Path
    study: str
    source: str
    channels: tuple[Channel, ...]
    fields: tuple[Field, ...]
    labels: Mapping[tuple[str, str], Mapping[str, Label]] = field(default_factory=dict)
    licence: str | None = None
    citation: str | None = None
    pixel_size_um: float | None = None


def split_well(well: str) -> tuple[str, int]:
    """`A1`, `A01`, `a001` → ("A", 1)."""
    match = re.fullmatch(r"([A-Za-z]{1,2})0*([0-9]{1,3})", well.strip())
    if not match:
        raise SourceError(
            f"{well!r} is not a well; expected a row of one or two letters and a column, as in B7 or AA12"
        )
    return match[1].upper(), int(match[2])


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which `f10` comes after `f9`."""
    return tuple((int(part), 0, "") if part.isdigit() else (-1, 0, part) for part in re.findall(r"\d+|\D+", text))


def some(items: list[str], show: int = 5) -> str:
    """The first few of many, for a message."""
    more = f" and {len(items) - show} more" if len(items) > show else ""
    return ", ".join(items[:show]) + more

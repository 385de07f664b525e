"""Which of an archive's fields are taken: pure functions, the same for every source."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic import Field as Option

from bie_stream.errors import SourceError, nearest
from bie_stream.shards import Channel
from shardgen.archive import Archive, Field, Label, Plane, natural, some, split_well

_Accepts = Callable[[Field], bool]
Slices = str | int  # `each`, `max`, `middle`, or an index


class Selection(BaseModel):
    """What the user wants of an archive; None is all.

    Attributes:
        wells: `A1`, or `A1` of one plate only as `plate/A1`.
        channels: those wanted, in order, each with the name that it is to have.
        where: for a label column the values wanted, as text.
        z, t: `each` makes a field of every slice, `max` the maximum over all, `middle` takes the middle one (the
            upper of two), a number that one.
        limit: the first so many fields of what is left, in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plates: tuple[str, ...] | None = None
    wells: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    channels: dict[str, str] | None = None
    where: dict[str, tuple[str, ...]] = {}
    z: Slices = "each"
    t: Slices = "each"
    limit: int | None = Option(default=None, ge=1)

    @field_validator("z", "t")
    @classmethod
    def _slices(cls, value: Slices) -> Slices:
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if isinstance(value, str) and value not in ("each", "max", "middle"):
            raise ValueError(f"{value!r} is not each, max, middle or an index")
        return value


def select(archive: Archive, chosen: Selection) -> Archive:
    """The part of an archive that is wanted.

    Raises:
        SourceError: something that is wanted is not there.
    """
    wanted = [
        _named("plate", archive, chosen.plates, lambda field: field.plate),
        _wells(archive, chosen.wells),
        _named("field", archive, chosen.fields, lambda field: field.field),
        *(_named(column, archive, values, _label(archive.labels, column)) for column, values in chosen.where.items()),
    ]
    fields: Sequence[Field] = [field for field in archive.fields if all(accept(field) for accept in wanted)]
    fields = _slices("z", fields, chosen.z)
    fields = _slices("t", fields, chosen.t)
    channels, fields = _channels(archive, fields, chosen.channels)
    fields = [field for field in fields if any(field.planes)][: chosen.limit]
    if not fields:
        raise SourceError(f"nothing of {archive.source} is left: {chosen.model_dump(exclude_defaults=True)}")
    wells = {(field.plate, field.well) for field in fields}
    labels = {well: row for well, row in archive.labels.items() if well in wells}
    return replace(archive, fields=tuple(fields), channels=channels, labels=labels)


def _named(what: str, archive: Archive, wanted: Iterable[str] | None, name: Callable[[Field], str]) -> _Accepts:
    if wanted is None:
        return lambda field: True
    names, there = set(wanted), {name(field) for field in archive.fields}
    for missing in sorted(names - there):
        raise SourceError(f"no {what} {missing!r}; {nearest(missing, sorted(there, key=natural))}")
    return lambda field: name(field) in names


def _wells(archive: Archive, wanted: Iterable[str] | None) -> _Accepts:
    if wanted is None:
        return lambda field: True
    names = set()
    for text in wanted:
        plate, slash, well = text.rpartition("/")
        row, column = split_well(well)
        names.add(f"{plate}{slash}{row}{column}")
    there = {name for field in archive.fields for name in (field.well, f"{field.plate}/{field.well}")}
    if missing := sorted(names - there, key=natural):
        wells = sorted({field.well for field in archive.fields}, key=natural)
        raise SourceError(f"wells that are not there: {some(missing)}; there are {some(wells)}")
    return lambda field: field.well in names or f"{field.plate}/{field.well}" in names


def _label(labels: Mapping[tuple[str, str], Mapping[str, Label]], column: str) -> Callable[[Field], str]:
    columns = list(next(iter(labels.values()), {}))
    if column not in columns:
        raise SourceError(f"no label column {column!r}; {nearest(column, columns) if columns else 'there are none'}")

    def value(field: Field) -> str:
        found = labels[field.plate, field.well][column]
        return "" if found is None else str(found)

    return value


def _slices(axis: str, fields: Sequence[Field], chosen: Slices) -> Sequence[Field]:
    """One field for each stack along an axis; the slice's own number stays, the maximum has number 0."""
    if chosen == "each":
        return fields
    stacks: dict[tuple[object, ...], list[Field]] = defaultdict(list)
    for field in fields:
        stacks[field.plate, field.well, field.field, field.t if axis == "z" else field.z].append(field)
    taken = []
    for stack in stacks.values():
        stack.sort(key=lambda field: getattr(field, axis))
        if chosen == "max":
            planes = tuple(_together(channel) for channel in zip(*(field.planes for field in stack), strict=True))
            changed = {"planes": planes, axis: 0}
            taken.append(replace(stack[0], **changed))  # type: ignore[arg-type]
        elif chosen == "middle":
            taken.append(stack[len(stack) // 2])
        else:
            taken += [field for field in stack if getattr(field, axis) == chosen]
    if not taken:
        there = sorted({getattr(field, axis) for field in fields})
        raise SourceError(f"no field has {axis} {chosen}; known: {some([str(number) for number in there])}")
    return taken


def _together(slices: tuple[tuple[Plane, ...], ...]) -> tuple[Plane, ...]:
    """The planes of all slices; of a stack that lacks one the maximum would be another thing, so it is missing."""
    return tuple(plane for planes in slices for plane in planes) if all(slices) else ()


def _channels(
    archive: Archive, fields: Sequence[Field], wanted: Mapping[str, str] | None
) -> tuple[tuple[Channel, ...], Sequence[Field]]:
    if wanted is None:
        return archive.channels, fields
    names = [channel.name for channel in archive.channels]
    for name in wanted:
        if name not in names:
            raise SourceError(f"no channel {name!r}; {nearest(name, names)}")
    if len(set(wanted.values())) != len(wanted):
        raise SourceError(f"two channels have one name: {some(list(wanted.values()))}")
    numbers = [names.index(name) for name in wanted]
    channels = tuple(archive.channels[n].model_copy(update={"name": wanted[names[n]]}) for n in numbers)
    if numbers == list(range(len(names))):
        return channels, fields
    return channels, [replace(field, planes=tuple(field.planes[n] for n in numbers)) for field in fields]


def parse_where(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`Control Type=negative control` and `Gene Symbol=KIF11|RPB1`, from the command line."""
    found = {}
    for text in texts:
        match = re.fullmatch(r"([^=]+)=(.*)", text)
        if not match:
            raise SourceError(f"--where {text!r} should look like 'COLUMN=VALUE' or 'COLUMN=VALUE|VALUE'")
        found[match[1].strip()] = tuple(value.strip() for value in match[2].split("|"))
    return found

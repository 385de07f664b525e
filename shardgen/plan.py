"""From fields and options to shards: a pure function, so it can be shown, tested and hashed before a pixel is read."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, field_validator
from pydantic import Field as Option

from bie_stream.codecs import Codec, Dtype, require
from bie_stream.errors import SourceError
from bie_stream.shards import SAMPLE_COLUMNS
from shardgen.archive import Archive, Field, Label

_KEY_LENGTH = 90  # with its ending it must fit a ustar name


class Options(BaseModel):
    """What the user may choose; recorded in the manifest.

    Attributes:
        tile: cut fields into a grid of squares of this many pixels, from the top left; what is left over at the
            right and bottom edges is not taken. None: whole fields.
        splits: share of the groups for each split; they add up to 1.
        split_by: what may not stand on two sides: `well`, `plate`, or a label column.
        stratify_by: a label column whose values all splits and folds should have in like shares.
        folds: deal the same groups into this many folds too: column `fold`, from 0.
        split_seed: another number deals the groups differently.
        shard_bytes: about how large a shard is. A field is never cut in two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: int | None = Option(default=None, ge=1)
    splits: dict[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
    split_by: str = "well"
    stratify_by: str | None = None
    folds: int | None = Option(default=None, ge=2)
    split_seed: int = 0
    shard_bytes: int = Option(default=256 * 2**20, ge=1)
    codec: Codec = "npy"

    @field_validator("splits")
    @classmethod
    def _shares(cls, splits: dict[str, float]) -> dict[str, float]:
        if not splits or min(splits.values()) < 0 or abs(sum(splits.values()) - 1) > 1e-6:
            raise ValueError(f"shares {splits} must be positive and add up to 1")
        return splits


@dataclass(frozen=True, slots=True)
class Planned:
    """One field with all that its samples share."""

    field: Field
    labels: Mapping[str, Label]
    split: str
    fold: int | None


@dataclass(frozen=True)
class Plan:
    """Which fields go into which shard, and what each sample looks like.

    Attributes:
        shape: height and width of a field's plane, in pixels.
        tiles: top left corners of the samples in a field, in pixels; one (0, 0) for whole fields.
        tile_shape: height and width of a sample, in pixels.
        shards: fields of each shard, in order.
        sha256: the name of the build: the same archive and options give the same one, anywhere.
    """

    archive: Archive
    options: Options
    dtype: Dtype
    shape: tuple[int, int]
    tiles: tuple[tuple[int, int], ...]
    tile_shape: tuple[int, int]
    shards: tuple[tuple[Planned, ...], ...]
    schema: pa.Schema
    labels: tuple[str, ...]
    sha256: str

    @property
    def fields(self) -> int:
        return sum(map(len, self.shards))

    @property
    def samples(self) -> int:
        return self.fields * len(self.tiles)

    @property
    def planes(self) -> int:
        return self.fields * len(self.archive.channels)

    @property
    def payload_bytes(self) -> int:
        """Pixels to be written, in bytes."""
        height, width = self.tile_shape
        return self.samples * len(self.archive.channels) * height * width * np_size(self.dtype)

    @property
    def without_fields(self) -> "Plan":
        """All that a worker needs besides its own shard; small, whatever the size of the study."""
        return replace(self, archive=replace(self.archive, fields=(), labels={}), shards=())

    def key(self, field: Field, top: int, left: int) -> str:
        """The name of a sample in its shard. No dot (WebDataset splits there), only plain characters."""
        tile = f"_y{top}_x{left}" if self.options.tile else ""
        return _plain(f"{field.plate}_{field.well}_f{field.field}_t{field.t}_z{field.z}{tile}")


def make_plan(archive: Archive, options: Options, dtype: Dtype, shape: tuple[int, int]) -> Plan:
    """The plan of a build.

    Args:
        dtype, shape: of one plane; all planes are held to them when they are read.

    Raises:
        SourceError: the options do not fit the archive.
    """
    require(options.codec, dtype)
    if options.tile and options.tile > min(shape):
        raise SourceError(f"tile {options.tile} is larger than the fields, {shape[0]} x {shape[1]} pixels")
    height, width = (options.tile, options.tile) if options.tile else shape
    tiles = tuple(
        (top, left) for top in range(0, shape[0] - height + 1, height) for left in range(0, shape[1] - width + 1, width)
    )
    columns = list(next(iter(archive.labels.values()), {}))
    if options.split_by not in ("well", "plate", *columns):
        raise SourceError(
            f"split_by {options.split_by!r} is neither 'well' nor 'plate' nor a label: {', '.join(columns) or 'none'}"
        )
    if options.stratify_by is not None and options.stratify_by not in columns:
        raise SourceError(
            f"stratify_by {options.stratify_by!r} is not a label: {', '.join(columns) or 'there are none'}"
        )
    planned = _assign(archive, options)
    field_bytes = len(tiles) * len(archive.channels) * height * width * np_size(dtype)
    per_shard = max(1, options.shard_bytes // field_bytes)
    shards = tuple(tuple(planned[i : i + per_shard]) for i in range(0, len(planned), per_shard))
    plan = Plan(
        archive=archive,
        options=options,
        dtype=dtype,
        shape=shape,
        tiles=tiles,
        tile_shape=(height, width),
        shards=shards,
        schema=_schema(archive, columns, options),
        labels=tuple(columns),
        sha256=_digest(archive, options, dtype, shape, shards),
    )
    keys = Counter(plan.key(field, *tiles[-1]) for field in archive.fields)
    for key, times in keys.items():
        if times > 1 or len(key) > _KEY_LENGTH:
            fault = f"names {times} fields" if times > 1 else f"is longer than {_KEY_LENGTH} characters"
            raise SourceError(
                f"sample name {key!r} {fault}: "
                "give plates, wells and fields short names that differ in letters and digits"
            )
    return plan


def _digest(
    archive: Archive, options: Options, dtype: Dtype, shape: tuple[int, int], shards: tuple[tuple[Planned, ...], ...]
) -> str:
    said = {
        "channels": [channel.model_dump() for channel in archive.channels],
        "options": options.model_dump(),
        "pixels": [archive.format, dtype, shape],
        "study": [archive.study, archive.licence, archive.citation, archive.pixel_size_um],
    }
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for number, shard in enumerate(shards):
        for planned in shard:
            f = planned.field
            planes = [[(plane.path, plane.index) for plane in planes] for planes in f.planes]
            labels = sorted(planned.labels.items())
            found.update(
                repr((number, f.plate, f.well, f.field, f.z, f.t, planes, labels, planned.split, planned.fold)).encode()
            )
    return found.hexdigest()


def deal(strata: Mapping[str, str], splits: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each group; none is on two sides.

    Groups are shuffled by a hash. Each stratum gives every split its share, rounded down; what is left of all strata
    is dealt so that the whole has its shares as well as whole groups allow (largest remainders), and a split with a
    share above 0 gets at least one group while there are enough.

    Args:
        strata: for each group its stratum; the same for all where there are none.
    """
    shuffled = sorted(strata, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    dealt: dict[str, str] = {}
    for stratum in sorted(set(strata.values())):
        here = [group for group in shuffled if strata[group] == stratum]
        names = [name for name, share in splits.items() for _ in range(int(share * len(here) + 1e-9))]
        dealt.update(zip(here, names))
    wanting = _counts(len(shuffled), splits)
    for name in dealt.values():
        wanting[name] -= 1
    left = [group for group in shuffled if group not in dealt]
    for name in (name for name, count in wanting.items() if count < 0):  # taken from, for a split that had none
        left += [group for group in shuffled if dealt.get(group) == name][wanting[name] :]
    dealt.update(zip(left, (name for name, count in wanting.items() for _ in range(count)), strict=True))
    return dealt


def _counts(groups: int, splits: Mapping[str, float]) -> dict[str, int]:
    exact = {name: share * groups for name, share in splits.items()}
    count = {name: int(value + 1e-9) for name, value in exact.items()}
    wanting = sorted(
        (name for name in splits if splits[name] > 0), key=lambda name: (count[name] > 0, count[name] - exact[name])
    )
    for name in wanting[: groups - sum(count.values())]:
        count[name] += 1
    for name in wanting:
        largest = max(count, key=lambda other: count[other])
        if count[name] == 0 and count[largest] > 1:
            count[name], count[largest] = 1, count[largest] - 1
    return count


def _assign(archive: Archive, options: Options) -> list[Planned]:
    def group(field: Field) -> str:
        if options.split_by == "plate":
            return field.plate
        if options.split_by == "well":
            return f"{field.plate}/{field.well}"
        return str(archive.labels[field.plate, field.well][options.split_by])

    groups = [group(field) for field in archive.fields]
    strata = _strata(archive, groups, options.stratify_by)
    side = deal(strata, options.splits, options.split_seed)
    shares = {str(fold): 1 / options.folds for fold in range(options.folds)} if options.folds else {}
    folds = deal(strata, shares, options.split_seed) if shares else {}
    return [
        Planned(f, archive.labels.get((f.plate, f.well), {}), side[name], int(folds[name]) if folds else None)
        for f, name in zip(archive.fields, groups, strict=True)
    ]


def _strata(archive: Archive, groups: Sequence[str], column: str | None) -> dict[str, str]:
    """The commonest value of a label column in each group; of several the first in order."""
    if column is None:
        return dict.fromkeys(groups, "")
    values: dict[str, Counter[str]] = {}
    for field, group in zip(archive.fields, groups, strict=True):
        values.setdefault(group, Counter())[str(archive.labels[field.plate, field.well][column])] += 1
    return {group: min(found, key=lambda value: (-found[value], value)) for group, found in values.items()}


def _schema(archive: Archive, columns: list[str], options: Options) -> pa.Schema:
    def kind(column: str) -> pa.DataType:
        values = [row[column] for row in archive.labels.values()]
        kinds = {type(value) for value in values if value is not None}
        return pa.int64() if kinds == {int} else pa.float64() if kinds == {float} else pa.string()

    fold = [pa.field("fold", pa.int32())] if options.folds else []
    return pa.schema([*SAMPLE_COLUMNS, *fold, *(pa.field(column, kind(column)) for column in columns)])


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)


def np_size(dtype: str) -> int:
    """Bytes of one pixel."""
    return {"uint8": 1, "uint16": 2, "float32": 4}[dtype]


def describe(plan: Plan, to_fetch: str) -> dict[str, Any]:
    """What the build will do, for a person.

    Args:
        to_fetch: how much has to be read of the archive, as `shardgen.transfer_size` says it.
    """
    splits = Counter(planned.split for shard in plan.shards for planned in shard)
    missing = sum(() in planned.field.planes for shard in plan.shards for planned in shard)
    return {
        "study": plan.archive.study,
        "licence": plan.archive.licence,
        "channels": [channel.name for channel in plan.archive.channels],
        "plates": len({field.plate for field in plan.archive.fields}),
        "wells": len({(field.plate, field.well) for field in plan.archive.fields}),
        "fields": plan.fields,
        "fields with a missing plane": missing,
        "planes": plan.planes,
        "pixels": f"{plan.dtype} {plan.shape[0]} x {plan.shape[1]}",
        "samples": plan.samples,
        "sample pixels": f"{len(plan.archive.channels)} x {plan.tile_shape[0]} x {plan.tile_shape[1]}",
        "bytes to fetch": to_fetch,
        "payload_bytes": plan.payload_bytes,
        "shards": len(plan.shards),
        "splits": {name: splits[name] * len(plan.tiles) for name in plan.options.splits},
        "labels": list(plan.labels),
        "plan_sha256": plan.sha256,
    }

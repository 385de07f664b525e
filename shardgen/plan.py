"""From fields and options to shards: a pure function, so it can be shown, tested and hashed before a pixel is read."""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, field_validator
from pydantic import Field as Option

from bie_stream.codecs import Codec, Dtype, require
from bie_stream.errors import SourceError, nearest
from bie_stream.shards import SAMPLE_COLUMNS
from shardgen.archive import Archive, Field, Label, Objects, Plane
from shardgen.cut import around, grid

_KEY_LENGTH = 90  # with its ending it must fit a ustar name


class Options(BaseModel):
    """What the user may choose; recorded in the manifest.

    Attributes:
        bin: average squares of so many pixels on a side: a loss, and `pixel_size_um` grows. All other numbers of
            pixels count what is left.
        tile: cut squares of this many pixels, side by side from the top left, or around objects. What does not lie
            in the field as a whole is not taken. None: whole fields.
        objects: of which table, or masks: of which label images; only names, for the record.
        min_signal: for some channels a level. A sample of which less than 1 % of pixels reach the level, in each of
            these channels, is background and not taken.
        splits: share of the groups for each split; they add up to 1.
        split_by: what may not stand on two sides: `well`, `plate`, or a label column.
        stratify_by: a label column whose values all splits and folds should have in like shares.
        folds: deal the same groups into this many folds too: column `fold`, from 0.
        split_seed: another number deals the groups differently.
        shard_bytes: about how large a shard is. A field is never cut in two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bin: int = Option(default=1, ge=1, le=64)
    tile: int | None = Option(default=None, ge=1)
    objects: str | None = None
    masks: str | None = None
    min_signal: dict[str, float] = {}
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
        if not splits or min(splits.values()) < 0 or not abs(sum(splits.values()) - 1) <= 1e-6:  # NaN is none either
            raise ValueError("the shares must not be below 0, and add up to 1")
        return splits


@dataclass(frozen=True, slots=True)
class Planned:
    """One field with all that its samples share.

    Attributes:
        objects: what its samples are cut around, where a table says it.
        mask: the label image that says it.
    """

    field: Field
    labels: Mapping[str, Label]
    split: str
    fold: int | None
    objects: Objects | None = None
    mask: Plane | None = None


@dataclass(frozen=True)
class Plan:
    """Which fields go into which shard, and what each sample looks like.

    Attributes:
        shape: height and width of a plane as the archive has it, in pixels.
        kept_shape: the same after binning.
        tiles: top left corners of the samples of every field, in pixels; one (0, 0) for whole fields, none where
            samples are cut around objects.
        tile_shape: height and width of a sample, in pixels.
        levels: see `Options.min_signal`, by the channel's number.
        shards: fields of each shard, in order.
        splits: samples of each, before background is left out; None where only masks can tell.
        sha256: the name of the build: the same archive and options give the same one, anywhere.
    """

    archive: Archive
    options: Options
    dtype: Dtype
    shape: tuple[int, int]
    kept_shape: tuple[int, int]
    tiles: tuple[tuple[int, int], ...]
    tile_shape: tuple[int, int]
    levels: Mapping[int, float]
    shards: tuple[tuple[Planned, ...], ...]
    splits: Mapping[str, int] | None
    schema: pa.Schema
    labels: tuple[str, ...]
    sha256: str

    @property
    def fields(self) -> int:
        return sum(map(len, self.shards))

    @property
    def samples(self) -> int | None:
        return None if self.splits is None else sum(self.splits.values())

    @property
    def planes(self) -> int:
        return self.fields * len(self.archive.channels)

    @property
    def sample_bytes(self) -> int:
        """Pixels of one sample, in bytes."""
        return math.prod(self.tile_shape) * len(self.archive.channels) * np_size(self.dtype)

    @property
    def without_fields(self) -> "Plan":
        """All that a worker needs besides its own shard; small, whatever the size of the study."""
        masks = self.archive.masks and replace(self.archive.masks, planes={})
        return replace(self, archive=replace(self.archive, fields=(), labels={}, objects=None, masks=masks), shards=())

    def key(self, field: Field, top: int, left: int, number: int | None = None) -> str:
        """The name of a sample in its shard. No dot (WebDataset splits there), only plain characters.

        Args:
            number: of the object that it is cut around.
        """
        part = "" if self.options.tile is None else f"_y{top}_x{left}" if number is None else f"_o{number}"
        return _plain(f"{field.plate}_{field.well}_f{field.field}_t{field.t}_z{field.z}{part}")


def make_plan(archive: Archive, options: Options, dtype: Dtype, shape: tuple[int, int]) -> Plan:
    """The plan of a build.

    Args:
        dtype, shape: of one plane; all planes are held to them when they are read.

    Raises:
        SourceError: the options do not fit the archive.
    """
    require(options.codec, dtype)
    kept_shape = shape[0] // options.bin, shape[1] // options.bin
    _require_fit(archive, options, kept_shape)
    tile_shape = (options.tile, options.tile) if options.tile else kept_shape
    by_object = archive.objects is not None or archive.masks is not None
    tiles = () if by_object else grid(kept_shape, tile_shape)
    columns = (*next(iter(archive.labels.values()), {}), *(archive.objects.columns if archive.objects else ()))
    planned = _assign(archive, options)
    counts = _counts_of_samples(planned, options, kept_shape, len(tiles))
    # As masks do not say yet how many samples there are, there may be as many as would make the whole field.
    whole = max(1, math.prod(kept_shape) // math.prod(tile_shape))
    plan = Plan(
        archive=archive,
        options=options,
        dtype=dtype,
        shape=shape,
        kept_shape=kept_shape,
        tiles=tiles,
        tile_shape=tile_shape,
        levels=_levels(archive, options),
        shards=(),
        splits=_by_split(planned, counts, options),
        schema=_schema(archive, columns, options),
        labels=columns,
        sha256="",
    )
    sizes = [plan.sample_bytes * (whole if count is None else count) for count in counts]
    shards = tuple(_shards(planned, sizes, options.shard_bytes))
    plan = replace(plan, shards=shards, sha256=_digest(archive, options, dtype, shape, shards))
    _require_keys(plan)
    return plan


def _require_fit(archive: Archive, options: Options, shape: tuple[int, int]) -> None:
    if min(shape) == 0 or (options.tile and options.tile > min(shape)):
        raise SourceError(
            f"--tile {options.tile or 1} is larger than the fields, {shape[0]} x {shape[1]} pixels"
            + f" after binning by {options.bin}" * (options.bin > 1)
        )
    if archive.objects is not None and archive.masks is not None:
        raise SourceError("objects come from a table or from masks; give --objects or --masks")
    if (archive.objects is not None or archive.masks is not None) and options.tile is None:
        raise SourceError("samples around objects need a size; give --tile, in pixels")
    columns = list(next(iter(archive.labels.values()), {}))
    if doubled := [name for name in (archive.objects.columns if archive.objects else ()) if name in columns]:
        raise SourceError(f"label {doubled[0]!r} is in the table of wells and in that of objects; rename one")
    if (by := options.split_by) not in ("well", "plate", *columns):
        raise SourceError(f"--split-by {by!r} is neither 'well' nor 'plate' nor a label; {_like(by, columns)}")
    if (by := options.stratify_by or "") and by not in columns:
        raise SourceError(f"--stratify-by {by!r} is not a label; {_like(by, columns)}")


def _like(name: str, columns: list[str]) -> str:
    return nearest(name, columns) if columns else "there are none"


def _levels(archive: Archive, options: Options) -> dict[int, float]:
    names = [channel.name for channel in archive.channels]
    for name in options.min_signal:
        if name not in names:
            raise SourceError(f"--min-signal: no channel {name!r}; {nearest(name, names)}")
    return {names.index(name): level for name, level in options.min_signal.items()}


def _counts_of_samples(
    planned: Sequence[Planned], options: Options, shape: tuple[int, int], tiles: int
) -> list[int | None]:
    """Samples of each field; None where a mask has still to be read."""

    def count(field: Planned) -> int | None:
        if field.mask is not None or field.objects is None or options.tile is None:
            return tiles or None
        _, inside = around(field.objects.binned(options.bin), (options.tile, options.tile), shape)
        return int(inside.sum())

    return [count(field) for field in planned]


def _by_split(planned: Sequence[Planned], counts: Sequence[int | None], options: Options) -> dict[str, int] | None:
    found = dict.fromkeys(options.splits, 0)
    for field, count in zip(planned, counts, strict=True):
        if count is None:
            return None
        found[field.split] += count
    return found


def _shards(planned: Sequence[Planned], sizes: Sequence[int], shard_bytes: int) -> Iterator[tuple[Planned, ...]]:
    """Fields in order, so many in a shard as it may hold bytes, and at least one."""
    shard: list[Planned] = []
    total = 0
    for field, size in zip(planned, sizes, strict=True):
        if shard and total + size > shard_bytes:
            yield tuple(shard)
            shard, total = [], 0
        shard.append(field)
        total += size
    if shard:
        yield tuple(shard)


def _require_keys(plan: Plan) -> None:
    last = plan.tiles[-1] if plan.tiles else (0, 0)
    number = None if plan.tiles else max(plan.kept_shape)
    keys = Counter(plan.key(planned.field, *last, number) for shard in plan.shards for planned in shard)
    for key, times in keys.items():
        if times > 1 or len(key) > _KEY_LENGTH:
            fault = f"names {times} fields" if times > 1 else f"is longer than {_KEY_LENGTH} characters"
            raise SourceError(
                f"sample name {key!r} {fault}: "
                "give plates, wells and fields short names that differ in letters and digits"
            )


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
            cut = (
                (planned.mask.path, planned.mask.index)
                if planned.mask
                else planned.objects and planned.objects.fingerprint
            )
            found.update(repr((number, *f.place, planes, labels, planned.split, planned.fold, cut)).encode())
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
    if len(shares) > len(side):
        raise SourceError(
            f"--folds {options.folds} is more than there are groups: a {options.split_by} is never cut in two, and "
            f"there are {len(side)}"
        )
    folds = deal(strata, shares, options.split_seed) if shares else {}
    objects = archive.objects.by_field if archive.objects else {}
    masks = archive.masks.planes if archive.masks else {}
    return [
        Planned(
            f, archive.labels.get((f.plate, f.well), {}), side[name], int(folds[name]) if folds else None,
            objects.get(f.place), masks.get(f.place),
        )
        for f, name in zip(archive.fields, groups, strict=True)
        if archive.objects is None or f.place in objects
    ]  # fmt: skip


def _strata(archive: Archive, groups: Sequence[str], column: str | None) -> dict[str, str]:
    """The commonest value of a label column in each group; of several the first in order."""
    if column is None:
        return dict.fromkeys(groups, "")
    values: dict[str, Counter[str]] = {}
    for field, group in zip(archive.fields, groups, strict=True):
        values.setdefault(group, Counter())[str(archive.labels[field.plate, field.well][column])] += 1
    return {group: min(found, key=lambda value: (-found[value], value)) for group, found in values.items()}


def _schema(archive: Archive, columns: Sequence[str], options: Options) -> pa.Schema:
    of_objects = set(archive.objects.columns if archive.objects else ())

    def values(column: str) -> Iterator[Label]:
        if archive.objects and column in of_objects:
            return itertools.chain.from_iterable(o.labels[column] for o in archive.objects.by_field.values())
        return (row[column] for row in archive.labels.values())

    def kind(column: str) -> pa.DataType:
        kinds = {type(value) for value in values(column) if value is not None}
        return pa.int64() if kinds == {int} else pa.float64() if kinds == {float} else pa.string()

    more = [pa.field("object", pa.int64())] if archive.objects or archive.masks else []
    more += [pa.field("fold", pa.int32())] if options.folds else []
    return pa.schema([*SAMPLE_COLUMNS, *more, *(pa.field(column, kind(column)) for column in columns)])


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
    planned = [field for shard in plan.shards for field in shard]
    missing = sum(() in one.field.planes for one in planned)
    unknown = "not known before the masks are read"
    by_object: dict[str, Any] = {}
    if plan.archive.objects:
        objects = sum(len(one.objects.numbers) for one in planned if one.objects)
        by_object["fields without objects"] = len(plan.archive.fields) - plan.fields
        by_object["objects at the edge"] = objects - (plan.samples or 0)
    if plan.archive.masks:
        by_object["fields without a mask"] = sum(one.mask is None for one in planned)
    size = plan.archive.pixel_size_um
    return {
        "study": plan.archive.study,
        "licence": plan.archive.licence or "not stated",
        "channels": ", ".join(channel.name for channel in plan.archive.channels),
        "plates": len({one.field.plate for one in planned}),
        "wells": len({(one.field.plate, one.field.well) for one in planned}),
        "fields": plan.fields,
        "fields with a missing plane": missing,
        **by_object,
        "planes": plan.planes,
        "pixels": f"{plan.dtype}, {plan.shape[0]} x {plan.shape[1]}",
        "pixel size": f"{size} µm" if size else "not stated",
        "samples": unknown if plan.samples is None else plan.samples,
        "sample pixels": f"{len(plan.archive.channels)} x {plan.tile_shape[0]} x {plan.tile_shape[1]}",
        "splits": unknown if plan.splits is None else ", ".join(f"{name} {n:,}" for name, n in plan.splits.items()),
        "labels": ", ".join(plan.labels) or "none",
        "bytes to fetch": to_fetch,
        "bytes of pixels": unknown if plan.samples is None else readable_bytes(plan.samples * plan.sample_bytes),
        "shards": len(plan.shards),
        "plan": plan.sha256[:12],
    }


def readable_bytes(size: int) -> str:
    """Bytes for a person: `512 bytes`, `24.9 GB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"

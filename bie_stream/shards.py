"""The dataset on disk: names, manifest, sample table, and how one shard is written and read.

    <dataset>/
      dataset.json               manifest, written last: without it there is no dataset
      shards/000000.tar          WebDataset: <key>.npy (or .tif, .jph, .b2nd) then <key>.json, ustar, byte-reproducible
      shards/000000.parquet      one row per sample (SAMPLE_COLUMNS, then the label columns); written after its tar
      shards/000000.idx          the index that DALI's own WebDataset reader wants
      rejects.parquet            what was not taken, and why

`shardgen` writes through this module and the engine reads through it: the contract is here and nowhere else.
"""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from bie_stream.atomic import PARTIAL, atomic_file
from bie_stream.codecs import SUFFIX, Codec, Dtype
from bie_stream.direct import DirectFile
from bie_stream.errors import DatasetError, DatasetNotFound
from bie_stream.folder import Folder, Location, folder_at

MANIFEST = "dataset.json"
REJECTS = "rejects.parquet"
SHARDS = "shards"
LARGEST_TABLE_BYTES = 2**30  # of a shard, unpacked
_BLOCK = 512
_PIECE = 2**18  # stays in the processor's cache while it is checksummed, hashed and written
TABLES_AT_ONCE = 16
_RECORD = 20 * _BLOCK  # tar pads its end to whole records
_OF_PAYLOAD = ("offset", "size", "crc32c")  # what only the table knows of a sample

SAMPLE_COLUMNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique in the dataset, no dot
        pa.field("offset", pa.int64(), nullable=False),  # of the payload in the tar, bytes
        pa.field("size", pa.int64(), nullable=False),  # of the payload, bytes
        pa.field("crc32c", pa.uint32(), nullable=False),  # of the payload (Castagnoli)
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),  # C, Y, X
        pa.field("plate", pa.string(), nullable=False),
        pa.field("well", pa.string(), nullable=False),  # A1, not A01
        pa.field("field", pa.string(), nullable=False),
        pa.field("z", pa.int32(), nullable=False),
        pa.field("t", pa.int32(), nullable=False),
        pa.field("top", pa.int32(), nullable=False),  # of the sample in its field, pixels
        pa.field("left", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
_LABEL_TYPES = (pa.string(), pa.int64(), pa.float64(), pa.int32())
REJECT_COLUMNS = pa.schema(
    [*((name, pa.string()) for name in ("plate", "well", "field")), ("z", pa.int32()), ("t", pa.int32()),
     ("reason", pa.string())]
)  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Channel(_Frozen):
    """One channel of every sample, in the order of the pixels' first axis."""

    name: str
    marker: str | None = None
    dye: str | None = None
    excitation_nm: float | None = None
    emission_nm: float | None = None


class ChannelStatistics(_Frozen):
    """Over every pixel of the dataset. Exact for integer pixels; percentiles of float32 pixels are within 1 %."""

    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: dict[str, float]


class PlateStatistics(_Frozen):
    """Of one channel, over every pixel of one plate's samples."""

    mean: float
    std: float


class ShardEntry(_Frozen):
    """One shard as the manifest lists it; `bytes` and `sha256` are those of its tar."""

    name: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$")]  # of its files: no path
    samples: int
    bytes: int
    sha256: str


class Manifest(_Frozen):
    """What `dataset.json` holds."""

    format: Literal["bie-stream"] = "bie-stream"
    version: Literal[1] = 1
    study: str
    source: str
    licence: str | None
    citation: str | None
    channels: tuple[Channel, ...]
    dtype: Dtype
    pixel_size_um: float | None
    codec: Codec
    samples: int
    splits: dict[str, int]
    labels: tuple[str, ...]
    rejected: int  # fields, in rejects.parquet
    left_out: dict[str, int] = {}  # samples, by the rule of the options that left them out
    statistics: tuple[ChannelStatistics, ...]
    plates: dict[str, tuple[PlateStatistics, ...]] = {}  # of each; none of a dataset that others wrote
    shards: tuple[ShardEntry, ...]
    options: dict[str, Any]
    plan_sha256: str

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        if len(self.statistics) != len(self.channels):
            raise ValueError(f"{len(self.statistics)} statistics of {len(self.channels)} channels")
        for plate, statistics in self.plates.items():
            if len(statistics) != len(self.channels):
                raise ValueError(f"{len(statistics)} statistics of plate {plate}, of {len(self.channels)} channels")
        return self


def describe_sample(row: Mapping[str, Any]) -> bytes:
    """The `<key>.json` member of a sample: its table row without nulls and without what says where its bytes lie."""
    about = {name: value for name, value in row.items() if value is not None and name not in _OF_PAYLOAD}
    return json.dumps(about, sort_keys=True, ensure_ascii=False).encode()


def index_head(samples: int) -> str:
    """The first line of the DALI index of a shard."""
    return f"v1.2 {samples}"


def index_line(codec: Codec, key: str, payload: tuple[int, int], description: tuple[int, int]) -> str:
    """A sample's line of the DALI index; payload and description as (offset, size) in the tar, bytes."""
    suffix = SUFFIX[codec]
    return f"{suffix} {payload[0]} {payload[1]} {key}.{suffix} json {description[0]} {description[1]} {key}.json"


def shard_file(name: str, suffix: str = ".tar") -> str:
    """A file of a shard, in its dataset: `.tar`, `.parquet` (the table) or `.idx` (DALI's index)."""
    return f"{SHARDS}/{name}{suffix}"


def tar_path(root: Path, name: str) -> Path:
    """Where a shard's tar lies on this machine; its table and index lie beside it."""
    return root / shard_file(name)


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of a payload (CRC-32C, Castagnoli; RFC 3720)."""
    value: int = google_crc32c.value(bytes(data))  # the library takes nothing but bytes: a view is copied once
    return value


class ShardWriter:
    """Writes one shard. Used in a `with` block: the shard appears whole at its end, or not at all.

    The same samples in the same order give the same bytes.
    """

    def __init__(self, root: Path, name: str, schema: pa.Schema, codec: Codec) -> None:
        self._tar, self._schema, self._codec = tar_path(root, name), schema, codec
        self._partial = self._tar.with_name(self._tar.name + PARTIAL)
        self._rows: list[dict[str, Any]] = []
        self._index: list[str] = []
        self._hash = hashlib.sha256()
        self._size = 0
        self._file: DirectFile
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._tar.parent.mkdir(parents=True, exist_ok=True)
        self._file = DirectFile(self._partial)
        return self

    def add(self, payload: Sequence[bytes | memoryview], row: Mapping[str, Any]) -> None:
        """Adds one sample.

        Args:
            payload: its bytes, in parts that follow each other.
            row: its table row without offset, size and crc32c.
        """
        description = describe_sample(row)
        offset, size, crc = self._member(f"{row['key']}.{SUFFIX[self._codec]}", payload)
        aside, length, _ = self._member(f"{row['key']}.json", [description])
        self._rows.append({**row, "offset": offset, "size": size, "crc32c": crc})
        self._index.append(index_line(self._codec, row["key"], (offset, size), (aside, length)))

    def _member(self, name: str, parts: Sequence[bytes | memoryview]) -> tuple[int, int, int]:
        """Offset, size and CRC-32C of the member's bytes."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = sum(memoryview(part).nbytes for part in parts), 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        offset, crc = self._size, 0
        for part in parts:
            crc = self._write(part, crc)
        self._write(bytes(-header.size % _BLOCK))
        return offset, header.size, crc

    def _write(self, data: bytes | memoryview, crc: int = 0) -> int:
        """Appends bytes to the tar; `crc`, the CRC-32C of what comes before them, is carried on over them."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            piece = bytes(view[start : start + _PIECE])  # the checksum takes nothing but bytes
            crc = google_crc32c.extend(crc, piece)
            self._hash.update(piece)
            self._file.write(piece)
        self._size += len(view)
        return crc

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._size % _RECORD))
        facts = {**self.facts, "sha256": self._hash.hexdigest(), "bytes": self._size, "samples": len(self._rows)}
        table = pa.Table.from_pylist(self._rows, self._schema.with_metadata({"bie_stream": json.dumps(facts)}))
        self._file.finish()
        with atomic_file(self._tar.with_suffix(".idx")) as path:
            path.write_text("\n".join([index_head(len(self._index)), *self._index]) + "\n")
        # The table comes last: a shard is finished when its table stands beside its tar.
        self._tar.with_suffix(".parquet").unlink(missing_ok=True)
        with atomic_file(self._tar):
            self._file.close()
        with atomic_file(self._tar.with_suffix(".parquet")) as path:
            pq.write_table(table, path, compression="zstd")


def shard_facts(dataset: Location, name: str) -> dict[str, Any] | None:
    """What the writer noted of a finished shard; None where the shard is not finished."""
    folder = folder_at(dataset)
    try:
        metadata = pq.read_schema(pa.BufferReader(folder.read(shard_file(name, ".parquet")))).metadata
        facts: dict[str, Any] = json.loads(metadata[b"bie_stream"])
        whole = folder.size(shard_file(name)) == facts["bytes"] and folder.size(shard_file(name, ".idx")) is not None
        return facts if whole else None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):  # a store that does not answer
            raise
        return None


def write_manifest(dataset: Location, manifest: Manifest) -> None:
    """The last act of a build."""
    folder_at(dataset).write(MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def read_manifest(dataset: Location) -> Manifest:
    """The manifest of a dataset.

    Raises:
        DatasetNotFound: there is none.
        DatasetError: it is not one that this version can read.
    """
    folder = folder_at(dataset)
    try:
        return Manifest.model_validate_json(folder.read(MANIFEST))
    except (FileNotFoundError, NotADirectoryError) as error:
        begun = bool(folder.names(SHARDS))
        reason = "its build has not finished; run the same `shardgen build` again" if begun else "nothing is there"
        raise DatasetNotFound(f"no dataset at {folder}: {MANIFEST} is missing, {reason}") from error
    except ValidationError as error:
        first = error.errors()[0]
        fault = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise DatasetError(f"{folder}/{MANIFEST} is not a manifest of version 1: {fault}") from error


def read_table(dataset: Location, manifest: Manifest) -> pa.Table:
    """One row per sample of the whole dataset, in order; a column `shard` (int32) numbers the manifest's shards.

    Raises:
        DatasetError: a shard is missing, cut short, or disagrees with the manifest.
    """
    folder = folder_at(dataset)
    try:
        with ThreadPoolExecutor(TABLES_AT_ONCE) as pool:  # of a store each one is a request
            numbers = range(len(manifest.shards))
            return pa.concat_tables(pool.map(lambda number: _numbered(folder, number, manifest), numbers))
    except pa.ArrowInvalid as error:  # no shard at all, or label columns of different types
        raise DatasetError(f"the tables of {folder} do not make one: {error}") from error


def _numbered(folder: Folder, number: int, manifest: Manifest) -> pa.Table:
    table = read_rows(folder, number, manifest)
    return table.append_column(pa.field("shard", pa.int32()), pa.array(np.full(len(table), number, np.int32)))


def read_rows(folder: Folder, number: int, manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of the shard of that number, held against the manifest; raises as `read_table`.

    Args:
        columns: only these.
    """
    shard = manifest.shards[number]
    tar, found = f"{folder}/{shard_file(shard.name)}", folder.size(shard_file(shard.name))
    if found != shard.bytes:
        state = "is missing" if found is None else f"has {found} bytes"
        raise DatasetError(
            f"shard {tar} {state}, the manifest says {shard.bytes} bytes; "
            "copy it again, or run the same `shardgen build` again"
        )
    table = read_shard_table(folder, shard.name, manifest, columns)
    if table.num_rows != shard.samples:
        raise DatasetError(f"table of {tar} has {table.num_rows} rows, the manifest says {shard.samples}")
    return table


def read_shard_table(
    dataset: Location, name: str, manifest: Manifest, columns: Sequence[str] | None = None
) -> pa.Table:
    """The table of one shard, its columns as they must be.

    Args:
        columns: only these.

    Raises:
        DatasetError: it cannot be read, or has other columns than the manifest says.
    """
    folder = folder_at(dataset)
    path = f"{folder}/{shard_file(name, '.parquet')}"
    try:
        file = pq.ParquetFile(pa.BufferReader(folder.read(shard_file(name, ".parquet"))))
        _require_small(file.metadata, path)
        _require_columns(file.schema_arrow, path, manifest)
        table = file.read(columns=columns, use_threads=False).replace_schema_metadata()
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"table {path} cannot be read: {error}") from error
    for field, column in zip(table.schema, table.columns, strict=True):
        empty = column.null_count or (field.name == "shape" and pc.list_flatten(column).null_count)
        if field.name in SAMPLE_COLUMNS.names and empty:
            raise DatasetError(f"table {path}: column {field.name!r} lacks a value")
    return table


def _require_small(about: pq.FileMetaData, path: str) -> None:
    """A megabyte can stand for gigabytes of one value."""
    packed = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    if (claimed := max(packed, 8 * about.num_rows * about.num_columns)) > LARGEST_TABLE_BYTES:
        raise DatasetError(
            f"table {path} claims {claimed / 2**20:.0f} MiB; that of a shard may have {LARGEST_TABLE_BYTES >> 20} MiB"
        )


def _require_columns(schema: pa.Schema, path: str, manifest: Manifest) -> None:
    by_options = {"object": ("objects", "masks"), "fold": ("folds",)}
    more = [name for name, options in by_options.items() if any(manifest.options.get(option) for option in options)]
    names = [*SAMPLE_COLUMNS.names, *more, *manifest.labels]
    if schema.names != names or len(set(names)) < len(names):
        raise DatasetError(
            f"table {path} has other columns than the manifest says: {', '.join(schema.names)}; "
            "copy it again, or run the same `shardgen build` again"
        )
    for field in schema:
        own = field.name in SAMPLE_COLUMNS.names
        known = (SAMPLE_COLUMNS.field(field.name).type,) if own else _LABEL_TYPES
        if field.type not in known:
            expected = " or ".join(map(str, known))
            raise DatasetError(f"table {path}: column {field.name!r} is {field.type}, expected {expected}")

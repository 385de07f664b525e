"""Zarr arrays (versions 2 and 3) in `shardgen.files`: read-only, the same on disk and over HTTP.

    read_json    a metadata file
    open_array   an array: its metadata, checked, and a store
    FilesStore   what zarr-python reads the chunks from

Metadata is not trusted. Among the codecs that zarr-python would load by name is one that unpickles, so that only those
are taken that turn numbers into bytes and back.
"""

import asyncio
import json
import re
import reprlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath

from bie_stream.errors import SourceError, SourceMissing
from shardgen.files import Files

LARGEST_METADATA_BYTES = 64 * 2**20
_COMPRESSORS_2 = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
_FILTERS_2 = ("delta", "shuffle")
_DTYPE_2 = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_CODECS_3 = ("blosc", "bytes", "crc32c", "gzip", "transpose", "zstd")
_DTYPES_3 = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


def read_json(files: Files, path: str) -> dict[str, Any]:
    """The object in a metadata file.

    Raises:
        SourceMissing: there is no such file.
        SourceError: it cannot be read, is too large, or holds no JSON object.
    """
    data = files.read(path, 0, LARGEST_METADATA_BYTES)
    if len(data) > LARGEST_METADATA_BYTES:
        raise SourceError(f"{path} is larger than {LARGEST_METADATA_BYTES / 2**20:.0f} MiB; no Zarr metadata is")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested deeper than Python reads
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"{path} holds {reprlib.repr(document)}, expected a JSON object")
    return document


def open_array(files: Files, path: str) -> Any:
    """The `zarr.Array` at a path; its attributes are not read.

    Raises:
        SourceMissing: there is none.
        SourceError: its metadata cannot be used.
    """
    for name, checked in ((".zarray", _version_2), ("zarr.json", _version_3)):
        try:
            document = read_json(files, f"{path}/{name}" if path else name)
        except SourceMissing:
            continue
        try:
            array: Any = zarr.Array.from_dict(StorePath(FilesStore(files), path), checked(document))
            if array.ndim < 2 or not all(0 < n < 2**40 for n in (*array.shape, *array.chunks, *(array.shards or ()))):
                raise ValueError(f"shape {array.shape} in chunks of {array.chunks}")
            return array
        except Exception as error:  # zarr raises whatever the metadata lead it to
            raise SourceError(f"{path or files.root} is not a readable Zarr array: {name}: {error}") from error
    raise SourceMissing(f"{path or files.root} is no Zarr array")


def _version_2(document: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an array of numbers, without its attributes."""
    _require_dtype(document["dtype"])
    filters = document.get("filters") or []
    for codec, known in ((document.get("compressor"), _COMPRESSORS_2), *((one, _FILTERS_2) for one in filters)):
        if codec is None:
            continue
        _require_known(codec["id"], known)
        for key in ("dtype", "astype"):  # of `delta`
            if codec.get(key) is not None:
                _require_dtype(codec[key])
    return {**document, "filters": filters or None, "attributes": {}}


def _version_3(document: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an array of numbers, without its attributes."""
    if document["node_type"] != "array":
        raise ValueError(f"it is a {reprlib.repr(document['node_type'])}")
    if document["data_type"] not in _DTYPES_3:
        raise ValueError(f"data type {reprlib.repr(document['data_type'])}, expected {', '.join(_DTYPES_3)}")
    codecs = document["codecs"]
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":  # with others around it, shards are read whole
        shard = codecs[0]["configuration"]
        codecs = [*shard["codecs"], *shard.get("index_codecs", [])]
    for codec in codecs:
        _require_known(codec["name"], _CODECS_3)
    return {**document, "attributes": {}}


def _require_dtype(dtype: object) -> None:
    if not (isinstance(dtype, str) and _DTYPE_2.fullmatch(dtype)):
        raise ValueError(f"dtype {reprlib.repr(dtype)}, expected one of numbers, as in '<u2'")


def _require_known(codec: object, known: tuple[str, ...]) -> None:
    if codec not in known:
        raise ValueError(f"codec {reprlib.repr(codec)}, expected {', '.join(known)}")


class FilesStore(Store):
    """Read-only; what is not there is None, as Zarr wants it, and what cannot be read raises."""

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = False

    def __init__(self, files: Files) -> None:
        super().__init__(read_only=True)
        self.files = files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilesStore) and other.files == self.files

    def __hash__(self) -> int:
        return hash(self.files)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            data = await asyncio.to_thread(self._read, key, byte_range)
        except SourceMissing:
            return None
        return prototype.buffer.from_bytes(data)

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        match part:
            case RangeByteRequest() if part.start >= part.end:
                return b""  # no range of HTTP is empty
            case RangeByteRequest():
                return _whole(key, part.end - part.start, self.files.read(key, part.start, part.end - 1))
            case OffsetByteRequest():
                return self.files.read(key, part.offset)
            case SuffixByteRequest():
                first = max(0, self.files.size(key) - part.suffix)
                return _whole(key, part.suffix, self.files.read(key, first))
            case _:
                data = self.files.read(key)
                return _whole(key, max(1, len(data)), data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        try:
            await asyncio.to_thread(self.files.size, key)
        except SourceMissing:
            return False
        return True

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    async def _nothing(self) -> AsyncIterator[str]:
        names: tuple[str, ...] = ()
        for name in names:
            yield name

    def list(self) -> AsyncIterator[str]:
        return self._nothing()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._nothing()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._nothing()


def _whole(key: str, size: int, data: bytes) -> bytes:
    """The data, if it has this many bytes: zarr takes what is cut to nothing for absent, and so for fill values."""
    if len(data) != size:
        raise SourceError(f"{key} is damaged: {len(data)} bytes where {size} should be")
    return data

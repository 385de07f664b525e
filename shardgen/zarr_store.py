"""Zarr arrays (versions 2 and 3) in `shardgen.files`: read-only, the same on disk and over HTTP.

    read_json    a metadata file
    open_array   an array: its metadata, checked, and a store
    FilesStore   what zarr-python reads the chunks from

Metadata is not trusted. Among the codecs that zarr-python would load by name is one that unpickles, so that only those
are taken that turn numbers into bytes and back. Its own compressors unpack whatever the chunks hold, however much that
is; those here unpack no more than a chunk may have.
"""

import asyncio
import bz2
import json
import lzma
import math
import re
import reprlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath

from bie_stream.errors import SourceError, SourceMissing
from shardgen.files import Files

LARGEST_METADATA_BYTES = 64 * 2**20
_COMPRESSORS_2 = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
_FILTERS_2 = ("delta", "shuffle")
_DTYPE_2 = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_COMPRESSORS_3 = ("blosc", "gzip", "zstd")
_CODECS_3 = (*_COMPRESSORS_3, "bytes", "crc32c", "transpose")
_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lambda: lzma.LZMADecompressor(memlimit=2**28),
}
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
    dtypes = [_require_dtype(document["dtype"])]
    filters = document.get("filters") or []
    compressor = document.get("compressor")
    for codec, known in ((compressor, _COMPRESSORS_2), *((one, _FILTERS_2) for one in filters)):
        if codec is None:
            continue
        _require_known(codec["id"], known)
        dtypes += [
            _require_dtype(codec[key]) for key in ("dtype", "astype") if codec.get(key) is not None
        ]  # of `delta`
    if compressor is not None:
        size = math.prod(document["chunks"]) * max(dtype.itemsize for dtype in dtypes)
        compressor = _Unpacker2(compressor["id"], size)
    return {**document, "compressor": compressor, "filters": filters or None, "attributes": {}}


def _version_3(document: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an array of numbers, without its attributes."""
    if document["node_type"] != "array":
        raise ValueError(f"it is a {reprlib.repr(document['node_type'])}")
    if document["data_type"] not in _DTYPES_3:
        raise ValueError(f"data type {reprlib.repr(document['data_type'])}, expected {', '.join(_DTYPES_3)}")
    codecs, itemsize = document["codecs"], np.dtype(document["data_type"]).itemsize
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":  # with others around it, shards are read whole
        shard = codecs[0]["configuration"]
        for codec in shard.get("index_codecs", []):
            _require_known(codec["name"], ("bytes", "crc32c"))
        shard = {**shard, "codecs": _bounded(shard["codecs"], math.prod(shard["chunk_shape"]) * itemsize)}
        return {**document, "codecs": [{**codecs[0], "configuration": shard}], "attributes": {}}
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
    return {**document, "codecs": _bounded(codecs, math.prod(chunk) * itemsize), "attributes": {}}


def _bounded(codecs: list[dict[str, Any]], size: int) -> list[Any]:
    """The codecs, with unpackers that know how large a chunk is in place of those that compress."""
    for codec in codecs:
        _require_known(codec["name"], _CODECS_3)
    return [_Unpacker3(codec["name"], size) if codec["name"] in _COMPRESSORS_3 else codec for codec in codecs]


@dataclass(frozen=True)
class _Unpacker3(BytesBytesCodec):
    """A compressor of version 3 that only unpacks; `size` is that of a chunk, in bytes."""

    codec: str
    size: int
    is_fixed_size = False

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = await asyncio.to_thread(_unpack, self.codec, chunk_data.to_bytes(), self.size)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError


class _Unpacker2(numcodecs.abc.Codec):  # type: ignore[misc]
    """The same for version 2."""

    codec_id = "unpacker"

    def __init__(self, codec: str, size: int) -> None:
        self.codec, self.size = codec, size

    def decode(self, buf: Any, out: None = None) -> bytes:
        return _unpack(self.codec, bytes(buf), self.size)

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError


def _unpack(codec: str, packed: bytes, size: int) -> bytes:
    """What is packed in the data: a chunk of so many bytes; a little more where it is not yet the chunk (compressed
    twice, or with a checksum).

    Raises:
        ValueError: it is damaged, or more than that.
    """
    most = size + size // 64 + 2**16
    if codec in _STREAMS:
        return _inflate(_STREAMS[codec], packed, most)
    claimed = _claimed(codec, packed)
    if claimed is None:  # as it may be in a stream of zstd: then only what is one chunk can be read
        return bytes(numcodecs.Zstd().decode(packed, np.empty(size, np.uint8)))
    if claimed > most:
        raise ValueError(f"a chunk claims {claimed} bytes, expected {size}")
    return bytes(numcodecs.get_codec({"id": codec}).decode(packed))


def _inflate(stream: Callable[[], Any], packed: bytes, most: int) -> bytes:
    """All streams in the data, one after another."""
    unpacked = bytearray()
    while packed:
        unpacker = stream()
        unpacked += unpacker.decompress(packed, most + 1 - len(unpacked))
        if len(unpacked) > most:
            raise ValueError(f"a chunk unpacks to more than {most} bytes")
        if not unpacker.eof:
            raise ValueError("a compressed chunk is cut off")
        packed = unpacker.unused_data.lstrip(b"\0")
    return bytes(unpacked)


def _claimed(codec: str, packed: bytes) -> int | None:
    """The unpacked size that the data begin with: blosc (its README_CHUNK_FORMAT), lz4 (of numcodecs), zstd (RFC 8878,
    3.1.1.1; None where it is not said)."""
    if codec in ("blosc", "lz4"):
        return int.from_bytes(packed[4:8] if codec == "blosc" else packed[:4], "little")
    descriptor = packed[4]
    single, kind = descriptor >> 5 & 1, descriptor >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    length = (single, 2, 4, 8)[kind]
    return int.from_bytes(packed[at : at + length], "little") + 256 * (kind == 1) if length else None


def _require_dtype(dtype: object) -> "np.dtype[Any]":
    if not (isinstance(dtype, str) and _DTYPE_2.fullmatch(dtype)):
        raise ValueError(f"dtype {reprlib.repr(dtype)}, expected one of numbers, as in '<u2'")
    return np.dtype(dtype)


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

"""`shardgen.files` as a store of zarr-python: read-only, the same on disk and over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from bie_stream.errors import SourceMissing
from shardgen.files import Files


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
        return isinstance(other, FilesStore) and other.files is self.files

    __hash__ = object.__hash__

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            data = await asyncio.to_thread(self._read, key, byte_range)
        except SourceMissing:
            return None
        return prototype.buffer.from_bytes(data)

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        match part:
            case RangeByteRequest():
                return self.files.read(key, part.start, part.end - 1)
            case OffsetByteRequest():
                return self.files.read(key, part.offset)
            case SuffixByteRequest():
                return self.files.read(key, max(0, self.files.size(key) - part.suffix))
            case _:
                return self.files.read(key)

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

"""Bytes by (shard, offset, size): of files on disk through memory maps, of an object store by a request each."""

import mmap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bie_stream.errors import SampleError
from bie_stream.folder import Folder, LocalFolder


class Store(Protocol):
    """The files of a dataset's shards, by number."""

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        """A read-only view of these bytes.

        Raises:
            SampleError: the file is gone or ends before them.
        """


def open_store(folder: Folder, paths: Sequence[str]) -> Store:
    """The store of these files, in their order."""
    if isinstance(folder, LocalFolder):
        return LocalStore([folder.root / path for path in paths])
    return RemoteStore(folder, paths)


class RemoteStore:
    """Nothing is kept: every read is a request."""

    def __init__(self, folder: Folder, paths: Sequence[str]) -> None:
        self._folder, self._paths = folder, paths

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        path = self._paths[shard]
        try:
            data = self._folder.read(path, offset, size)
        except FileNotFoundError as error:
            raise SampleError(f"{self._folder}/{path} is not there") from error
        if len(data) != size:
            raise SampleError(
                f"{self._folder}/{path} ends at byte {offset + len(data)}, wanted {offset}..{offset + size}"
            )
        return memoryview(data)


class LocalStore:
    """Maps each file once, on first use: the page cache is the only buffer. Safe to use from many threads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._maps: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        data = self._maps.get(shard)
        if data is None:
            with self._lock:
                data = self._maps[shard] = self._map(self._paths[shard])
        if offset + size > len(data):
            raise SampleError(f"{self._paths[shard]} ends at byte {len(data)}, wanted {offset}..{offset + size}")
        return data[offset : offset + size]

    @staticmethod
    def _map(path: Path) -> memoryview:
        try:
            with path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise SampleError(f"{path} cannot be read: {error}") from error

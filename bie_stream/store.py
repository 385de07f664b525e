"""Bytes by (shard, offset, size). Local files, memory-mapped: the page cache is the only buffer."""

import mmap
import threading
from pathlib import Path

from bie_stream.errors import SampleError


class LocalStore:
    """Maps each file once, on first use. Safe to use from many threads."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._maps: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        """A read-only view of these bytes.

        Raises:
            SampleError: the file is gone or ends before them.
        """
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

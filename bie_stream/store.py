"""Bytes by (shard, offset, size): of files on disk through memory maps, of an object store in blocks that are kept.

read ─▶ cache ─▶ view                          prefetch ─▶ queue
          │ not there                                        │
          └──▶ flight: one for each block, whoever asks ◀────┘
                 └─▶ claim, so that one process fetches ─▶ request, again if it fails ─▶ cache
"""

import functools
import re
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bie_stream.cache import Cache, Piece, mapped, open_cache
from bie_stream.errors import DatasetError, SampleError
from bie_stream.folder import Folder, LocalFolder, RemoteFolder
from bie_stream.patience import again, aside, said
from bie_stream.shards import ShardEntry, shard_file

# Of a store with 30 ms and 90 MB/s a connection, 10 connections, 2 cores: 1 MiB 238 MB/s, 2 MiB 301, 4 MiB 429, 8 MiB
# 389. Larger ones take longer to the first sample, and bring more that may not be wanted.
BLOCK_BYTES = 4 * 2**20
_AT_ONCE = 16  # requests
_AHEAD_AT_ONCE = 8  # of them, of what is asked for ahead
_AHEAD_MOST = 1024  # blocks that wait to be fetched ahead; more are left to who reads them


@dataclass(frozen=True)
class Counts:
    """What the reading of samples from an object store took so far.

    Attributes:
        requests: for blocks; those that fsspec made again by itself not counted.
        fetched_bytes: what came.
        hits: blocks that were there when they were wanted.
        misses: blocks that were not.
        retries: requests that failed and were made again.
    """

    requests: int = 0
    fetched_bytes: int = 0
    hits: int = 0
    misses: int = 0
    retries: int = 0


class Store(Protocol):
    """The files of a dataset's shards, by number."""

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        """A read-only view of these bytes.

        Raises:
            SampleError: the file is gone or ends before them.
            DatasetError: its store does not give them. That is no fault of the sample, and may pass: to leave it out
                would make what is read a matter of the hour.
        """

    def prefetch(self, shard: int, offset: int, size: int) -> None:
        """Says that these bytes will be read; returns at once."""

    def forget(self, shard: int, offset: int, size: int) -> None:
        """Says that these bytes were read and are wrong: they are fetched anew when they are read again."""

    @property
    def counts(self) -> Counts:
        """What reading took so far."""


def open_store(folder: Folder, shards: Sequence[ShardEntry], cache_bytes: int | None = None) -> Store:
    """The store of these shards, in their order.

    Args:
        cache_bytes: how much of an object store this machine keeps; None for the default, 0 for nothing.

    Raises:
        DatasetError: of a shard in an object store, the manifest's sha256 is none.
    """
    if isinstance(folder, LocalFolder):
        return LocalStore([folder.root / shard_file(shard.name) for shard in shards])
    assert isinstance(folder, RemoteFolder), "there are two kinds"
    for shard in shards:
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256):  # it becomes the name of a file
            raise DatasetError(f"shard {shard.name} of {folder} has sha256 {shard.sha256!r}, expected 64 digits of 0-f")
    return RemoteStore(folder, shards, open_cache(cache_bytes))


class RemoteStore:
    """Fetches whole blocks and keeps them in the cache; without one, or where it is full, just what is read.

    Safe to use from many threads. Every wait ends: see `bie_stream.patience`.
    """

    def __init__(
        self, folder: RemoteFolder, shards: Sequence[ShardEntry], cache: Cache | None, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self._folder, self._shards, self._cache, self._block = folder, shards, cache, block_bytes
        self._patience = folder.patience
        self._flights: dict[Piece, Future[memoryview]] = {}
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self._waiting: dict[Piece, int] = {}  # to be fetched ahead, and of which shard
        self._ahead = 0  # threads that do
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        entry, end = self._shards[shard], offset + size
        if end > entry.bytes:
            raise SampleError(f"{self._where(shard)} ends at byte {entry.bytes}, wanted {offset}..{end}")
        pieces = self._pieces(entry, offset, end)
        kept = [self._kept(piece, offset, end) for piece in pieces]
        missing = [piece for piece, view in zip(pieces, kept, strict=True) if view is None]
        flights = {piece: self._flight(shard, self._asked_of(piece, offset, end)) for piece in missing}
        self._count(hits=len(pieces) - len(missing), misses=len(missing))
        landed = (self._landed(shard, piece, flights[piece], offset, end) for piece in missing)
        views = [next(landed) if view is None else view for view in kept]
        return views[0] if len(views) == 1 else memoryview(b"".join(views))

    def prefetch(self, shard: int, offset: int, size: int) -> None:
        if self._cache is None or not self._cache.writable:
            return
        for piece in self._pieces(self._shards[shard], offset, offset + size):
            if piece not in self._cache:
                self._fetch_ahead(shard, piece)

    def forget(self, shard: int, offset: int, size: int) -> None:
        if self._cache is not None:
            for piece in self._pieces(self._shards[shard], offset, offset + size):
                self._cache.discard(piece)

    @property
    def counts(self) -> Counts:
        with self._lock:
            return Counts(**self._counted)

    def _where(self, shard: int) -> str:
        return f"{self._folder}/{shard_file(self._shards[shard].name)}"

    def _pieces(self, entry: ShardEntry, start: int, stop: int) -> list[Piece]:
        """What is fetched at a time, to have these bytes."""
        first = start if self._cache is None else start // self._block * self._block
        begins = range(first, stop, self._block)
        return [Piece(entry.sha256, begin, min(begin + self._block, entry.bytes)) for begin in begins]

    def _kept(self, piece: Piece, start: int, stop: int) -> memoryview | None:
        part = _part(piece, start, stop)
        return None if self._cache is None else self._cache.get(piece, part.start, part.stop)

    def _asked_of(self, piece: Piece, start: int, stop: int) -> Piece:
        """What of a piece is fetched for who reads these bytes: all of it, if the rest can be kept."""
        return piece if self._cache is not None and self._cache.writable else _part(piece, start, stop)

    def _flight(self, shard: int, piece: Piece) -> "Future[memoryview]":
        """The one fetch of a piece that is under way; it is begun if there is none."""
        with self._lock:
            self._waiting.pop(piece, None)
            if piece not in self._flights:
                self._flights[piece] = aside(lambda: self._fly(shard, piece))
            return self._flights[piece]

    def _fly(self, shard: int, piece: Piece) -> memoryview:
        try:
            return self._fetch(shard, piece)
        finally:
            with self._lock:
                del self._flights[piece]

    def _fetch(self, shard: int, piece: Piece) -> memoryview:
        if self._cache is None:
            return self._ask(shard, piece)
        with self._cache.claim(piece, self._patience.limit_s):
            found = self._cache.get(piece, piece.start, piece.stop)
            if found is None:
                found = self._ask(shard, piece)
                self._cache.put(piece, found)
            return found

    def _ask(self, shard: int, piece: Piece) -> memoryview:
        if not self._slots.acquire(timeout=self._patience.longest_s):
            raise TimeoutError(f"{_AT_ONCE} requests before it were not answered in {self._patience.longest_s:g} s")
        try:
            ask = functools.partial(self._request, shard, piece)
            return again(ask, self._patience, lambda: self._count(retries=1))
        finally:
            self._slots.release()

    def _request(self, shard: int, piece: Piece, limit_s: float) -> memoryview:
        self._count(requests=1)
        size = piece.stop - piece.start
        data = self._folder.fetch(shard_file(self._shards[shard].name), piece.start, size, limit_s)
        self._count(fetched_bytes=len(data))
        if len(data) > size:
            raise ValueError(f"{len(data)} bytes came of {size} asked for; the server must know ranges of bytes")
        if len(data) < size:
            raise ConnectionError(f"{len(data)} bytes came of {size} asked for")
        return memoryview(data)

    def _landed(self, shard: int, piece: Piece, flight: "Future[memoryview]", start: int, stop: int) -> memoryview:
        """The part of a piece that is read, once it was fetched."""
        part = _part(piece, start, stop)
        try:
            data = flight.result(3 * self._patience.longest_s)  # claimed by others, waiting for others, asked for
        except FileNotFoundError as error:
            raise SampleError(f"{self._where(shard)} is not there") from error
        except Exception as error:
            raise DatasetError(
                f"{self._where(shard)}, bytes {part.start}..{part.stop}: {said(error)}; see the network and the store"
            ) from error
        found = self._kept(piece, start, stop)
        if found is not None:
            return found
        if len(data) == part.stop - part.start:
            return data
        return memoryview(bytes(data[part.start - piece.start : part.stop - piece.start]))  # so that the rest can go

    def _fetch_ahead(self, shard: int, piece: Piece) -> None:
        with self._lock:
            if len(self._waiting) < _AHEAD_MOST and piece not in self._flights:
                self._waiting[piece] = shard
            begin = bool(self._waiting) and self._ahead < _AHEAD_AT_ONCE
            self._ahead += begin
        if begin:
            aside(self._run_ahead)

    def _run_ahead(self) -> None:
        """Fetches what waits, until nothing does. What fails is left to who reads it."""
        while (following := self._next_ahead()) is not None:
            wait([self._flight(*following)], timeout=3 * self._patience.longest_s)

    def _next_ahead(self) -> tuple[int, Piece] | None:
        with self._lock:
            if self._waiting:
                piece = next(iter(self._waiting))
                return self._waiting.pop(piece), piece
            self._ahead -= 1
            return None

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counted.update(more)


def _part(piece: Piece, start: int, stop: int) -> Piece:
    """The bytes of a piece that lie within these."""
    return piece._replace(start=max(piece.start, start), stop=min(piece.stop, stop))


class LocalStore:
    """Maps each file once, on first use: the page cache is the only buffer. Safe to use from many threads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._maps: dict[int, memoryview] = {}
        self._begins = np.zeros(len(paths), np.int64)
        self._lock = threading.Lock()

    def addresses(self, shards: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """[B] where in memory the files of shards begin that have been read from."""
        return self._begins[shards]

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        data = self._maps.get(shard)
        if data is None:
            data = self._mapped(shard)
        if offset + size > len(data):
            raise SampleError(f"{self._paths[shard]} ends at byte {len(data)}, wanted {offset}..{offset + size}")
        return data[offset : offset + size]

    def prefetch(self, shard: int, offset: int, size: int) -> None:
        """Nothing: the system reads ahead."""

    def forget(self, shard: int, offset: int, size: int) -> None:
        """Nothing: there is no other copy."""

    @property
    def counts(self) -> Counts:
        return Counts()

    def _mapped(self, shard: int) -> memoryview:
        with self._lock:
            if shard not in self._maps:  # or a second map would take the place of the one that `addresses` spoke of
                data = self._map(self._paths[shard])
                self._begins[shard] = np.frombuffer(data, np.uint8).ctypes.data
                self._maps[shard] = data
            return self._maps[shard]

    @staticmethod
    def _map(path: Path) -> memoryview:
        try:
            return mapped(path, 0, path.stat().st_size)
        except (OSError, ValueError) as error:
            raise SampleError(f"{path} cannot be read: {error}") from error

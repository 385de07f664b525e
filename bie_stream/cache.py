"""Pieces of shards that were fetched, kept on a disk of this machine: bounded, and shared by its processes.

    <folder>/<two digits>/<sha256 of the shard>-<first byte>-<end>     the bytes, then their CRC-32C (4, little endian)
    <folder>/lock                                                      of which a byte is locked while one is fetched

A piece is named by what it holds: copies of a dataset share it, and a shard built anew never meets it.
It appears whole by a rename, and is believed only if its length and, the first time in a process, its checksum say so.
Who reads takes no lock: a piece is mapped into memory while its bytes are held, also after it was removed.
Those used least lately go first. To remove takes no lock either: two processes at it remove the same ones.
"""

import contextlib
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import pyarrow as pa

from bie_stream.atomic import PARTIAL
from bie_stream.errors import DatasetError

if sys.platform != "win32":
    import fcntl

MOST_BYTES = 64 * 2**30  # where nothing else is said
_CHECKSUM = 4  # bytes
_STEP = 2**18  # stays in the processor's cache while it is checksummed
_SHARERS = 8  # processes that write at once without passing the limit together
_ABANDONED_S = 3600.0  # after which a file that is being written has no writer any more
_TOUCH_S = 10.0  # how exactly it is known when a piece was used last
_REST_S = 60.0  # before something is written again where it could not be
_POLL_S = 0.02
_REMEMBERED = 2**17  # pieces whose checksum was verified: 8 bytes for each of 512 GiB
_OURS = re.compile(r"[0-9a-f]{64}-\d+-\d+(\.\w+" + re.escape(PARTIAL) + ")?")

_log = logging.getLogger("bie_stream")


class Piece(NamedTuple):
    """Bytes `start`..`stop` of the shard that has this sha256 (64 hexadecimal digits)."""

    sha256: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.sha256}-{self.start}-{self.stop}"


class Kept(NamedTuple):
    """A file of the cache: its bytes, and when it was used last (seconds of the clock)."""

    path: str
    bytes: int
    used: float


def cache_folder(environment: Mapping[str, str]) -> Path:
    """`$BIE_STREAM_CACHE`, else `bie-stream/shards` in the user's cache folder."""
    if own := environment.get("BIE_STREAM_CACHE"):
        return Path(own).absolute()
    if users := environment.get("XDG_CACHE_HOME"):
        return Path(users).absolute() / "bie-stream" / "shards"
    try:
        return Path.home() / ".cache" / "bie-stream" / "shards"
    except RuntimeError as error:
        raise DatasetError("no folder to keep what is fetched: this user has no home; set BIE_STREAM_CACHE") from error


def cache_limit(environment: Mapping[str, str]) -> int | None:
    """`$BIE_STREAM_CACHE_GB` in bytes; None where it is not set."""
    text = environment.get("BIE_STREAM_CACHE_GB")
    try:
        gigabytes = None if text is None else float(text)
    except ValueError:
        gigabytes = -1.0
    if gigabytes is None:
        return None
    if not 0 <= gigabytes < 1e9:
        raise DatasetError(f"BIE_STREAM_CACHE_GB is {text!r}, expected a number of GB such as 200; 0 keeps nothing")
    return int(gigabytes * 1e9)


def open_cache(limit: int | None) -> "Cache | None":
    """The cache of this user; None where nothing is to be kept.

    Args:
        limit: bytes; None for `$BIE_STREAM_CACHE_GB`, else 64 GiB, and never more than half of the free space.

    Raises:
        DatasetError: folder or limit are none.
    """
    limit = cache_limit(os.environ) if limit is None else limit
    if limit is not None and limit < 0:
        raise DatasetError(f"cache_bytes {limit}: expected a number of bytes, 0 for nothing")
    return None if limit == 0 else _cache(cache_folder(os.environ), limit)


@cache
def _cache(folder: Path, limit: int | None) -> "Cache":
    """One for all datasets of a process: what it locks it holds as one."""
    return Cache(folder, limit)


def least_recent(kept: Iterable[Kept], excess: int) -> list[Kept]:
    """Which files go so that at least `excess` bytes do, those used least lately first."""
    gone, taken = [], 0
    for file in sorted(kept, key=lambda file: file.used):
        if taken >= excess:
            break
        gone.append(file)
        taken += file.bytes
    return gone


def mapped(path: Path, offset: int, size: int) -> memoryview:
    """Bytes of a file through a memory map that lasts while they are held, and keeps no file open."""
    file = pa.memory_map(str(path))  # Python's own map keeps one open, and there may be a thousand of them
    try:
        file.seek(offset)
        view = memoryview(file.read_buffer(size)).cast("B")
    finally:
        file.close()
    if len(view) != size:
        raise OSError(f"{path} ends at byte {offset + len(view)}, wanted {offset}..{offset + size}")
    return view


class Cache:
    """Pieces in a folder. Safe to use from many threads and processes; the folder may be there, or come to be.

    Where it cannot be written, or its disk is full, pieces are not kept and one warning says so.

    Args:
        folder: on a disk of this machine.
        limit: bytes of all pieces together; None for 64 GiB, and never more than half of the free space.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder, self._limit = folder, limit
        self._verified: dict[Piece, tuple[int, int]] = {}  # number and time of the file whose checksum was right
        self._room = 0  # bytes that may be written before the folder is looked through again
        self._resting_until = float("-inf")
        self._warned = False
        self._lock = threading.Lock()

    @property
    def writable(self) -> bool:
        """Whether what is fetched now will be kept."""
        return time.monotonic() >= self._resting_until

    def __contains__(self, piece: Piece) -> bool:
        return self._path(piece).exists()

    def get(self, piece: Piece, start: int, stop: int) -> memoryview | None:
        """Bytes `start`..`stop` of the shard, which are in this piece, read-only; None where it is not there."""
        path = self._path(piece)
        try:
            if not self._sound(piece, path):
                return None
            return mapped(path, start - piece.start, stop - start)
        except OSError:  # removed by another process, most likely
            return None

    def put(self, piece: Piece, data: memoryview) -> None:
        """Keeps a piece, if that can be."""
        if not self.writable:
            return
        try:
            checksum = _checksum(data)
            with self._lock:  # one at a time, so that no more is written than there is room for
                if self._make_room(len(data) + _CHECKSUM):
                    self._believe(piece, _write(self._path(piece), data, checksum))
        except OSError as error:
            self._rest(error)

    def discard(self, piece: Piece) -> None:
        """Removes a piece, whose bytes turned out to be wrong."""
        with contextlib.suppress(OSError):
            self._path(piece).unlink()

    @contextlib.contextmanager
    def claim(self, piece: Piece, limit_s: float) -> Iterator[None]:
        """Held by one process at a time: while another fetches this piece, to wait for it costs less than to fetch it.

        After `limit_s` seconds it is waited for no longer. Whoever is killed holds nothing any more.
        """
        place = zlib.crc32(piece.name.encode())
        held = self._acquire(place, time.monotonic() + limit_s)
        try:
            yield
        finally:
            if held and self._lock_file is not None:
                _release(self._lock_file, place)

    def _path(self, piece: Piece) -> Path:
        return self._folder / piece.sha256[:2] / piece.name

    def _sound(self, piece: Piece, path: Path) -> bool:
        """Whether the file of a piece may be believed; one that may not is removed."""
        found = path.stat()
        identity = (found.st_ino, found.st_mtime_ns)
        if self._verified.get(piece) != identity:
            if not _intact(path, found.st_size, piece.stop - piece.start):
                _log.warning("%s is damaged and will be fetched anew", path)
                path.unlink()
                return False
            self._believe(piece, identity)
        if time.time() - found.st_atime > _TOUCH_S:
            with contextlib.suppress(OSError):  # of a folder that may only be read
                os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        return True

    def _believe(self, piece: Piece, identity: tuple[int, int]) -> None:
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        self._verified[piece] = identity

    def _make_room(self, size: int) -> bool:
        """Whether so many bytes may be written."""
        if size > self._room:
            self._room = self._look_through(size)
        self._room -= size
        return self._room >= 0

    def _look_through(self, size: int) -> int:
        """Removes what is too much, and gives this process a share of the room that is left, in bytes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = list(_kept(self._folder))
        total = sum(file.bytes for file in kept)
        limit = _half_of_free(self._folder, total) if self._limit is None else self._limit
        whole = (file for file in kept if not file.path.endswith(PARTIAL))
        for file in least_recent(whole, total + size - limit * 7 // 8):
            Path(file.path).unlink(missing_ok=True)
            total -= file.bytes
        return min(limit - total, max(size, (limit - total) // _SHARERS))

    def _rest(self, error: OSError) -> None:
        self._resting_until = time.monotonic() + _REST_S
        if not self._warned:
            self._warned = True
            _log.warning("the cache %s cannot be written, what is fetched is not kept: %s", self._folder, error)

    def _acquire(self, place: int, deadline: float) -> bool:
        while self._lock_file is not None:
            try:
                _lock(self._lock_file, place)
                return True
            except (BlockingIOError, PermissionError):  # another process holds it
                if time.monotonic() > deadline:
                    return False
            except OSError:  # a file system without locks: two processes may fetch the same piece
                return False
            time.sleep(_POLL_S)
        return False

    @cached_property
    def _lock_file(self) -> int | None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None


def _kept(folder: Path) -> Iterator[Kept]:
    """The files of the cache in its folder, and no others; what a killed process was writing is removed."""
    for number in range(256):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / f"{number:02x}") as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name) and (file := _looked_at(entry)):
                    yield file


def _looked_at(entry: "os.DirEntry[str]") -> Kept | None:
    try:
        found = entry.stat()
        if entry.name.endswith(PARTIAL) and time.time() - found.st_mtime > _ABANDONED_S:
            Path(entry.path).unlink()
            return None
        return Kept(entry.path, found.st_size, max(found.st_atime, found.st_mtime))
    except FileNotFoundError:  # gone meanwhile
        return None


def _half_of_free(folder: Path, kept: int) -> int:
    return min(MOST_BYTES, (shutil.disk_usage(folder).free + kept) // 2)


def _write(path: Path, data: memoryview, checksum: bytes) -> tuple[int, int]:
    """Writes a piece that appears whole; number and time of its file. It is not synced: a look tells if it was lost."""
    path.parent.mkdir(exist_ok=True)
    handle, partial = tempfile.mkstemp(PARTIAL, f"{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.write(checksum)
            file.flush()
            found = os.fstat(handle)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return found.st_ino, found.st_mtime_ns


def _intact(path: Path, length: int, size: int) -> bool:
    if length != size + _CHECKSUM:
        return False
    whole = mapped(path, 0, length)
    return bytes(whole[size:]) == _checksum(whole[:size])


def _checksum(data: memoryview) -> bytes:
    crc = 0
    for start in range(0, len(data), _STEP):
        crc = google_crc32c.extend(crc, bytes(data[start : start + _STEP]))  # which takes nothing but bytes
    return crc.to_bytes(_CHECKSUM, "little")


def _lock(file: int, place: int) -> None:
    """Locks a byte of a file for this process; raises BlockingIOError or PermissionError where another has it."""
    if sys.platform != "win32":
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)


def _release(file: int, place: int) -> None:
    if sys.platform != "win32":
        fcntl.lockf(file, fcntl.LOCK_UN, 1, place)

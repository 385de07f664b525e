"""A file written once from start to end, past the page cache where the system lets it.

To put pages into the cache of ext4 cost half a second of CPU for each GB, more than to read, count and check them; and
of an archive of terabytes the cache would keep only what was written last.
"""

import errno
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_STAGE = 4 * 2**20  # at once to the file: enough for a network file system to have several requests under way
_BLOCK = 4096  # of a disk: addresses and sizes are multiples of it
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)


class DirectFile:
    """A new file, in place of what was there: `write` as often as wanted, `finish`, `close`. It is not synced.

    While one part is on its way to the disk, the next one is filled.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY
        try:
            self._file = os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file = os.open(path, flags, 0o666)  # a file system that has no such thing
        self._stages = [mmap.mmap(-1, _STAGE) for _ in range(2)]  # each starts at a page, as it must
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None
        self._filled = self._size = 0

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        view = memoryview(data)
        while view:
            taken = min(len(view), _STAGE - self._filled)
            self._stages[0][self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
            if self._filled == _STAGE:
                self._send()
        self._size += len(data)

    def finish(self) -> None:
        """Writes what is left, so that the file holds just what it was given."""
        self._send()
        self._wait()
        os.ftruncate(self._file, self._size)

    def close(self) -> None:
        """Without `finish` the file is left as it is; more than once does no harm."""
        if self._stages:
            self._pool.shutdown()
            while self._stages:
                self._stages.pop().close()
            os.close(self._file)

    def _send(self) -> None:
        self._wait()
        end = -(-self._filled // _BLOCK) * _BLOCK  # only the last part is none of whole blocks, and is cut afterwards
        self._under_way = self._pool.submit(_write_all, self._file, self._stages[0], end)
        self._stages.reverse()
        self._filled = 0

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()


def _write_all(file: int, stage: mmap.mmap, end: int) -> None:
    with memoryview(stage) as view:
        start = 0
        while start < end:
            with view[start:end] as part:
                start += _write(file, part)


def _write(file: int, part: memoryview) -> int:
    try:
        return os.write(file, part)
    except OSError as error:
        if not _DIRECT or error.errno != errno.EINVAL or not _through(file):
            raise
        return os.write(file, part)


def _through(file: int) -> bool:
    """Gives up writing past the cache, where a file system takes the flag and then not the bytes; whether it was so."""
    import fcntl  # only where O_DIRECT is

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)

"""Where a dataset lies: a folder on disk, or one in an object store (`s3://bucket/plates`, any URL of fsspec).

A file appears in it whole or not at all: on disk by a move, in a store because a store has nothing else.
Credentials and endpoints of stores are the user's own: `AWS_PROFILE`, `AWS_ENDPOINT_URL`, fsspec's configuration.
"""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from bie_stream.atomic import PARTIAL, atomic_file
from bie_stream.errors import BieStreamError, DatasetError
from bie_stream.patience import Patience, again, aside, http_status, said


class Folder(Protocol):
    """Files by path inside the folder, with `/`. Small, and can be sent to other processes."""

    def __str__(self) -> str:
        """Where it is, for a person."""

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """A whole file, or `size` bytes of it from `offset` on.

        Raises:
            FileNotFoundError: there is none.
        """

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def names(self, folder: str) -> list[str]:
        """What is in a folder inside this one, those of folders with `/`; nothing where there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Writes a small file."""

    def put(self, source: Path, path: str) -> None:
        """Moves a file of `scratch` here."""

    def remove(self, path: str) -> None:
        """Removes a file if it is there; on disk also a folder and all in it."""

    def scratch(self, name: str) -> AbstractContextManager[Path]:
        """A folder of this machine that is gone afterwards, to write files in that `put` takes."""

    def local(self, path: str) -> AbstractContextManager[Path]:
        """A file as one of this machine; raises as `read`."""


Location = str | PathLike[str] | Folder


def folder_at(location: Location) -> Folder:
    """The folder at a path or URL."""
    if not isinstance(location, str | PathLike):
        return location
    if "://" in (text := os.fspath(location)):
        return RemoteFolder(text.rstrip("/"))
    return LocalFolder(Path(text).absolute())


class LocalFolder:
    """On a disk of this machine, or one that machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        with (self.root / path).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)

    def size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        try:  # to open a folder also makes NFS ask its server what is in it
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name + "/" * entry.is_dir() for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, path: str, data: bytes) -> None:
        with atomic_file(self.root / path) as partial:
            partial.write_bytes(data)

    def put(self, source: Path, path: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        source.replace(self.root / path)

    def remove(self, path: str) -> None:
        if (self.root / path).is_dir():
            shutil.rmtree(self.root / path, ignore_errors=True)  # one that was believed dead may still write there
        else:
            (self.root / path).unlink(missing_ok=True)

    def scratch(self, name: str) -> AbstractContextManager[Path]:
        return _scratch(name, self.root)

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        yield self.root / path


class RemoteFolder:
    """In an object store or on a web server, through fsspec.

    What is read is asked for again while it fails for a reason that passes, and never waited for without an end. To
    read takes no listing: of a web server only that it knows `HEAD` and ranges of bytes.
    """

    def __init__(self, url: str, patience: Patience = Patience()) -> None:  # noqa: B008 - it is frozen
        self.url, self.patience = url, patience

    def __str__(self) -> str:
        return self.url

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        part = {} if not offset and size is None else {"start": offset, "end": None if size is None else offset + size}
        data: bytes = self._patiently("cat_file", path, **part)
        return data

    def fetch(self, path: str, offset: int, size: int, limit_s: float) -> bytes:
        """`size` bytes of a file from `offset` on, or what came of them, by one request that is not made again.

        Raises:
            TimeoutError: they did not come in so many seconds.
            Exception: what the library of the store raises.
        """
        store, where = self._place(path)
        data: bytes = _ask(store, "cat_file", where, limit_s, start=offset, end=offset + size)
        return data

    def size(self, path: str) -> int | None:
        try:
            size = self._patiently("size", path)
        except FileNotFoundError:
            return None
        if size is None:
            raise DatasetError(f"{self.url}/{path}: the server does not say how long it is, as it must when asked HEAD")
        return int(size)

    def names(self, folder: str) -> list[str]:
        try:
            found = self._patiently("ls", folder, detail=True)
        except FileNotFoundError:
            return []
        except DatasetError as error:
            if self.url.startswith("http") and 400 <= (http_status(error.__cause__ or error) or 0) < 500:
                return []  # a web server need not list its folders
            raise
        entries = ((entry["name"].rstrip("/").rpartition("/")[2], entry["type"]) for entry in found)
        return sorted(name + "/" * (kind == "directory") for name, kind in entries)

    def write(self, path: str, data: bytes) -> None:
        with self._store(path) as (store, where):
            store.pipe_file(where, data)

    def put(self, source: Path, path: str) -> None:
        with self._store(path) as (store, where):
            store.put_file(str(source), where)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._store(path) as (store, where):
            store.rm_file(where)

    def scratch(self, name: str) -> AbstractContextManager[Path]:
        return _scratch(name, None)

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        with _scratch("fetched", None) as folder:
            fetched = folder / "file"
            with self._store(path) as (store, where):
                store.get_file(where, str(fetched))
            yield fetched

    def _patiently(self, call: str, path: str, **given: Any) -> Any:
        with self._store(path) as (store, where):
            return again(lambda limit_s: _ask(store, call, where, limit_s, **given), self.patience)

    @contextlib.contextmanager
    def _store(self, path: str) -> Iterator[tuple[Any, str]]:
        """fsspec's file system and the path in it; what goes wrong there becomes an error for the user."""
        try:
            yield self._place(path)
        except (BieStreamError, FileNotFoundError):
            raise
        except Exception as error:  # stores raise what their libraries raise
            raise DatasetError(
                f"{self.url}/{path}: {said(error)}; see the credentials and endpoint of this store"
            ) from error

    def _place(self, path: str) -> tuple[Any, str]:
        store, root = _file_system(self.url)
        return store, f"{root.rstrip('/')}/{path}".rstrip("/")


def _ask(store: Any, call: str, where: str, limit_s: float, **given: Any) -> Any:
    """One call of fsspec, given up after so many seconds."""
    ask = functools.partial(getattr(store, call), where, **given)
    try:
        # An asynchronous store also gives up its connection; another one is left to itself.
        return ask(timeout=limit_s) if store.async_impl else aside(ask).result(limit_s)
    except TimeoutError as error:
        raise TimeoutError(f"no answer in {limit_s:g} s") from error
    except FileNotFoundError as error:
        if (trouble := _masked(error, store)) is not None:
            raise trouble from trouble.__cause__
        raise


def _masked(error: FileNotFoundError, store: Any) -> Exception | None:
    """What went wrong: of whatever does with the size of a file of a web server, fsspec says that it is not there."""
    cause = error.__cause__
    if "https" not in store.protocol or isinstance(cause, FileNotFoundError) or not isinstance(cause, Exception):
        return None
    return None if http_status(cause) in (404, 410) else cause


@functools.cache
def _file_system(url: str) -> tuple[Any, str]:
    import fsspec  # takes a while, and most datasets are on disk

    store, root = fsspec.core.url_to_fs(url, use_listings_cache=False)  # others write there too
    return store, root


@contextlib.contextmanager
def _scratch(name: str, parent: Path | None) -> Iterator[Path]:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(PARTIAL, f"{name}.", parent, ignore_cleanup_errors=True) as own:
        yield Path(own)

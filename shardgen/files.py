"""Bytes of an archive's files by path: from a folder, or over HTTP from servers that fail now and then.

    root                      what it is
    /data/plate, plate/       a folder
    https://host/tree         a tree of files over HTTP
    s3://bucket/prefix        a public bucket, read over HTTP from `s3` of `shardgen.endpoints`

Paths come from archives, so they are not trusted: none leaves its root.
"""

import contextlib
import functools
import html.parser
import itertools
import json
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar

import httpx

from bie_stream.errors import SourceError, SourceMissing
from shardgen.checksums import Checksum, of_whole_file

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_AGENT = "Mozilla/5.0 (compatible; bie-stream)"  # BioStudies turns away what does not look like a browser
_S3_HEADERS = {"x-amz-checksum-mode": "ENABLED"}  # or S3 sends none; only to S3, because signed addresses refuse it
_DEEPEST = 64  # of folders in folders; a link to its own folder, or a server that lists itself, would never end
_T = TypeVar("_T")
_ONE_BY_ONE = threading.Lock()  # or threads that start together would each make a client and a limit of their own
LARGEST_BYTES = 4 * 2**30  # of one file; what claims to be larger is refused


@dataclass(frozen=True)
class Transfer:
    """How patient and how polite to be with a server.

    Attributes:
        connections: at once to one host, from one process.
        timeout_s: without a byte, after which a connection is given up.
        tries: of one file before it is an error.
        pause_s: before the second try; doubled each time, at most `longest_pause_s`, times a random number in 0.5..1.
    """

    connections: int = 8
    timeout_s: float = 30.0
    tries: int = 8
    pause_s: float = 0.5
    longest_pause_s: float = 30.0


class Files(Protocol):
    """Files under one root; small, hashable and picklable, so that it can be sent to workers."""

    @property
    def root(self) -> str: ...

    @property
    def at_once(self) -> int:
        """How many reads at once are worth it."""

    def __hash__(self) -> int: ...

    def read(self, path: str, first: int = 0, last: int | None = None) -> bytes:
        """Bytes `first`..`last` (both included) of a file; all of it by default.

        Raises:
            SourceMissing: there is no such file.
            SourceError: it cannot be read.
        """

    def size(self, path: str) -> int:
        """Bytes of a file; raises as `read` does."""

    def list(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; those of folders end with `/`. Raises as `read` does."""


def open_files(root: str | Path, transfer: Transfer = Transfer(), *, s3: bool = False) -> Files:
    """The files under a folder or URL; `s3` says that it is a public bucket of S3."""
    return Http(str(root).rstrip("/"), transfer, s3) if is_url(str(root)) else Local(str(Path(root).resolve()))


def walk(files: Files, folder: str = "") -> Iterator[str]:
    """Paths of all files below a folder, sorted within each folder.

    Raises:
        SourceError: folders are nested without end.
    """
    if folder.count("/") > _DEEPEST:
        raise SourceError(f"{files.root}/{folder}: folders are nested more than {_DEEPEST} deep; is there a circle?")
    prefix = f"{folder}/" if folder else ""
    for name in files.list(folder):
        if name.endswith("/"):
            yield from walk(files, f"{prefix}{name[:-1]}")
        else:
            yield f"{prefix}{name}"


def is_url(root: str) -> bool:
    """Whether this is read over HTTP."""
    return root.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Local:
    """Files in a folder; `root` is its resolved path."""

    root: str
    at_once: ClassVar[int] = 1

    def path(self, path: str) -> Path:
        """Where a file lies; also through links, it is inside the root."""
        try:
            place = Path(self.root, _inside(path)).resolve()
        except RuntimeError as error:
            raise SourceError(f"{self.root}/{path} is a link that leads back to itself") from error
        if not place.is_relative_to(self.root):
            raise SourceError(f"{path!r} leads out of {self.root}; what an archive names must lie in its folder")
        return place

    def open(self, path: str) -> BinaryIO:
        """A file to read from; raises as `read` does."""
        try:
            return self.path(path).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise SourceMissing(f"{self.root}/{path} is not there") from error

    def read(self, path: str, first: int = 0, last: int | None = None) -> bytes:
        with self.open(path) as file:
            file.seek(first)
            return file.read(-1 if last is None else last + 1 - first)

    def size(self, path: str) -> int:
        place = self.path(path)
        if not place.is_file():
            raise SourceMissing(f"{self.root}/{path} is not there")
        return place.stat().st_size

    def list(self, folder: str = "") -> list[str]:
        try:
            entries = list(os.scandir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SourceMissing(f"{self.root}/{folder} is not there") from error
        return sorted(entry.name + "/" * _is_folder(entry) for entry in entries)


@dataclass(frozen=True)
class Http:
    """Files of a web server. Folders are read as Apache lists them."""

    root: str
    transfer: Transfer = Transfer()
    s3: bool = False

    @property
    def at_once(self) -> int:
        return self.transfer.connections

    def url(self, path: str) -> str:
        """The address of a file; blanks, brackets, `#` and `+` in its name are escaped."""
        return "/".join([self.root, *(urllib.parse.quote(os.fsencode(part), safe="") for part in _inside(path).parts)])

    def read(self, path: str, first: int = 0, last: int | None = None) -> bytes:
        return fetch(self.url(path), self.transfer, first, last, _S3_HEADERS if self.s3 else {})

    def size(self, path: str) -> int:
        url = self.url(path)

        def ask() -> int:  # HEAD, because the sizes in a listing are rounded
            with _request("HEAD", url, self.transfer, {}) as response:
                response.read()  # nothing, but only then the connection is used again
                size = response.headers.get("content-length", "")
                if not size.isdecimal():
                    raise SourceError(f"{url}: the server does not say how large this file is")
                return int(size)

        return _until_it_works(ask, url, self.transfer)

    def list(self, folder: str = "") -> list[str]:
        page = _Links()
        url = f"{self.url(folder)}/"
        try:
            page.feed(fetch(url, self.transfer).decode("utf-8", "replace"))
        except AssertionError as error:  # how the parser says that a marked section is none
            raise SourceError(f"{url} is no listing: {error}") from error
        return sorted(page.names)


def fetch(
    url: str, transfer: Transfer = Transfer(), first: int = 0, last: int | None = None, more: Mapping[str, str] = {}
) -> bytes:
    """A whole body, or the bytes `first`..`last` of it. After a broken connection it goes on where it stopped.

    A whole body has the checksum that the server states, if it states one.

    Args:
        more: headers of the request.

    Raises:
        SourceMissing: the server says that there is no such file.
        SourceError: it does not give the file after as many tries as `transfer` allows.
    """
    body, version = bytearray(), ""
    checksum: Checksum | None = None

    def go_on() -> None:
        nonlocal version, checksum
        start = first + len(body)
        headers = dict(more)
        if start or last is not None:
            headers["Range"] = f"bytes={start}-{'' if last is None else last}"
        if body:
            headers["If-Range"] = version
        with _request("GET", url, transfer, headers) as response:
            beyond = response.status_code == 416
            if beyond and not body:  # nothing is there, as in a local file
                checksum = None
                return
            ranged = response.status_code == 206
            found = response.headers.get("etag") or response.headers.get("last-modified") or ""
            if ranged and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
                raise _Again("it sent another part than was asked for")
            if body and (beyond or (ranged and found != version)):  # a server that does not mind If-Range
                body.clear()
                raise _Again("the file has changed meanwhile")
            if not ranged:  # the server begins anew: it knows no ranges, or the file has changed
                body.clear()
            version = found
            checksum = of_whole_file(response.headers, part=ranged) or (checksum if body else None)
            if ranged or last is None:
                _require_not_too_large(url, len(body) + int(response.headers.get("content-length", 0)))
            skip = 0 if ranged else first
            for chunk in response.iter_raw():
                body.extend(chunk[skip:])
                skip = max(0, skip - len(chunk))
                _require_not_too_large(url, len(body))
                if not ranged and last is not None and len(body) > last - first:
                    break  # the rest of the file is not wanted; to read a part to its end keeps the connection

    def whole_or_from_here() -> bytes:
        try:
            go_on()
        except httpx.TransportError:
            if not version or version.startswith("W/"):  # nothing to tell by that the rest is of the same file
                body.clear()
            raise
        data = bytes(body if last is None else body[: last + 1 - first])
        whole = not first and (last is None or len(data) <= last)
        if whole and checksum and not checksum.fits(data):
            body.clear()
            raise _Again(f"what came has another {checksum.algorithm} than the server says")
        return data

    return _until_it_works(whole_or_from_here, url, transfer)


def fetch_json(url: str, transfer: Transfer = Transfer()) -> dict[str, Any]:
    """A JSON object; raises as `fetch`, and where the body is none."""
    found = parse_json(fetch(url, transfer), url)
    if not isinstance(found, dict):
        raise SourceError(f"{url} is {type(found).__name__}, expected a JSON object")
    return found


def parse_json(data: bytes, where: str) -> Any:
    """What a JSON document holds.

    Raises:
        SourceError: it is none, or its text cannot be written down again (half a character, as `\\ud800`).
    """
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not JSON: {error}") from error
    return found


def _require_not_too_large(url: str, size: int) -> None:
    if size > LARGEST_BYTES:
        raise SourceError(f"{url} is larger than {LARGEST_BYTES / 2**30:.0f} GiB; no plane or table is")


class _Again(Exception):
    """This try failed, the next may not; `pause_s` is how long the server asks to be left alone."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def _until_it_works(attempt: Callable[[], _T], url: str, transfer: Transfer) -> _T:
    pause = transfer.pause_s
    for tries in itertools.count(1):
        try:
            return attempt()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects, UnicodeError) as error:
            raise SourceError(f"{url} cannot be read: {error}") from error
        except (_Again, httpx.RequestError) as error:
            reason = str(error) or type(error).__name__
            if tries == transfer.tries:
                raise SourceError(f"{url}: {reason}, after {tries} tries; the same command again goes on") from error
            asked = min(getattr(error, "pause_s", 0.0), transfer.longest_pause_s)
            time.sleep(max(asked, pause * random.uniform(0.5, 1)))
            pause = min(2 * pause, transfer.longest_pause_s)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _request(method: str, url: str, transfer: Transfer, headers: dict[str, str]) -> Iterator[httpx.Response]:
    host = httpx.URL(url).netloc.decode("ascii")
    with _ONE_BY_ONE:
        turn, client = _connection(host, transfer.connections), _client(transfer)
    with turn, client.stream(method, url, headers=headers) as response:
        status = response.status_code
        if status in (404, 410):  # not 403: of a Zarr chunk, "not there" means zeros
            raise SourceMissing(f"{url} is not there (HTTP {status})")
        if status in _AGAIN:
            after = response.headers.get("retry-after", "")
            raise _Again(f"HTTP {status}", float(after) if after.isdecimal() else 0.0)
        if status >= 400 and status != 416:
            raise SourceError(f"{url} cannot be read (HTTP {status})")
        yield response


@functools.cache
def _client(transfer: Transfer) -> httpx.Client:
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}  # sizes and ranges are those of the file
    return httpx.Client(headers=headers, timeout=transfer.timeout_s, follow_redirects=True)


@functools.cache
def _connection(host: str, connections: int) -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(connections)


def _inside(path: str) -> PurePosixPath:
    """The path, if it can only be below its root, and a file can have its names."""
    parts = PurePosixPath(path)
    try:
        too_long = any(len(os.fsencode(part)) > 255 for part in parts.parts) or len(path) > 2000
    except UnicodeEncodeError:  # half a character, as JSON can name
        too_long = True
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path or too_long:
        raise SourceError(f"{path!r} is not a path inside its archive")
    return parts


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Also a link to one; a link in a circle is none, where `entry.is_dir()` would raise."""
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


class _Links(html.parser.HTMLParser):
    """The names that an Apache listing links to: relative ones only, without those that sort it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = (dict(attrs).get("href") if tag == "a" else None) or "/"
        if not link.startswith(("/", "?", "#")) and (link.startswith("./") or ":" not in link):
            name = urllib.parse.unquote(link.removeprefix("./"))  # Apache writes ./a:b, because a: is a scheme
            if "/" not in name.rstrip("/") and name.strip("/") not in ("", ".", ".."):
                self.names.add(name)

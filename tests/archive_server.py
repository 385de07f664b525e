"""A web server that speaks as the public bioimage archives do: real metadata, real pixels, and faults now and then.

    /IDR/<repository>/HEAD/...                 raw GitHub: the real metadata files of four studies
    /pub/databases/IDR/<study>/...             their files; folders are listed as Apache lists them
    /api/v0/m/, /webclient/, /webgateway/      OMERO: screens, plates, bulk annotation tables
    /biostudies/...                            BioImage Archive: page-tabs, file lists, files
    /zarr/...                                  OME-Zarr, not listed, as in an object store

Made here, because no public copy has them: the annotation of idr0093 (three wells), the index files and TIFFs of
idr0094 (cuts of real images), the study S-BIAD9001, and all ids of OMERO plates and wells. The TIFFs of idr0006 and
idr0093 are real files of the same formats. A plane of idr0036 that we do not hold is another real image of that study.

It shares no code with `shardgen`, so that the two can be held against each other.
"""

import base64
import contextlib
import csv
import datetime
import functools
import gzip
import hashlib
import html
import http
import http.server
import io
import json
import re
import select
import socket
import sys
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import google_crc32c
import numpy as np
import tifffile
from command_line import ROOT

DATA = ROOT.parent / "shared" / "data"

Source = Path | bytes | Callable[[], bytes]
Fault = Literal["503", "429", "stall", "truncate", "corrupt"]

FAULTS: tuple[Fault, ...] = ("503", "429", "stall", "truncate")  # that strike by chance: those that a client can see
MODIFIED = datetime.datetime(2025, 2, 7, 19, 49, tzinfo=datetime.UTC)  # of every file

_FILESETS = "/uod/idr/filesets/"
_PUBLIC = "/pub/databases/IDR/"
_REPOSITORIES = {  # folder of real files -> where raw GitHub has them
    "idr0006": "/IDR/idr0006-fong-nuclearbodies/HEAD",
    "idr0036": "/IDR/idr-metadata/HEAD/idr0036-gustafsdottir-cellpainting",
    "idr0093": "/IDR/idr0093-mueller-perturbation/HEAD",
    "idr0094": "/IDR/idr0094-ellinger-sarscov2/HEAD",
}
_OTHER_METADATA = {
    "bulk-default.yml": "/IDR/idr-metadata/HEAD/bulk.yml",
    "studies.tsv": "/IDR/idr.openmicroscopy.org/HEAD/_data/studies.tsv",
    "download_urls.tsv": "/IDR/idr.openmicroscopy.org/HEAD/_data/download_urls.tsv",
    "ome_ngff_samples_table.csv": "/IDR/ome-ngff-samples/HEAD/_data/table.csv",
    "idr0036/mkngff_filesets.csv": "/IDR/mkngff_upgrade_scripts/HEAD/ngff_filesets/idr0036.csv",
}


def quote(path: str) -> str:
    """A path as it stands in a URL."""
    return urllib.parse.quote(path, safe="/")


def content(source: Source) -> bytes:
    """The bytes of one file of a tree."""
    match source:
        case Path():
            return source.read_bytes()
        case bytes():
            return source
        case _:
            return source()


def _size(source: Source) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(content(source))


@functools.cache
def _number(text: str) -> int:
    """The same for the same text, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# ---- the server -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What was asked, and what was sent."""

    method: str
    path: str  # decoded, with its query
    headers: Mapping[str, str]
    status: int
    fault: Fault | None
    body_bytes: int  # really sent

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Answer:
    """One answer, before a fault strikes it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class ArchiveServer:
    """Serves in threads of its own while the context is open.

    Args:
        tree: decoded URL path -> file; None for all of the archives.
        faults: share of answers that a fault replaces, 0..1; never more than three in a row for one path.
        seed: of the faults.
        stall_s: how long a stalled connection stays open.
        delay_s: before each answer.
        retry_after: what the answer 429 says.
        ranges: whether it serves parts of files.
        if_range: whether it minds `If-Range`; some object stores do not.
        etag: kind of entity tag.
        digests: names of the header fields that state the checksum of a file, each as its own standard says.
        biostudies: whether a study is a redirect to its page-tab, or a body that names its folder, or the page-tab.
        largest_page: of the OMERO API.
        needs_session: whether the OMERO API refuses those who have no cookie of the web client.
    """

    def __init__(
        self, tree: Mapping[str, Source] | None = None, *, faults: float = 0.0, seed: int = 0, stall_s: float = 30.0,
        delay_s: float = 0.0, retry_after: str = "1", ranges: bool = True, if_range: bool = True,
        etag: Literal["strong", "weak", "none"] = "strong", digests: Collection[str] = (),
        biostudies: Literal["redirect", "link", "body"] = "redirect",
        largest_page: int = 500, needs_session: bool = False,
    ) -> None:  # fmt: skip
        self.tree = dict(archive_tree() if tree is None else tree)
        self.stall_s, self.delay_s, self.retry_after = stall_s, delay_s, retry_after
        self.ranges, self.if_range, self.etag, self.digests = ranges, if_range, etag, digests
        self.faults = _Faults(faults, seed)
        self.requests: list[Request] = []
        self.connections = 0  # accepted in all
        self.most_at_once = 0  # answers in the making
        self._now, self._lock = 0, threading.Lock()
        self._tcp = _Tcp(self)
        self._thread = threading.Thread(target=self._tcp.serve_forever, args=(0.01,), name="archive-server")
        host, port = self._tcp.server_address[:2]
        self.url = f"http://{host!s}:{port}"
        self._services: list[Callable[[str, dict[str, str], Mapping[str, str]], Answer | None]] = []
        if tree is None:
            self._services = [_Omero(largest_page, needs_session).answer, _BioStudies(self.url, biostudies).answer]

    @property
    def endpoints(self) -> dict[str, str]:
        """Where the services of the archives are."""
        return {
            "idr_metadata": self.url,
            "idr_files": f"{self.url}{_PUBLIC}".rstrip("/"),
            "omero": self.url,
            "biostudies": f"{self.url}/biostudies",
        }

    @property
    def asked(self) -> Counter[str]:
        """Requests of each path."""
        return Counter(request.path for request in self.requests)

    @property
    def bytes_sent(self) -> int:
        """Of bodies."""
        return sum(request.body_bytes for request in self.requests)

    def fail(self, path: str, *faults: Fault) -> None:
        """The next answers for this path are these faults."""
        self.faults.next[path].extend(faults)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tcp.shutdown()
        self._thread.join()
        self._tcp.server_close()
        if kind is None and self._tcp.errors:
            raise self._tcp.errors[0]

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Around the making of an answer."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        """To one request, were there no faults."""
        for service in self._services:
            if answer := service(path, query, headers):
                return answer
        if path in self.tree:
            return self._with_digests(content(self.tree[path]), headers)
        if not path.startswith(("/IDR/", "/zarr/")):  # GitHub and object stores do not list
            if path.endswith("/") and (names := self._names(path)):
                return _page(_listing(path, names))
            if self._names(f"{path}/"):
                return Answer(301, headers={"Location": f"{quote(path)}/"})
        return _page("<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>", 404)

    def _with_digests(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        answer = self._file(body, headers)
        for_s3 = headers.get("x-amz-checksum-mode") == "ENABLED" and answer.status == 200
        for name in self.digests if answer.status in (200, 206) else ():
            if not name.startswith("x-amz-") or for_s3:
                answer.headers[name] = _digest(name, body, answer.body)
        return answer

    def _file(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        modified = MODIFIED.strftime("%a, %d %b %Y %H:%M:%S GMT")
        own = {"Content-Type": "application/octet-stream", "Last-Modified": modified}
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if self.etag != "none":
            own["ETag"] = tag if self.etag == "strong" else f"W/{tag}"
        if not self.ranges:
            return Answer(200, body, own)
        own["Accept-Ranges"] = "bytes"
        asked = headers.get("if-range")
        if asked and self.if_range and asked not in (modified, tag if self.etag == "strong" else None):
            return Answer(200, body, own)
        return _part(body, own, headers.get("range", ""))

    def _names(self, folder: str) -> dict[str, Source | None]:
        """What lies in a folder; None for a folder in it."""
        names: dict[str, Source | None] = {}
        for path, source in self.tree.items():
            if path.startswith(folder):
                name, slash, _ = path[len(folder) :].partition("/")
                names[name + slash] = None if slash else source
        return names


def _digest(name: str, body: bytes, sent: bytes) -> str:
    """What a header field says of a file and of the part of it that is sent."""

    def base64_of(algorithm: str, data: bytes) -> str:
        if algorithm == "crc32c":
            return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()

    match name:
        case "Repr-Digest":
            return f"sha-256=:{base64_of('sha256', body)}:, sha-512=:{base64_of('sha512', body)}:"
        case "Content-Digest":
            return f"sha-256=:{base64_of('sha256', sent)}:"
        case "Digest":
            return f"SHA-256={base64_of('sha256', body)},md5={base64_of('md5', body)}"
        case "Content-MD5":
            return base64_of("md5", sent)
        case "x-goog-hash":
            return f"crc32c={base64_of('crc32c', body)}, md5={base64_of('md5', body)}"
        case "x-amz-checksum-sha256" | "x-amz-checksum-crc32c":
            return base64_of(name.rpartition("-")[2], body)
    raise ValueError(f"{name} states no checksum")


def _part(body: bytes, headers: dict[str, str], asked: str) -> Answer:
    """The part of a body that a `Range` asks for; the whole where it asks for none, or for several."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if not match or match[0] == "bytes=-" or (match[1] and match[2] and int(match[2]) < int(match[1])):
        return Answer(200, body, headers)
    first = int(match[1]) if match[1] else max(0, len(body) - int(match[2]))
    last = min(int(match[2]) if match[1] and match[2] else len(body), len(body) - 1)
    if first > last:
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(body)}"})
    return Answer(206, body[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(body)}"})


def _page(text: str, status: int = 200) -> Answer:
    return Answer(status, text.encode(), {"Content-Type": "text/html;charset=UTF-8"})


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


class _Faults:
    """Which answers fail, and how: the same for the same seed, whatever the order of threads."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self.next: dict[str, deque[Fault]] = _Queues()
        self._asked: Counter[str] = Counter()
        self._struck: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self._lock = threading.Lock()

    def draw(self, path: str) -> Fault | None:
        with self._lock:
            self._asked[path] += 1
            if self.next[path]:
                return self.next[path].popleft()
            strikes = _number(f"{path} {self._asked[path]} {self.seed}") < self.share * 2**64
            if not strikes or self._in_a_row[path] == 3:
                self._in_a_row[path] = 0
                return None
            self._in_a_row[path] += 1
            self._struck[path] += 1
            return FAULTS[(_number(f"{path} {self.seed}") + self._struck[path]) % len(FAULTS)]


class _Queues(dict[str, "deque[Fault]"]):
    def __missing__(self, path: str) -> "deque[Fault]":
        self[path] = deque()
        return self[path]


class _Tcp(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 128

    def __init__(self, archive: ArchiveServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive = archive
        self.errors: list[BaseException] = []
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.archive.connections += 1
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, ConnectionError):  # a client may go when it likes
            self.errors.append(error)

    def server_close(self) -> None:
        for connection in list(self._open):  # wakes threads that wait for a next request
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Tcp

    def do_GET(self) -> None:
        archive = self.server.archive
        with contextlib.ExitStack() as serving:
            serving.enter_context(archive.serving())
            target = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(target.path), dict(urllib.parse.parse_qsl(target.query))
            asked = f"{path}?{target.query}" if target.query else path
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer, fault = archive.answer(path, query, headers), archive.faults.draw(asked)
            if archive.delay_s:
                time.sleep(archive.delay_s)
            head, body, fault = self._spoilt(answer, fault)
            whole = head + body
            with archive._lock:
                status = int(head.split()[1])
                archive.requests.append(Request(self.command, asked, headers, status, fault, len(body)))
            if fault == "stall":  # until the client has gone, or this server goes
                self.wfile.write(whole)
                select.select([self.connection], [], [], archive.stall_s)
                return
            self.wfile.write(whole[:-1])
            serving.close()  # before the last byte, after which the client may ask anew
            self.wfile.write(whole[-1:])

    do_HEAD = do_GET  # noqa: N815 (the name is that of the base class)

    def _spoilt(self, answer: Answer, fault: Fault | None) -> tuple[bytes, bytes, Fault | None]:
        """Head and body as they are sent, and the fault that struck: an answer without a body cannot be cut short."""
        if fault in ("stall", "truncate", "corrupt") and not (answer.body and self.command == "GET"):
            fault = "503"
        if fault == "503":
            answer = _page("<html><body><h1>Service Unavailable</h1></body></html>", 503)
        elif fault == "429":
            answer = _page("<html><body><h1>Too Many Requests</h1></body></html>", 429)
            answer.headers["Retry-After"] = self.server.archive.retry_after
        body = answer.body if self.command == "GET" else b""
        if fault in ("stall", "truncate"):
            self.close_connection = True
            body = body[: len(body) // 2]
        if fault == "corrupt":
            half = len(body) // 2
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        headers = {"Server": "Apache", **answer.headers, "Content-Length": str(len(answer.body))}
        lines = [f"HTTP/1.1 {answer.status} {http.HTTPStatus(answer.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), body, fault

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the requests are recorded."""


# ---- folders as Apache lists them -----------------------------------------------------------------------------------


def _listing(path: str, names: Mapping[str, Source | None]) -> str:
    title = f"Index of {html.escape(path.rstrip('/') or '/')}"
    columns = [("N", "Name"), ("M", "Last modified"), ("S", "Size"), ("D", "Description")]
    sorting = "".join(f'<th><a href="?C={key};O={"D" if key == "N" else "A"}">{name}</a></th>' for key, name in columns)
    rows = [_row("/icons/back.gif", "PARENTDIR", _parent(path), "Parent Directory", "&nbsp;", "-")]
    for name, source in sorted(names.items()):
        icon, kind = _icon(name)
        size = "-" if source is None else rounded(_size(source))
        rows.append(_row(icon, kind, _href(name), html.escape(name), MODIFIED.strftime("%Y-%m-%d %H:%M  "), size))
    return (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">\n'
        f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n<h1>{title}</h1>\n  <table>\n"
        f'   <tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th>{sorting}</tr>\n'
        '   <tr><th colspan="5"><hr></th></tr>\n'
        + "\n".join(rows)
        + '\n   <tr><th colspan="5"><hr></th></tr>\n</table>\n</body></html>\n'
    )


def _row(icon: str, kind: str, href: str, name: str, modified: str, size: str) -> str:
    return (
        f'<tr><td valign="top"><img src="{icon}" alt="[{kind}]"></td><td><a href="{href}">{name}</a></td>'
        f'<td align="right">{modified}</td><td align="right">{size}</td><td>&nbsp;</td></tr>'
    )


def _parent(path: str) -> str:
    return html.escape(quote(path.rstrip("/").rpartition("/")[0] + "/"))


def _href(name: str) -> str:
    """As Apache writes it: few characters are escaped, and a colon shall not look like a scheme."""
    escaped = urllib.parse.quote(name, safe="/$-_.+!*'(),:@&=~")
    return html.escape(f"./{escaped}" if ":" in name else escaped)


def _icon(name: str) -> tuple[str, str]:
    if name.endswith("/"):
        return "/icons/folder.gif", "DIR"
    if name.lower().endswith((".tif", ".tiff", ".png")):
        return "/icons/image2.gif", "IMG"
    return ("/icons/text.gif", "TXT") if name.endswith((".txt", ".csv", ".xml")) else ("/icons/unknown.gif", "   ")


def rounded(size: int) -> str:
    """A size as Apache shows it: `696`, `8.2K`, `138K`, `1.2G`."""
    if size < 973:
        return str(size)
    for unit in "KMGTPE":
        size, rest = divmod(size, 1024)
        if size >= 973:
            continue
        if size < 9 or (size == 9 and rest < 973):
            tenths = (rest * 5 + 256) // 512
            return f"{size + tenths // 10}.{tenths % 10}{unit}"
        return f"{size + (rest >= 512)}{unit}"
    raise ValueError(f"{size} is not a size")


# ---- the files of the archives --------------------------------------------------------------------------------------


@functools.cache
def archive_tree() -> Mapping[str, Source]:
    """Every file of the archives by its path."""
    tree: dict[str, Source] = {}
    for part in (_metadata, _idr0006, _idr0036, _idr0093, _idr0094, _biostudies_files, _zarr):
        tree.update(part())
    return tree


def _metadata() -> Iterator[tuple[str, Source]]:
    for folder, place in _REPOSITORIES.items():
        for path in _walk(DATA / "idr_metadata" / folder):
            name = path.relative_to(DATA / "idr_metadata" / folder).as_posix()
            if name != "mkngff_filesets.csv":
                yield f"{place}/{name.replace('annotation_old_bc8868b', 'idr0094-screenB-annotation')}", path
    for name, place in _OTHER_METADATA.items():
        yield place, DATA / "idr_metadata" / name
    yield f"{_REPOSITORIES['idr0093']}/screenA/idr0093-screenA-annotation.csv.gz", _idr0093_annotation()


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _public(path: str) -> str:
    """Where the public can read a file of the IDR's own server."""
    return _PUBLIC + path.removeprefix(_FILESETS)


def _plates(study: str, screen: str) -> dict[str, str]:
    """Path of each plate by its name; the two newer studies write the path first."""
    text = (DATA / "idr_metadata" / study / screen / f"{study}-{screen}-plates.tsv").read_text()
    pairs = [line.split("\t") for line in text.splitlines() if line]
    return {name: path for path, name in pairs} if study in ("idr0093", "idr0094") else dict(pairs)


def _idr0006() -> Iterator[tuple[str, Source]]:
    """Plate 11001: the files of another plate of that format, two wells x two sites x two waves, under its names."""
    index = _public(_plates("idr0006", "screenA")["11001"])
    folder, stem = index.rpartition("/")[0], index.rpartition("/")[2].removesuffix(".HTD")
    there = DATA / "hcs_layouts" / "ImageXpress_exported" / "9987_Plate_3435" / "TimePoint_1"
    for path in sorted(there.glob("*.TIF")):
        yield f"{folder}/{path.name.replace('9987', stem)}", path
    text = (there / "9987.HTD").read_bytes().replace(b'"TimePoints", 6', b'"TimePoints", 1')
    text = text.replace(b'"NWavelengths", 4', b'"NWavelengths", 2')  # w3 and w4 were taken at other times
    yield index, re.sub(rb'"Wave(Name|Collect)[34]",[^\n]*\n', b"", text)


def hoechst_images() -> list[Path]:
    """The real images that we hold of idr0036."""
    return sorted((DATA / "idr0036_hoechst" / "images").glob("*.tif"))


def _idr0036() -> Iterator[tuple[str, Source]]:
    images = hoechst_images()
    ours = {path.name: path for path in images}
    for screen in sorted((DATA / "idr_metadata" / "idr0036" / "screens").glob("*.screen")):
        for before, names, after in re.findall(r"^Field_\d+ = (.*)<(.*)>(.*)$", screen.read_text(), re.MULTILINE):
            for name in names.split(","):
                path = _public(f"{before}{name}{after}")
                yield path, ours.get(path.rpartition("/")[2], images[_number(path) % len(images)])


def _idr0093() -> Iterator[tuple[str, Source]]:
    """Plate 082, whose `.wpi` does not bear its name."""
    index = _public(_plates("idr0093", "screenA")["082"])
    there = next((DATA / "hcs_layouts" / "CV8000").rglob("MeasurementData.mlf")).parent
    for path in _walk(there):
        yield index if path.suffix == ".wpi" else f"{index.rpartition('/')[0]}/{path.name}", path


_IDR0093_WELLS = [  # wells of the plate that is served; of a scrambled control, the gene is empty
    ("D8", "3832", "KIF11", "", "positive control", "pass", "yes"),
    ("E3", "", "", "Scrambled, 1", "negative control", "pass", "no"),
    ("F8", "5111", "PCNA", "", "", "pass", "no"),
]


def _idr0093_annotation() -> bytes:
    columns = ["Gene Identifier", "Gene Symbol", "Comment [siRNA Pool]", "Control Type", "Quality Control"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["Plate", "Well", "Characteristics [Organism]", *columns, "Has Phenotype"])
    for well, *values in _IDR0093_WELLS:
        table.writerow(["082", well, "Homo sapiens", *values])
    return gzip.compress(text.getvalue().encode(), mtime=0)


def _idr0094() -> Iterator[tuple[str, Source]]:
    """Plate ESP0025769: two wells x two fields x one channel."""
    folder = _public(_plates("idr0094", "screenA")["ESP0025769"]) + "/2020-03-31T111336+0200[6690]"
    images = hoechst_images()
    planes = {(column, place): f"001{column:03}-{place}.tif" for column in (1, 2) for place in (1, 2)}
    for name, image in zip(planes.values(), images):
        yield f"{folder}/{name}", functools.partial(_cut, image)
    yield f"{folder}/MeasurementIndex.ColumbusIDX.xml", _COLUMBUS_MEASUREMENT.encode()
    rows = "".join(_COLUMBUS_IMAGE.format(column=c, field=f, name=name) for (c, f), name in planes.items())
    yield f"{folder}/ImageIndex.ColumbusIDX.xml", _COLUMBUS_IMAGES.format(rows=rows).encode()


@functools.cache
def _cut(image: Path) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.ascontiguousarray(tifffile.imread(image)[:512, :512]), metadata=None)
    return file.getvalue()


_COLUMBUS_MEASUREMENT = """<?xml version="1.0" encoding="UTF-8" ?>
<ColumbusMeasurementIndex Version="1"><ScreenName>SARS-CoV2</ScreenName><PlateName>ESP0025769</PlateName>\
<PlateType>96 well</PlateType><PlateRows>8</PlateRows><PlateColumns>12</PlateColumns>\
<Measurement MeasurementID="6690">2020-03-31T11:13:36+02:00</Measurement>\
<References><Reference Class="ImageIndex">ImageIndex.ColumbusIDX.xml</Reference></References></ColumbusMeasurementIndex>
"""
_COLUMBUS_IMAGES = """<?xml version="1.0" encoding="UTF-8" ?>
<EvaluationInputData xmlns="http://www.perkinelmer.com/Columbus" Version="1"><User>Undefined</User><Plates><Plate>\
<PlateID>ESP0025769</PlateID><MeasurementID>6690</MeasurementID>\
<MeasurementStartTime>2020-03-31T11:13:36+02:00</MeasurementStartTime><PlateTypeName>96 well</PlateTypeName>\
<PlateRows>8</PlateRows><PlateColumns>12</PlateColumns><Well id="001001" /><Well id="001002" /></Plate></Plates>\
<Images>{rows}</Images></EvaluationInputData>
"""
_COLUMBUS_IMAGE = """<Image Version="1"><id>001{column:03}K1F{field}P1R1</id><State>Ok</State>\
<URL BufferNo="0">{name}</URL><Row>1</Row><Col>{column}</Col><FieldID>{field}</FieldID><PlaneID>1</PlaneID>\
<TimepointID>1</TimepointID><ChannelID>1</ChannelID><ChannelName>Brightfield</ChannelName>\
<ChannelColor>4287795858</ChannelColor><ImageResolutionX Unit="m">6.45E-07</ImageResolutionX>\
<ImageResolutionY Unit="m">6.45E-07</ImageResolutionY><ImageSizeX>512</ImageSizeX><ImageSizeY>512</ImageSizeY>\
<PositionX Unit="m">0</PositionX><PositionY Unit="m">0</PositionY><PositionZ Unit="m">2E-06</PositionZ>\
<AbsTime>2020-03-31T11:13:36+02:00</AbsTime></Image>"""


def _zarr() -> Iterator[tuple[str, Source]]:
    folder = DATA / "ome_zarr_fixtures"
    return ((f"/zarr/{path.relative_to(folder).as_posix()}", path) for path in _walk(folder))


# ---- OMERO ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Screen:
    study: str
    name: str  # of its folder
    rows: int
    columns: int


_SCREENS = {
    253: _Screen("idr0006", "screenA", 8, 12),
    1952: _Screen("idr0036", "screenA", 16, 24),
    2751: _Screen("idr0093", "screenA", 16, 24),
    2602: _Screen("idr0094", "screenA", 8, 12),
    2603: _Screen("idr0094", "screenB", 8, 12),
}
_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


class _Omero:
    """The JSON API and the bulk annotation tables."""

    def __init__(self, largest_page: int, needs_session: bool) -> None:
        self.largest_page, self.needs_session = largest_page, needs_session

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer | None:
        if path == "/webclient/":
            answer = _page("<html><head><title>Webclient</title></head><body></body></html>")
            answer.headers["Set-Cookie"] = "sessionid=public; Path=/"
            return answer
        table = re.fullmatch(r"/webgateway/table/Screen/(\d+)/query/", path)
        if not table and not path.startswith("/api/"):
            return None
        if self.needs_session and "sessionid=public" not in headers.get("cookie", ""):
            return _json({"message": "Not logged in"}, 403)
        return self._table(int(table[1]), query) if table else self._api(path, query)

    def _api(self, path: str, query: dict[str, str]) -> Answer:
        if path == "/api/":
            return _json({"data": [{"version": "0", "url:base": "/api/v0/"}]})
        match = re.fullmatch(r"/api/v0/m/screens/(?:(\d+)/(plates/)?)?", path)
        if not match:
            return _json({"message": "Not Found"}, 404)
        if not match[1]:
            return self._paged(_screens(), query)
        if match[2]:  # of a screen that we know nothing of, none
            return self._paged(_omero_plates(int(match[1])), query)
        screen = next((screen for screen in _screens() if screen["@id"] == int(match[1])), None)
        return _json({"data": screen}) if screen else _json({"message": f"Screen {match[1]} not found"}, 404)

    def _paged(self, rows: list[dict[str, Any]], query: dict[str, str]) -> Answer:
        try:
            limit = min(int(query.get("limit", 200)), self.largest_page)
            offset = int(query.get("offset", 0))
        except ValueError as error:
            return _json({"message": str(error)}, 400)
        meta = {"totalCount": len(rows), "maxLimit": self.largest_page, "limit": limit, "offset": offset}
        answer = _json({"data": rows[offset : offset + limit], "meta": meta})
        answer.headers["X-OMERO-ApiVersion"] = "0.2"
        return answer

    def _table(self, screen: int, query: dict[str, str]) -> Answer:
        if screen not in _SCREENS or not query.get("query"):
            return _json({"error": f"Could not retrieve bulk annotations table of Screen {screen}"}, 404)
        columns, rows = _bulk_annotations(screen)
        first, limit = int(query.get("offset", 0)), int(query["limit"]) if "limit" in query else None
        types = {"Plate": "PlateColumn", "Well": "WellColumn"}
        data = {
            "column_types": [types.get(column, "StringColumn") for column in columns],
            "columns": columns,
            "rows": rows[first:][:limit],
        }
        meta = {"rowCount": len(rows), "totalCount": len(rows), "limit": limit, "offset": first}
        facts = {"owner": "Public data", "addedBy": "Public data", "parentType": "Screen", "parentId": screen}
        return _json({"data": data, "meta": meta, "id": 15_000_000 + screen, "annId": 8_000_000 + screen, **facts})


@functools.cache
def _screens() -> list[dict[str, Any]]:
    """All screens of the IDR, in the order of their ids."""
    with (DATA / "idr_metadata" / "studies.tsv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["Container"].startswith("screen")]
    return [
        {
            "@id": number,
            "Name": f"{row['Study']}/{row['Container']}",
            "@type": f"{_SCHEMA}#Screen",
            "url:screen": f"/api/v0/m/screens/{number}/",
            "url:plates": f"/api/v0/m/screens/{number}/plates/",
            "omero:details": {"owner": {"@id": 2, "UserName": "demo"}},
        }
        for number, row in sorted((int(row["Internal ID"]), row) for row in rows)
    ]


def _plate_ids(screen: int) -> dict[str, int]:
    names = _plates(_SCREENS[screen].study, _SCREENS[screen].name) if screen in _SCREENS else ()
    return {name: screen * 1000 + i for i, name in enumerate(names)}


def _omero_plates(screen: int) -> list[dict[str, Any]]:
    return [
        {
            "@id": number,
            "Name": name,
            "Rows": _SCREENS[screen].rows,
            "Columns": _SCREENS[screen].columns,
            "RowNamingConvention": "letter",
            "ColumnNamingConvention": "number",
            "@type": f"{_SCHEMA}#Plate",
            "url:plate": f"/api/v0/m/plates/{number}/",
            "url:wells": f"/api/v0/m/plates/{number}/wells/",
        }
        for name, number in _plate_ids(screen).items()
    ]


def annotations(screen: int) -> list[dict[str, str]]:
    """The annotation of every well: the table that the study publishes, or for idr0036 the two that it is made of."""
    study, name = _SCREENS[screen].study, _SCREENS[screen].name
    place = f"{_REPOSITORIES[study]}/{name}/{study}-{name}"
    tree = archive_tree()
    if study == "idr0036":
        processed = {row["Compound Broad Identifier"]: row for row in _tsv(tree[f"{place}-processed.txt"])}
        nothing = dict.fromkeys(next(iter(processed.values())), "")
        rows = _tsv(tree[f"{place}-library.txt"])
        return [row | processed.get(row["Compound Broad Identifier"], nothing) | row for row in rows]
    if study == "idr0093":
        return list(csv.DictReader(io.StringIO(gzip.decompress(content(tree[f"{place}-annotation.csv.gz"])).decode())))
    return list(csv.DictReader(io.StringIO(content(tree[f"{place}-annotation.csv"]).decode("utf-8-sig"), newline="")))


def _tsv(source: Source) -> list[dict[str, str]]:
    text = io.StringIO(content(source).decode("utf-8-sig"), newline="")
    return list(csv.DictReader(text, delimiter="\t"))


@functools.cache
def _bulk_annotations(screen: int) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows; plates and wells are ids, and their names stand last, those of wells in lower case."""
    table, plates = annotations(screen), _plate_ids(screen)
    columns = list(table[0])
    rows = []
    for i, row in enumerate(table):
        ids = {"Plate": plates[row["Plate"]], "Well": screen * 100_000 + i}
        rows.append([*(ids.get(column, row[column]) for column in columns), row["Plate"], row["Well"].lower()])
    return [*columns, "Plate Name", "Well Name"], rows


# ---- BioStudies -----------------------------------------------------------------------------------------------------

_FOLDERS = {  # of each study in the public tree
    "S-BIADTEST": "S-BIAD/TEST/S-BIADTEST",
    "S-BSSTTEST": "S-BSST/TEST/S-BSSTTEST",
    "S-BIAD9001": "S-BIAD/001/S-BIAD9001",
}
_FIRE = "/biostudies/fire/"


class _BioStudies:
    """Page-tabs, facts about studies, and file lists; the files themselves lie in the tree."""

    def __init__(self, url: str, form: str) -> None:
        self.url, self.form = url, form

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer | None:
        if match := re.fullmatch(r"/biostudies/api/v1/studies/([^/]+)(/info)?", path):
            if match[1] not in _FOLDERS:
                return _json({"errorMessage": "Study not found"}, 404)
            return _json(self._info(match[1])) if match[2] else self._study(match[1])
        if match := re.fullmatch(r"/biostudies/files/([^/]+)/(.+)", path):
            return self._file(match[1], match[2])
        return None

    def _study(self, accession: str) -> Answer:
        folder = f"{self.url}{_FIRE}{_FOLDERS[accession]}/"
        if self.form == "redirect":
            return Answer(302, headers={"Location": f"{folder}{accession}.json"})
        if self.form == "link":
            return _json({"ftpHttp_link": folder})
        return Answer(200, content(archive_tree()[f"{_FIRE}{_FOLDERS[accession]}/{accession}.json"]))

    def _info(self, accession: str) -> dict[str, Any]:
        folder = _FOLDERS[accession]
        text = (DATA / "idr_metadata" / "bia_examples" / "S-BIADTEST_INFO.json").read_text()
        text = text.replace("https://ftp.ebi.ac.uk", self.url).replace(_FOLDERS["S-BIADTEST"], folder)
        files = sum(path.startswith(f"{_FIRE}{folder}/Files/") for path in archive_tree())
        facts: dict[str, Any] = json.loads(text)
        return facts | ({} if accession == "S-BIADTEST" else {"files": files})

    def _file(self, accession: str, name: str) -> Answer:
        place = f"{_FIRE}{_FOLDERS.get(accession, accession)}/Files/{name}"
        if place not in archive_tree():
            return _json({"errorMessage": "File not found"}, 404)
        if name.endswith(".json"):
            return Answer(200, content(archive_tree()[place]), {"Content-Type": "application/json"})
        return Answer(302, headers={"Location": f"{self.url}{quote(place)}"})


def _biostudies_files() -> Iterator[tuple[str, Source]]:
    examples = DATA / "idr_metadata" / "bia_examples"
    folder = {accession: f"{_FIRE}{path}" for accession, path in _FOLDERS.items()}
    yield f"{folder['S-BIADTEST']}/S-BIADTEST.json", examples / "S-BIADTEST.json"
    yield f"{folder['S-BSSTTEST']}/S-BSSTTEST.json", examples / "S-BSSTTEST_files_direct.json"
    for path in sorted(examples.glob("file_list_*.json")):
        yield f"{folder['S-BIADTEST']}/Files/{path.name}", path
    image = DATA / "ome_zarr_fixtures" / "bia" / "im06.png"  # of the size that the list says
    yield f"{folder['S-BIADTEST']}/Files/study_component2/im06.png", image
    yield from _own_study(folder["S-BIAD9001"])


def _own_study(folder: str) -> Iterator[tuple[str, Source]]:
    there = DATA / "hcs_layouts" / "ImageXpress_exported" / "9987_Plate_3435" / "TimePoint_1"
    images = sorted(there.glob("*.TIF"))[:6]
    yield f"{folder}/S-BIAD9001.json", json.dumps(_PAGE_TAB, indent=1).encode()
    yield f"{folder}/Files/plate images.json", json.dumps([_listed(path) for path in images], indent=1).encode()
    for path in images:
        yield f"{folder}/Files/{_listed(path)['path']}", path


def _listed(path: Path) -> dict[str, Any]:
    """One entry of the file list."""
    _, well, site, wave = path.stem.split("_")
    values = {"Well": well, "Site": site[1:], "Channel": wave[1:], "Treatment": None}
    attributes = _attributes(values | {"Treatment": {"B02": "DMSO"}.get(well)})
    size = path.stat().st_size
    return {"path": f"plate [1]/{path.name}", "size": size, "attributes": attributes, "type": "file"}


def _attributes(values: Mapping[str, str | None]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _section(kind: str, accession: str, values: Mapping[str, str | None], *below: object) -> dict[str, Any]:
    section = {"type": kind, "accno": accession, "attributes": _attributes(values)}
    return section | ({"subsections": list(below)} if below else {})


_LICENCE = {
    "name": "License",
    "value": "CC0",
    "valqual": [{"name": "URL", "value": "https://creativecommons.org/publicdomain/zero/1.0/legalcode"}],
}
_STUDY = _section(
    "Study",
    "s-S-BIAD9001",
    {"Title": "Two wells of a plate at two sites", "Description": "Made for tests.", "Acknowledgements": None},
    _section("author", "a1", {"Name": "A. Author", "ORCID": None}),
    [  # a table of several is a list in the list
        _section("Biosample", "Biosample-1", {"Title": "Cells", "Biological entity": "cell line"}),
        _section("Organism", "Organism-1", {"Scientific name": "Homo sapiens", "Common name": "human"}),
    ],
    _section(
        "Study Component",
        "Study Component-1",
        {"Name": "Plate 9987", "Description": None, "File List": "plate images.json"},
        [_section("Associations", "Associations-1", {"Biosample": "Cells", "Image acquisition": "ImageXpress"})],
    ),
)
_PAGE_TAB = {
    "accno": "S-BIAD9001",
    "attributes": _attributes({"Template": "BioImages.v4", "ReleaseDate": "2025-02-07", "AttachTo": "BioImages"}),
    "section": _STUDY | {"attributes": [*_STUDY["attributes"], _LICENCE], "links": {}},
    "type": "submission",
}

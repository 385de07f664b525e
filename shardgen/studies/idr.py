"""Screens of the Image Data Resource: what all of them share.

    GitHub   <study>/screenX/idrNNNN-screenX-plates.tsv      plates and their paths on IDR's server
             <study>/screenX/idrNNNN-screenX-annotation.csv  labels (or library.txt + processed.txt, or OMERO's table)
             <study>/idrNNNN-study.txt                       licence, citation
    files    pub/databases/IDR/<study>/<transfer>/...        the images, in the microscope's own layout

Facts: IDR/idr-metadata README.md and IDR/idr-utils (pyidr/study_parser.py, screenio.py).
"""

import posixpath
import reprlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from bie_stream.errors import SourceError, SourceMissing, nearest
from bie_stream.shards import Channel
from shardgen.archive import Archive, Layout, natural
from shardgen.files import Files, fetch, fetch_json
from shardgen.labels import Table, join, labels_of, parse_table
from shardgen.request import Request
from shardgen.sources.markup import for_people

_SERVER = ("/uod/idr/filesets/", "/idr/filesets/")
_PLATES_AT_ONCE = 8
_MOST_PAGES = 500  # of the screens of IDR, which has a few hundred: a server could go on for ever


@dataclass(frozen=True)
class Screen:
    """One screen.

    Attributes:
        name: as OMERO has it, `idr0036-gustafsdottir-cellpainting/screenA`.
        repository: on GitHub, `owner/name`.
        folder: of the study in that repository; "" for a study with a repository of its own.
        channels: names, in the order of the layout's channels.
        read: the layout of one plate, from (files, path that plates.tsv gives, plate, metadata files).
    """

    name: str
    repository: str
    folder: str
    channels: tuple[str, ...]
    read: Callable[[Files, str, str, Files], Layout]

    @property
    def accession(self) -> str:
        return self.name.split("-")[0]

    @property
    def stem(self) -> str:
        """Path of the screen's tables, without their last word."""
        screen = self.name.split("/")[1]
        return posixpath.join(self.folder, screen, f"{self.accession}-{screen}-")


def find(screen: Screen, request: Request) -> Archive:
    """The fields of the plates that are selected, with their labels."""
    metadata = request.files(f"{request.endpoints.idr_metadata}/{screen.repository}/HEAD")
    images = request.files(request.endpoints.idr_files)
    plates = _chosen(plate_paths(metadata.read(f"{screen.stem}plates.tsv"), screen.name), request.selection.plates)
    about = study_facts(metadata.read(posixpath.join(screen.folder, f"{screen.accession}-study.txt")))

    def read(plate: str) -> Layout:
        try:
            return screen.read(images, plates[plate], plate, metadata)
        except UnicodeDecodeError as error:
            raise SourceError(f"{plates[plate]} of plate {plate} is not in UTF-8: {error}") from error
        except SourceMissing as error:
            raise SourceMissing(f"plate {plate}: {error}; name those to build with --plates") from error

    with ThreadPoolExecutor(_PLATES_AT_ONCE) as pool:
        layouts = list(tqdm(pool.map(read, plates), total=len(plates), unit="plate", desc="plates", disable=None))
    fields = tuple(field for layout in layouts for field in layout.fields)
    channels = _channels(layouts, plates, screen)
    table = label_table(screen, metadata, request)
    return Archive(
        files=images,
        study=screen.name,
        source=f"{images.root}/{screen.name.split('/')[0]}",
        channels=channels,
        fields=fields,
        format=layouts[0].format,
        labels=labels_of(table, ((field.plate, field.well) for field in fields), complete=False),
        licence=about.get("Study License"),
        citation=citation(about),
        pixel_size_um=layouts[0].pixel_size_um,
    )


def plate_paths(table: bytes, where: str) -> dict[str, str]:
    """Path of each plate. The columns are (name, path) in some studies and (path, name) in others: a path has a `/`.

    Raises:
        SourceError: a line is not a plate and its path, or there is none.
    """
    found = {}
    for line in table.decode("utf-8-sig", "replace").splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        if not line.strip():
            continue
        paths = [cell for cell in cells if "/" in cell]
        if len(cells) != 2 or len(paths) != 1:
            raise SourceError(f"plates.tsv of {where}: {line!r} is not a plate and its path")
        (name,) = (cell for cell in cells if cell not in paths)
        if not for_people(name) or "\ufffd" in line:
            raise SourceError(f"plates.tsv of {where}: {line!r} is not a plate and its path, in UTF-8")
        found[name] = paths[0]
    if not found:
        raise SourceError(f"plates.tsv of {where} names no plate")
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def study_facts(text: bytes) -> dict[str, str]:
    """The first value of each key of `study.txt`, up to its first screen."""
    facts: dict[str, str] = {}
    for line in text.decode("utf-8-sig", "replace").splitlines():
        key, _, values = line.partition("\t")
        if key.startswith(("#", '"#')) or not values.strip():
            continue
        facts.setdefault(key.strip(), values.split("\t")[0].strip())
    return facts


def citation(facts: Mapping[str, str]) -> str | None:
    """Title and DOI, of the publication or else of the data."""
    title = facts.get("Study Publication Title") or facts.get("Study Title")
    return " ".join(part for part in (title, facts.get("Study DOI") or facts.get("Study Data DOI")) if part) or None


def on_server(path: str) -> str:
    """A path on IDR's own server → the path below `pub/databases/IDR`."""
    for prefix in _SERVER:
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    raise SourceError(f"{path!r} is not on IDR's server; expected it to start with {_SERVER[0]}")


def label_table(screen: Screen, metadata: Files, request: Request) -> Table:
    """The annotation of the screen, or its library joined with what was found, or OMERO's table.

    Raises:
        SourceError: none of them is there.
    """
    for name in ("annotation.csv", "annotation.csv.gz"):
        if table := _table(metadata, f"{screen.stem}{name}"):
            return table
    if library := _table(metadata, f"{screen.stem}library.txt"):
        processed = _table(metadata, f"{screen.stem}processed.txt")
        return join(library, processed) if processed else library
    return omero_table(screen.name, request)


def _table(metadata: Files, path: str) -> Table | None:
    try:
        return parse_table(metadata.read(path), path)
    except SourceMissing:
        return None


def omero_table(screen: str, request: Request) -> Table:
    """The bulk annotation table of a screen, from IDR's web gateway. Its `Plate` and `Well` are numbers of OMERO's;
    the names are in `Plate Name` and `Well Name`.

    Raises:
        SourceError: OMERO has no such screen, or no table of it.
    """
    base, transfer = request.endpoints.omero, request.transfer
    fetch(f"{base}/webclient/?experimenter=-1", transfer)  # gives the cookie of the public user
    ids = {str(item.get("Name")): item.get("@id") for item in _pages(f"{base}/api/v0/m/screens/", request)}
    if screen not in ids:
        raise SourceError(f"{base} has no screen {screen!r}; {nearest(screen, sorted(ids))}")
    url = f"{base}/webgateway/table/Screen/{ids[screen]}/query/?query=*"
    answer = fetch_json(url, request.transfer)
    data, meta = (part if isinstance(part := answer.get(name), dict) else {} for name in ("data", "meta"))
    columns, rows = data.get("columns"), data.get("rows")
    if not (isinstance(columns, list) and isinstance(rows, list)):
        said = str(answer.get("error", "nothing"))[:200]
        raise SourceError(f"{url} is not a table; expected data.columns and data.rows, the server says {said!r}")
    if meta.get("rowCount", len(rows)) != len(rows):
        raise SourceError(f"{url} gives {len(rows)} of {reprlib.repr(meta['rowCount'])} rows; the rest has no labels")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise SourceError(f"{url}: a row has not the {len(columns)} cells that its columns say")
    names = {"Plate Name": "Plate", "Well Name": "Well"}
    taken = [n for n, name in enumerate(columns) if name not in ("Plate", "Well")]
    header = tuple(names.get(name, name) for name in (str(columns[n]) for n in taken))
    return Table(url, header, tuple(tuple("" if row[n] is None else str(row[n]) for n in taken) for row in rows))


def _pages(url: str, request: Request, limit: int = 500) -> Iterable[dict[str, Any]]:
    offset = 0
    for _ in range(_MOST_PAGES):
        page = fetch_json(f"{url}?limit={limit}&offset={offset}", request.transfer)
        items, meta = page.get("data"), page.get("meta")
        if not (isinstance(items, list) and all(isinstance(item, dict) for item in items) and isinstance(meta, dict)):
            raise SourceError(f"{url} is no page of OMERO; expected data and meta")
        yield from items
        offset, total = offset + len(items), meta.get("totalCount")
        if not items or not isinstance(total, int) or offset >= total:
            return
    raise SourceError(f"{url} has more than {_MOST_PAGES} pages; can it be?")


def _chosen(plates: dict[str, str], wanted: tuple[str, ...] | None) -> dict[str, str]:
    for name in wanted or ():
        if name not in plates:
            raise SourceError(f"no plate {name!r}; {nearest(name, list(plates))}")
    return {name: path for name, path in plates.items() if wanted is None or name in wanted}


def _channels(layouts: Iterable[Layout], plates: Iterable[str], screen: Screen) -> tuple[Channel, ...]:
    """The study's names; where its plates have another number of channels than we know of, their own names."""
    first: Layout | None = None
    for plate, layout in zip(plates, layouts, strict=True):
        first = first or layout
        if len(layout.channels) != len(first.channels):
            raise SourceError(
                f"plate {plate} has {len(layout.channels)} channels, those before it {len(first.channels)}; "
                "build them apart, with --plates"
            )
    assert first is not None, "there is at least one plate"
    if len(first.channels) != len(screen.channels):
        return first.channels
    return tuple(Channel(name=name) for name in screen.channels)

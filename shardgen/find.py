"""A source on the command line → its archive.

idr0093                              a study (shardgen.studies)
S-BIAD1234                           an accession of the BioImage Archive (shardgen.sources.biostudies)
plate.zarr, https://…, s3://…        OME-Zarr, a vendor's layout, or TIFFs by pattern, whichever is there
"""

import dataclasses
import itertools
import posixpath
import re
from pathlib import Path
from typing import Any

from bie_stream.errors import SourceError, SourceMissing, nearest
from shardgen.archive import Archive, Layout, some
from shardgen.files import Files
from shardgen.labels import labels_of, parse_table
from shardgen.masks import find_masks
from shardgen.objects import read_objects
from shardgen.request import Request
from shardgen.select import select
from shardgen.sources import biostudies, cellvoyager, columbus, imagexpress, ome_tiff, ome_zarr, tiff_folder
from shardgen.studies import STUDIES

_LAYOUTS = {"CellVoyager": cellvoyager, "Columbus": columbus, "ImageXpress": imagexpress}
_ACCESSION = re.compile(r"S-(BIAD|BSST)\d+", re.IGNORECASE)


def find(source: str, request: Request) -> Archive:
    """The selected fields of a source, with labels.

    Raises:
        SourceError: nothing is there that can be built, or it is not what was asked for.
    """
    if source in STUDIES:
        if request.pattern or request.labels or request.plate:
            raise SourceError(f"study {source!r} brings its own --pattern, --labels and --plate")
        archive = STUDIES[source].find(request)
    elif _ACCESSION.fullmatch(source):
        archive = _submission(source.upper(), request)
    else:
        archive = _place(source, request)
    said: dict[str, Any] = {
        "study": request.study,
        "licence": request.licence,
        "citation": request.citation,
        "pixel_size_um": request.pixel_size_um,
    }
    archive = dataclasses.replace(archive, **{name: value for name, value in said.items() if value is not None})
    archive = select(archive, request.selection)
    _require_utf_8(archive)
    return _with_objects(archive, request)


def _with_objects(archive: Archive, request: Request) -> Archive:
    """The archive with what samples are to be cut around."""
    if request.objects is not None:
        table = read_objects(_local(request.objects, "--objects"), str(request.objects), archive.fields)
        archive = dataclasses.replace(archive, objects=table)
    if request.masks is not None:
        archive = dataclasses.replace(archive, masks=find_masks(request.masks, archive, request.files))
    return archive


def _require_utf_8(archive: Archive) -> None:
    """Tables and messages are in UTF-8, names of files and folders perhaps not.

    Raises:
        SourceError: such a name is in the archive.
    """
    paths = (plane.path for field in archive.fields for planes in field.planes for plane in planes)
    plates = {field.plate for field in archive.fields}
    said = (archive.study, archive.source, archive.licence, archive.citation, *(c.name for c in archive.channels))
    for name in itertools.chain(filter(None, said), plates, paths):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"the name {name!r} is not in UTF-8; rename it") from error


def _place(source: str, request: Request) -> Archive:
    if "://" not in source and not (source and Path(source).is_dir()):
        raise SourceError(_not_there(source))
    files = request.files(source)
    name = posixpath.basename(files.root.rstrip("/"))
    layout = _layout(files, name, request)
    archive = Archive(
        files=files,
        study=name,
        source=source,
        channels=layout.channels,
        fields=layout.fields,
        format=layout.format,
        pixel_size_um=layout.pixel_size_um,
    )
    return _labelled(archive, request)


def _not_there(source: str) -> str:
    """What to do about a source that is nowhere."""
    if Path(source).is_file():
        return f"{source} is a file; give the folder that it lies in, and a --pattern for the names in it"
    screens = [name for name in STUDIES if source and name[:-1] == source.lower()]
    if screens:
        said = "; ".join(f"{name} ({STUDIES[name].title})" for name in screens)
        return f"study {source!r} has {len(screens)} screens, and each is built for itself: {said}"
    return f"{source!r} is neither a folder nor a URL nor a study nor an accession; {nearest(source, list(STUDIES))}"


def _submission(accession: str, request: Request) -> Archive:
    found = biostudies.read(accession, request)
    if not request.pattern:
        raise SourceError(
            f"{accession} has {len(found.sizes)} files: {some(list(found.sizes))}; give a --pattern that says what "
            "their names mean, as in '{plate}/{well}_s{field}_w{channel}.tif'"
        )
    named = tiff_folder.find(found.files, request.pattern, listed=found.sizes, plate=request.plate or accession)
    layout = ome_tiff.expand(found.files, named)
    archive = Archive(
        files=found.files,
        study=accession,
        source=found.files.root,
        channels=layout.channels,
        fields=layout.fields,
        licence=found.licence,
        citation=f"{found.title}. BioImage Archive, {accession}",
    )
    return _labelled(archive, request)


def _labelled(archive: Archive, request: Request) -> Archive:
    if request.labels is None:
        return archive
    table = parse_table(_local(request.labels, "--labels"), str(request.labels))
    return dataclasses.replace(archive, labels=labels_of(table, ((f.plate, f.well) for f in archive.fields)))


def _layout(files: Files, name: str, request: Request) -> Layout:
    plate = request.plate or re.sub(r"(\.ome)?\.zarr$", "", name)
    if request.pattern:
        return ome_tiff.expand(files, tiff_folder.find(files, request.pattern, plate=plate))
    if _is_zarr(files):
        return ome_zarr.find(files, "", request.plate)
    names = files.list()
    for known in _LAYOUTS.values():
        if known.there(names):
            return known.find(files, "", plate)
    folders = [name for name in names if name.endswith("/")]
    raise SourceError(
        f"{files.root} is neither OME-Zarr nor {', '.join(_LAYOUTS)}; for a folder of TIFFs give --pattern, "
        "as in '{plate}/{well}_s{field}_w{channel}.tif'"
        + f"; is it one of the folders in it: {some(folders)}?"
        * bool(folders)
    )


def _is_zarr(files: Files) -> bool:
    """By its metadata, not by a listing: an object store has none."""
    for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"):
        try:
            files.size(name)
        except SourceMissing:
            continue
        return True
    return False


def _local(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SourceError(f"{option} {path} is not there") from error
    except OSError as error:
        raise SourceError(f"{option} {path} cannot be read: {error.strerror}") from error

"""No byte of an archive or a dataset is trusted: whatever is cut off, overwritten or invented in one gives pixels or
one of our own errors, in seconds, in bounded memory, and writes nothing outside the output folder.

    seeds      real files, and small ones that tifffile and zarr write, cut to 64 x 64 pixels
    mutated    truncated, bits flipped, runs overwritten, slices doubled; numbers and names swapped for hostile ones;
               nodes of JSON for another type
    hostile    made by hand, where no mutation comes by chance: circles, bombs, entities, checksums that are right
    held       around each example: an alarm, a limit of memory, and only BieStreamError passes

The examples are always the same; FUZZ_EXAMPLES=2000 tries more of them.
"""

import bz2
import contextlib
import copy
import faulthandler
import functools
import gzip
import io
import json
import logging
import lzma
import os
import pickle
import re
import resource
import signal
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from archive_server import DATA, ArchiveServer
from command_line import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import GzipCodec, ZstdCodec

import bie_stream
from bie_stream import codecs
from bie_stream.errors import BieStreamError, SampleError, SourceError
from bie_stream.shards import read_manifest
from shardgen.archive import Archive, Field, Layout
from shardgen.build import build
from shardgen.endpoints import Endpoints
from shardgen.files import Files, Transfer, open_files, walk
from shardgen.find import find
from shardgen.labels import labels_of, parse_table
from shardgen.objects import read_objects
from shardgen.pixels import probe, read_field
from shardgen.plan import Options, make_plan
from shardgen.request import Request
from shardgen.sources import biostudies, cellvoyager, columbus, imagexpress, ome_tiff, ome_zarr, screen, tiff_folder
from shardgen.sources.markup import parse_xml
from shardgen.studies import idr, idr0036
from shardgen.verify import verify

ESCAPED = Path(tempfile.gettempdir()) / "escaped"  # an absolute path that could really be written to

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
GIB = 2**30
PATIENCE_S = 5  # of one example; most take milliseconds
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,  # the alarm of `held` is one that also ends what hangs
    derandomize=EXAMPLES == 50,
    database=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a failing example
real = pytest.mark.skipif(not DATA.is_dir(), reason="the archives' real files are not beside this checkout")

NUMBERS = [b"-1", b"0", b"2147483648", b"9" * 30, b"9" * 5000, b"1e999", b"NaN", b"-0.0", b"\xc2\xb2", b"\xd9\xa3", b""]
NAMES = [
    "../../../escaped", "/escaped", "a/../../escaped", "..\\escaped", "C:\\escaped", "a\0b", "\ud800", "x" * 300, "²",
    "~", "", ".", "..", "a//b", "file:///etc/passwd", "http://[", "<x>", "%2e%2e%2fescaped", "\n", "é" * 200,
    "\x1b[2J", "\x9b31m", "\u202e", "9" * 5000, "x_" * 20_000,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "..", "\ud800", [], {}, [[]], [None],
    {"a": {}},
]  # fmt: skip


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Who believes a claim of gigabytes gets a MemoryError, and the machine stays well."""
    if sys.platform != "linux":
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + 4 * GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Hangs(BaseException):
    """No Exception: nothing that guards against the faults of a library may take it for one."""


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Around what may end well or with an error of ours, and in time."""
    said, believed = "something", False

    def ring(signum: int, frame: FrameType | None) -> None:
        raise Hangs(f"more than {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE_S)
    faulthandler.dump_traceback_later(10 * PATIENCE_S, exit=True)  # for a loop in C, which no handler interrupts
    try:
        with bounded(), np.errstate(all="ignore"):
            yield
    except BieStreamError as error:
        said, believed = str(error), any(isinstance(cause, MemoryError) for cause in causes(error))
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    assert said
    assert not believed, "a claim of gigabytes was believed"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


# ---- mutations ------------------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn, data: bytes, text: bool = False) -> bytes:
    """The data with one to three faults."""
    kinds = [_truncate, _flip, _overwrite, _double, *([_number, _name] * 2 if text else [])]
    for _ in range(draw(st.integers(1, 3))):
        data = draw(st.sampled_from(kinds))(draw, data)
    return data


def _at(draw: st.DrawFn, data: bytes) -> int:
    """A place; often near the start, where headers are."""
    return draw(st.integers(0, max(0, len(data) - 1)) | st.integers(0, min(400, max(0, len(data) - 1))))


def _truncate(draw: st.DrawFn, data: bytes) -> bytes:
    return data[: _at(draw, data)]


def _flip(draw: st.DrawFn, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :] if data else data


def _overwrite(draw: st.DrawFn, data: bytes) -> bytes:
    at, run = _at(draw, data), draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, bytes(8)]))
    return data[:at] + run + data[at + len(run) :]


def _double(draw: st.DrawFn, data: bytes) -> bytes:
    at = _at(draw, data)
    return data[:at] + data[at : at + draw(st.integers(1, 1000))] + data[at:]


def _number(draw: st.DrawFn, data: bytes) -> bytes:
    return _swap(draw, data, rb"\d+(\.\d+)?", draw(st.sampled_from(NUMBERS)))


def _name(draw: st.DrawFn, data: bytes) -> bytes:
    name = draw(st.sampled_from(NAMES)).encode("utf-8", "surrogatepass")
    return _swap(draw, data, rb"[^\s\"<>,=\t]+", name)


def _swap(draw: st.DrawFn, data: bytes, pattern: bytes, other: bytes) -> bytes:
    found = [match.span() for match in re.finditer(pattern, data)]
    if not found:
        return data
    first, last = draw(st.sampled_from(found))
    return data[:first] + other + data[last:]


@st.composite
def mutated_json(draw: st.DrawFn, data: bytes) -> bytes:
    """The document with nodes of another type, without one, or with its bytes mutated."""
    if draw(st.integers(0, 3)) == 0:
        return draw(mutated(data, text=True))
    document = json.loads(data)
    for _ in range(draw(st.integers(1, 2))):
        nodes = list(_nodes(document))
        if not nodes:
            break
        holder, key = draw(st.sampled_from(nodes))
        if draw(st.integers(0, 4)) == 0:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES) | st.sampled_from(NAMES)))
    return json.dumps(document).encode()


def _nodes(document: Any) -> Iterator[tuple[Any, Any]]:
    """Each node, as what holds it and its key."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else ())
    )
    for key, value in list(items):
        yield document, key
        yield from _nodes(value)


@st.composite
def with_one_mutated(draw: st.DrawFn, tree: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a folder, one of them mutated as its kind can be."""
    path = draw(st.sampled_from(sorted(tree)))
    name = path.rpartition("/")[2]
    if name in ("zarr.json", ".zattrs", ".zarray", ".zgroup") or name.endswith(".json"):
        return {**tree, path: draw(mutated_json(tree[path]))}
    text = name.lower().endswith((".xml", ".mlf", ".mrf", ".htd", ".csv", ".tsv", ".txt", ".idx"))
    return {**tree, path: draw(mutated(tree[path], text=text))}


# ---- folders and what is read of them -------------------------------------------------------------------------------


@contextlib.contextmanager
def folder_of(tree: Mapping[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        for path, data in tree.items():
            place = Path(root, "raw", path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        yield Path(root, "raw")


def tree_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def read_pixels(files: Files, layout: Layout, fields: int = 2) -> None:
    """As a build does, of the first fields."""
    archive = Archive(files, "study", "source", layout.channels, layout.fields, layout.format)
    dtype, shape = probe(archive)
    assert shape[0] * shape[1] <= 2**40
    for field in layout.fields[:fields]:
        read_field(archive, field, dtype, shape)


def plate_of(tree: Mapping[str, bytes], source: Callable[[Files, str, str], Layout]) -> None:
    """Finds the fields of such a folder, and reads the first."""
    with folder_of(tree) as root, held():
        files = open_files(root)
        read_pixels(files, source(files, "", "plate"))


@functools.cache
def pixels() -> np.ndarray:
    """[2, 64, 64] of a real image, or of noise."""
    image = DATA / "idr0036_hoechst/images/IXMtest_A02_s1_w1051DAA7C-7042-435F-99F0-1E847D9B42CB.tif"
    if image.exists():
        return np.ascontiguousarray(tifffile.imread(image)[:128, :64]).reshape(2, 64, 64)
    return np.random.default_rng(0).integers(0, 4000, (2, 64, 64), dtype=np.uint16)


@functools.cache
def tiffs() -> dict[str, bytes]:
    """One file for each way in which TIFFs are written."""

    def write(image: np.ndarray, **how: Any) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, photometric="minisblack", **how)
        return buffer.getvalue()

    one = pixels()[0]
    found = {
        "plain": write(one, metadata=None),
        "big endian": write(one, byteorder=">", metadata=None),
        "big": write(one, bigtiff=True, metadata=None),
        "deflated": write(one, compression="zlib", predictor=True, rowsperstrip=16, metadata=None),
        "tiled": write(one, compression="lzw", tile=(32, 32), metadata=None),
        "float": write(one.astype(np.float32), compression="zstd", metadata=None),
        "ome": write(pixels(), ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DNA", "Actin"]}}),
        "imagej": write(pixels(), imagej=True, metadata={"axes": "ZYX"}),
        "shaped": write(pixels()),
    }
    vendors = sorted((DATA / "hcs_layouts").rglob("*_D08_T0001F001L01A01Z01C01.tif"))
    return found | {path.name: path.read_bytes() for path in vendors[:1]}


def with_plates(kind: str, compressor: Any) -> dict[str, bytes]:
    """An OME-Zarr plate of one well of two channels."""
    with tempfile.TemporaryDirectory() as root:
        place = Path(root, "plate.zarr")
        version, ome = (2, "0.4") if kind == "2" else (3, "0.5")
        axes = [{"name": "c", "type": "channel"}] + [
            {"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"
        ]
        multiscale = {
            "version": ome,
            "axes": axes,
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.65, 0.65]}]}],
        }
        said: dict[str, dict[str, Any]] = {
            "": {"plate": {"version": ome, "name": "p", "rows": [{"name": "B"}], "columns": [{"name": "7"}],
                           "wells": [{"path": "B/7", "rowIndex": 0, "columnIndex": 0}]}},
            "B/7": {"well": {"version": ome, "images": [{"path": "0", "acquisition": 0}]}},
            "B/7/0": {"multiscales": [multiscale], "omero": {"channels": [{"label": "DNA"}, {"label": "Actin"}]}},
        }  # fmt: skip
        for path, about in said.items():
            attributes = about if version == 2 else {"ome": {"version": ome, **about}}
            zarr.create_group(place / path, zarr_format=version, attributes=attributes, overwrite=False)
        shards = {"shards": (1, 64, 64)} if kind == "sharded" else {}
        array = zarr.create_array(
            place / "B/7/0/0", shape=(2, 64, 64), dtype="uint16", chunks=(1, 32, 32), compressors=compressor,
            zarr_format=version, **shards,
        )  # fmt: skip
        array[:] = pixels()
        return tree_of(place)


@functools.cache
def zarrs() -> dict[str, dict[str, bytes]]:
    return {
        "v2 blosc": with_plates("2", "auto"),
        "v3 zstd": with_plates("3", ZstdCodec()),
        "v3 sharded": with_plates("sharded", GzipCodec()),
    }


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # tifffile says of each damaged file what it thinks of it
    yield
    logging.disable(logging.NOTSET)


# ---- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(tiffs()))
def test_a_damaged_tiff_gives_pixels_or_an_error_of_ours(kind: str) -> None:
    @fuzz
    @given(mutated(tiffs()[kind]))
    def holds(data: bytes) -> None:
        with folder_of({"A1.tif": data}) as root, held():
            files = open_files(root)
            read_pixels(files, ome_tiff.expand(files, tiff_folder.find(files, "{well}.tif", plate="p")))

    holds()


def in_a_circle(pages: int, back: int) -> bytes:
    """A TIFF whose last page names an earlier one as the next."""
    data = bytearray(tiffs()["plain"])
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        first = tif.pages.first.offset
    page = bytes(data[first : first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")])
    data += (page + bytes(4)) * (pages - 1)
    places = [first, *range(len(data) - (len(page) + 4) * (pages - 1), len(data), len(page) + 4)]
    for at, after in zip(places, [*places[1:], places[back]], strict=True):
        data[at + len(page) : at + len(page) + 4] = after.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(("pages", "back"), [(1, 0), (2, 0), (60, 30), (100, 0), (101, 0), (160, 120)])
def test_pages_in_a_circle_are_refused(pages: int, back: int) -> None:
    with folder_of({"A1.tif": in_a_circle(pages, back)}) as root, held():
        files = open_files(root)
        layout = tiff_folder.find(files, "{well}.tif", plate="p")
        with pytest.raises(SourceError, match="its pages lead back to an earlier one"):
            ome_tiff.expand(files, layout)
        with pytest.raises(SourceError, match="several pages"):
            read_pixels(files, layout)


DESCRIPTIONS = {
    "ome": '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels DimensionOrder="XYZCT" ID="Pixels:0" SizeC="2" SizeT="1" SizeX="64" SizeY="64" SizeZ="1" Type="uint16">'
    '<Channel ID="Channel:0:0" Name="DNA"/><Channel ID="Channel:0:1" Name="Actin"/><TiffData FirstC="0" IFD="0" '
    'PlaneCount="2"/></Pixels></Image></OME>',
    "imagej": "ImageJ=1.54f\nimages=2\nchannels=2\nslices=1\nframes=1\nhyperstack=true\nmode=grayscale\n",
    "shaped": '{"shape": [2, 64, 64], "axes": "CYX"}',
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_damaged_description_of_pages_gives_pixels_or_an_error_of_ours(kind: str) -> None:
    @fuzz
    @given(mutated(DESCRIPTIONS[kind].encode(), text=True))
    def holds(text: bytes) -> None:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as writer:
            for image in pixels():
                first = text if buffer.tell() < 1000 else None
                writer.write(image, photometric="minisblack", metadata=None, description=first)
        with folder_of({"A1.tif": buffer.getvalue()}) as root, held():
            files = open_files(root)
            read_pixels(files, ome_tiff.expand(files, tiff_folder.find(files, "{well}.tif", plate="p")))

    holds()


@pytest.mark.parametrize("kind", ["v2 blosc", "v3 zstd", "v3 sharded"])
def test_the_zarrs_that_are_damaged_below_are_sound(kind: str) -> None:
    with folder_of(zarrs()[kind]) as root:
        files = open_files(root)
        read_pixels(files, ome_zarr.find(files, ""))


@pytest.mark.parametrize("kind", ["v2 blosc", "v3 zstd", "v3 sharded"])
def test_a_damaged_zarr_gives_pixels_or_an_error_of_ours(kind: str) -> None:
    @fuzz
    @given(with_one_mutated(zarrs()[kind]))
    def holds(tree: dict[str, bytes]) -> None:
        plate_of(tree, ome_zarr.find)

    holds()


@real
@pytest.mark.parametrize("name", ["single-plane-hcs.zarr", "hcs.ome.zarr"])
def test_damaged_metadata_of_a_real_plate_give_a_layout_or_an_error_of_ours(name: str) -> None:
    (there,) = (DATA / "ome_zarr_fixtures").rglob(name)
    tree = tree_of(there)
    about = {path: data for path, data in tree.items() if path.rpartition("/")[2][:2] in (".z", "za")}

    @fuzz
    @given(with_one_mutated(about))
    def holds(mutant: dict[str, bytes]) -> None:
        with folder_of(mutant) as root, held():
            ome_zarr.find(open_files(root), "")

    holds()


# ---- what microscopes write beside them -----------------------------------------------------------------------------


@real
def test_damaged_records_of_a_cellvoyager_give_a_layout_or_an_error_of_ours() -> None:
    there = next((DATA / "hcs_layouts/CV8000").rglob("MeasurementData.mlf")).parent
    tree = {name: (there / name).read_bytes() for name in ("MeasurementData.mlf", "MeasurementDetail.mrf")}

    @fuzz
    @given(with_one_mutated(tree))
    def holds(mutant: dict[str, bytes]) -> None:
        plate_of(mutant, cellvoyager.find)

    holds()


COLUMBUS = """<?xml version="1.0" encoding="UTF-8" ?>
<EvaluationInputData xmlns="http://www.perkinelmer.com/Columbus" Version="1"><Images>{rows}</Images>\
</EvaluationInputData>
"""
COLUMBUS_ROW = """<Image Version="1"><id>001</id><State>Ok</State><URL BufferNo="0">{url}</URL>\
<Row>1</Row><Col>{column}</Col>\
<FieldID>1</FieldID><PlaneID>1</PlaneID><TimepointID>1</TimepointID><ChannelID>1</ChannelID>\
<ChannelName>Brightfield</ChannelName><ImageResolutionX Unit="m">6.45E-07</ImageResolutionX></Image>
"""
COLUMBUS_MEASUREMENT = """<?xml version="1.0" encoding="UTF-8" ?>
<ColumbusMeasurementIndex Version="1"><References><Reference Class="ImageIndex">{index}</Reference></References>\
</ColumbusMeasurementIndex>"""


def columbus_tree(url: str = "{column}.tif", index: str = "ImageIndex.ColumbusIDX.xml") -> dict[str, bytes]:
    rows = "".join(COLUMBUS_ROW.format(column=column, url=url.format(column=column)) for column in (1, 2))
    return {
        "MeasurementIndex.ColumbusIDX.xml": COLUMBUS_MEASUREMENT.format(index=index).encode(),
        "ImageIndex.ColumbusIDX.xml": COLUMBUS.format(rows=rows).encode(),
        "1.tif": tiffs()["plain"],
        "2.tif": tiffs()["plain"],
    }


@fuzz
@given(with_one_mutated(columbus_tree()))
def test_damaged_indexes_of_columbus_give_a_layout_or_an_error_of_ours(tree: dict[str, bytes]) -> None:
    plate_of(tree, columbus.find)


@real
def test_a_damaged_table_of_metaxpress_gives_a_layout_or_an_error_of_ours() -> None:
    there = DATA / "hcs_layouts/ImageXpress_exported/9987_Plate_3435/TimePoint_1"
    names = dict.fromkeys((path.name for path in there.glob("*.TIF")), tiffs()["plain"])

    @fuzz
    @given(mutated((there / "9987.HTD").read_bytes(), text=True))
    def holds(table: bytes) -> None:
        plate_of({**names, "9987.HTD": table}, imagexpress.find)

    holds()


@real
def test_a_damaged_file_of_patterns_gives_a_layout_or_an_error_of_ours() -> None:
    whole = (DATA / "idr_metadata/idr0036/screens/20585.screen").read_bytes()
    few = b"[Well ".join(whole.split(b"[Well ")[:4])
    path = "../screens/20585.screen"
    tree = {f"{idr0036.SCREEN.folder}/screens/20585.screen": few}

    @fuzz
    @given(mutated(few, text=True))
    def holds(data: bytes) -> None:
        with held():
            screen.parse(data.decode("latin-1"), "20585", path, "/uod/idr/filesets/")
        plates = f"20585\t{path}\n".encode()
        facts = b"Study License\tCC0 1.0\n"
        library = b"Plate,Well,Drug\n20585,A1,x\n"
        stem = idr0036.SCREEN.stem
        study = f"{idr0036.SCREEN.folder}/idr0036-study.txt"
        about = {**tree, f"{idr0036.SCREEN.folder}/screens/20585.screen": data, study: facts}
        mirror = {f"IDR/idr-metadata/HEAD/{path}": data for path, data in about.items()} | {
            f"IDR/idr-metadata/HEAD/{stem}plates.tsv": plates,
            f"IDR/idr-metadata/HEAD/{stem}annotation.csv": library,
        }
        with folder_of(mirror) as root, held():
            idr.find(idr0036.SCREEN, Request(endpoints=Endpoints(idr_metadata=str(root), idr_files=str(root))))

    holds()


# ---- tables and text ------------------------------------------------------------------------------------------------

TABLE = "Plate,Well,Drug,Dose,Share\n" + "".join(
    f'p,{row}{column:02},"drug {column}, pure",{column},"{column},5"\n' for row in "ABC" for column in range(1, 5)
)
WELLS = [("p", f"{row}{column}") for row in "ABC" for column in range(1, 5)]


@pytest.mark.parametrize("name", ["wells.csv", "wells.tsv", "wells.csv.gz"])
def test_a_damaged_table_of_labels_gives_labels_or_an_error_of_ours(name: str) -> None:
    text = (TABLE.replace(",", "\t") if "tsv" in name else TABLE).encode()
    packed = gzip.compress(text, mtime=0) if name.endswith(".gz") else text

    def damaged() -> st.SearchStrategy[bytes]:
        inside = mutated(text, text=True)
        return inside if packed is text else mutated(packed) | inside.map(gzip.compress)

    @fuzz
    @given(damaged(), st.booleans())
    def holds(data: bytes, complete: bool) -> None:
        with held():
            labels_of(parse_table(data, name), WELLS, complete)

    holds()


def test_a_table_of_very_many_columns_is_read_in_time() -> None:
    names = [f"label {n}" for n in range(50_000)]
    table = "\n".join([",".join(["well", *names]), ",".join(["A1", *["x"] * len(names)])])
    with held():
        labels = labels_of(parse_table(table.encode(), "wells.csv"), [("p", "A1")])
        assert set(labels["p", "A1"]) == set(names)


OBJECTS = "plate,well,field,z,object,y,x,kind\n" + "".join(
    f"p,A{column},{field},0,{number},{number * 7.5},{number}e1,cell {number}\n"
    for column in (1, 2) for field in (1, 2) for number in (1, 2, 3)
)  # fmt: skip


@functools.cache
def objects_in(name: str) -> bytes:
    if name.endswith(".csv"):
        return OBJECTS.encode()
    buffer = io.BytesIO()
    pq.write_table(pa.csv.read_csv(io.BytesIO(OBJECTS.encode())), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["objects.csv", "objects.parquet"])
def test_a_damaged_table_of_objects_gives_objects_or_an_error_of_ours(name: str) -> None:
    fields = [Field("p", f"A{column}", str(field), 0, 0, ()) for column in (1, 2) for field in (1, 2)]
    assert len(read_objects(objects_in(name), name, fields).by_field) == 4

    @fuzz
    @given(mutated(objects_in(name), text=name.endswith(".csv")))
    def holds(data: bytes) -> None:
        with held():
            read_objects(data, name, fields)

    holds()


@fuzz
@given(
    mutated(b"001\tidr0093/plates/001/001.wpi\n002\tidr0093/plates/002/002.wpi\n", text=True),
    mutated(
        "\ufeffStudy License\tCC BY 4.0\nStudy Title\tA \u00b5-study\nStudy DOI\thttps://doi.org/1\n".encode(),
        text=True,
    ),
)
def test_damaged_lists_of_plates_and_facts_of_a_study_give_either_or_an_error_of_ours(
    plates: bytes, facts: bytes
) -> None:
    with held():
        idr.plate_paths(plates, "idr0093")
    with held():
        idr.citation(idr.study_facts(facts))


@pytest.mark.parametrize("plates", [b"", b"\n\n", b"\t/a/b\n", b"\xff\t/a\n"])
def test_a_list_without_plates_is_refused(plates: bytes) -> None:
    with pytest.raises(SourceError, match=r"plates\.tsv of idr0093"):
        idr.plate_paths(plates, "idr0093")


# ---- servers --------------------------------------------------------------------------------------------------------

QUICK = Transfer(timeout_s=2.0, tries=2, pause_s=0.01, longest_pause_s=0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[ArchiveServer]:
    with ArchiveServer({}) as running:
        yield running


def bodies_of(accession: str, page: object, info: object, listed: object) -> dict[str, bytes]:
    """What a server of BioStudies answers, by path."""
    return {
        f"/api/v1/studies/{accession}": json.dumps(page).encode(),
        f"/api/v1/studies/{accession}/info": json.dumps(info).encode(),
        f"/files/{accession}/list.json": json.dumps(listed).encode(),
    }


PAGE = {
    "accno": "S-BIAD1",
    "attributes": [{"name": "Title", "value": "Two wells"}],
    "section": {
        "type": "Study",
        "attributes": [{"name": "License", "value": "CC0"}],
        "files": [{"path": "direct_A1.tif", "type": "file"}],
        "subsections": [[{"type": "Organism"}], {"attributes": [{"name": "File List", "value": "list.tsv"}]}],
    },
}
LIST = [{"path": f"plate [1]/{well}_w1.tif", "size": 1, "type": "file"} for well in ("A1", "B2")]


def test_damaged_page_tabs_and_file_lists_give_a_submission_or_an_error_of_ours(server: ArchiveServer) -> None:
    bodies = bodies_of("S-BIAD1", PAGE, {"httpLink": f"{server.url}/fire"}, LIST)
    named = {f"{path}.json": data for path, data in bodies.items()}

    @fuzz
    @given(with_one_mutated(named))
    def holds(mutant: dict[str, bytes]) -> None:
        server.tree = {path.removesuffix(".json"): data for path, data in mutant.items()}
        server.tree["/fire/Files/plate [1]/A1_w1.tif"] = tiffs()["plain"]
        with held():
            request = Request(
                pattern="{well}_w{channel}.tif", transfer=QUICK, endpoints=Endpoints(biostudies=server.url)
            )
            archive = find("S-BIAD1", request)
            assert "://" in archive.files.root, "no server leads to files on disk"
            make_plan(archive, Options(), *probe(archive))

    holds()


@pytest.mark.parametrize(
    "link", ["/etc", "file:///etc", "etc", "s3://bucket/x", "http://[", "http://a b/", "http://x:99999"]
)
def test_a_server_cannot_lead_to_files_on_disk_nor_to_no_server(server: ArchiveServer, link: str) -> None:
    server.tree = dict(bodies_of("S-BIAD1", PAGE, {"httpLink": link}, LIST))
    request = Request(pattern="{well}_w{channel}.tif", transfer=QUICK, endpoints=Endpoints(biostudies=server.url))
    with held(), pytest.raises(SourceError):
        biostudies.read("S-BIAD1", request).files.read("passwd")


@pytest.mark.parametrize("form", ["ftpHttp_link", "redirect"])
def test_links_that_are_no_addresses_are_errors_of_ours(server: ArchiveServer, form: str) -> None:
    for link in ("http://[", "file:///etc/passwd", "http://\0", "x" * 70000, "http://a..b/", "gopher://x"):
        server.tree = {"/api/v1/studies/S-BIAD1": json.dumps({form: link}).encode()}
        request = Request(transfer=QUICK, endpoints=Endpoints(biostudies=server.url))
        with held(), pytest.raises(SourceError):
            biostudies.read("S-BIAD1", request)


LISTING = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><head><title>Index of /x</title></head><body>
<table><tr><td><a href="/pub/">Parent Directory</a></td></tr><tr><td><a href="?C=N;O=D">Name</a></td></tr>
<tr><td><a href="A1_w1.tif">A1_w1.tif</a></td></tr><tr><td><a href="./B:2_w1.tif">B</a></td></tr>
<tr><td><a href="sub%20dir/">sub dir/</a></td></tr></table></body></html>"""


def test_a_damaged_listing_gives_names_in_its_folder_or_an_error_of_ours(server: ArchiveServer) -> None:
    files = open_files(f"{server.url}/top", QUICK)

    @fuzz
    @given(mutated(LISTING.encode(), text=True))
    def holds(page: bytes) -> None:
        server.tree = {"/top/": page}
        with held():
            for name in files.list():
                assert "/" not in name.rstrip("/")
                assert name.rstrip("/") not in ("", ".", "..")

    holds()


NAMED = "".join(
    f'<a href="{name}">x</a>' for name in ("p.HTD", "p_A01_s1_w1.TIF", "p_B02_s2_w1.TIF", "p_A01_s1_w2_z3_t4.TIF")
)


def test_whatever_names_a_server_lists_they_are_fields_or_an_error_of_ours(server: ArchiveServer) -> None:
    @fuzz
    @given(mutated(NAMED.encode(), text=True), st.sampled_from(["_s{field}_w{channel}", "_{*}_w{channel}_z{z}_t{t}"]))
    def holds(page: bytes, ending: str) -> None:
        server.tree = {"/top/": page, "/top/p.HTD": b'"WaveName1", "DAPI"'}
        files = open_files(f"{server.url}/top", QUICK)
        for find_in in (
            lambda: imagexpress.find(files, "", "p"),
            lambda: tiff_folder.find(files, f"{{plate}}_{{well}}{ending}.TIF"),
        ):
            with held():
                find_in()

    holds()


@pytest.mark.parametrize("page", ["<![foo", "<![x[", "<!x[", "<!--" * 1000, '<a href="&#xD800;">', '<a href="&#0;">'])
def test_markup_that_is_none_gives_names_or_an_error_of_ours(server: ArchiveServer, page: str) -> None:
    server.tree = {"/top/": page.encode()}
    with held():
        for name in open_files(f"{server.url}/top", QUICK).list():
            with contextlib.suppress(SourceError):
                open_files(f"{server.url}/top", QUICK).read(name)


def test_a_server_whose_folders_never_end_is_given_up(server: ArchiveServer) -> None:
    class Endless(dict[str, Any]):
        def __contains__(self, path: object) -> bool:
            return str(path).endswith("/")

        def __getitem__(self, path: str) -> bytes:
            return b'<a href="on/">on/</a>'

    server.tree = Endless()
    with held(), pytest.raises(SourceError):
        list(walk(open_files(f"{server.url}/top", QUICK)))


@pytest.mark.parametrize("loop", [".", "loop"])
def test_links_in_a_circle_end_with_an_error_of_ours(tmp_path: Path, loop: str) -> None:
    (tmp_path / "loop").symlink_to(loop)
    with held():
        list(walk(open_files(tmp_path)))
    with held():
        open_files(tmp_path).read("loop/x")


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_read_nothing_and_raise_errors_of_ours(tmp_path: Path, server: ArchiveServer, name: str) -> None:
    (tmp_path / "escaped").write_text("secret")
    (tmp_path / "a/b/root").mkdir(parents=True)
    for files in (open_files(tmp_path / "a/b/root"), open_files(f"{server.url}/top", QUICK)):
        for act in (files.read, files.size):
            with held(), pytest.raises(SourceError):
                act(name)


OMERO = {
    "columns": ["Plate", "Well", "Drug", "Plate Name", "Well Name"],
    "rows": [[1, 2, "x", "p", "a1"], [1, 3, None, "p", "a2"]],
}


def test_damaged_answers_of_omero_give_a_table_or_an_error_of_ours(server: ArchiveServer) -> None:
    screens = {"data": [{"@id": 7, "Name": "screen"}], "meta": {"totalCount": 1}}
    bodies = {
        "/api/v0/m/screens/.json": json.dumps(screens).encode(),
        "/webgateway/table/Screen/7/query/.json": json.dumps({"data": OMERO}).encode(),
    }

    @fuzz
    @given(with_one_mutated(bodies))
    def holds(mutant: dict[str, bytes]) -> None:
        server.tree = {"/webclient/": b"", **{path.removesuffix(".json"): data for path, data in mutant.items()}}
        with held():
            request = Request(transfer=QUICK, endpoints=Endpoints(omero=server.url))
            labels_of(idr.omero_table("screen", request), [("p", "A1")], complete=False)

    holds()


# ---- our own datasets -----------------------------------------------------------------------------------------------


@functools.cache
def dataset() -> dict[str, bytes]:
    """The files of a sound dataset of two shards, with labels."""
    tree = {f"{well}_w{channel}.tif": tiffs()["plain"] for well in ("A1", "A2", "B1", "B2") for channel in (1, 2)}
    with folder_of(tree) as root:
        labels = root.parent / "wells.csv"
        labels.write_text("well,drug,dose\nA1,dmso,0\nA2,taxol,1\nB1,dmso,0\nB2,,3\n")
        archive = find(str(root), Request(pattern="{well}_w{channel}.tif", labels=labels))
        build(make_plan(archive, Options(shard_bytes=40_000), *probe(archive)), root.parent / "out", workers=1)
        return tree_of(root.parent / "out")


def read_dataset(root: Path) -> None:
    with held():
        list(verify(root))
    with held():
        found = bie_stream.open(root, split="train", channels=["2", "1"])
        assert len(found.channels) == len(found.statistics)
        for sample in range(len(found)):
            with contextlib.suppress(SampleError):
                assert found[sample].shape == (2, 64, 64) or found.form(sample).shape != (2, 64, 64)


@fuzz
@given(with_one_mutated(dataset()))
def test_a_damaged_dataset_gives_samples_faults_or_an_error_of_ours(tree: dict[str, bytes]) -> None:
    with folder_of(tree) as root:
        read_dataset(root)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> bytes:
    """A member of a tar whose checksum is right, of whatever size it claims."""
    info = tarfile.TarInfo(name)
    info.type = kind
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    head[124:136] = (size % 2**96).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return bytes(head[:512]) + data + bytes(-len(data) % 512)


def extended(key: str, value: str, next_member: bytes) -> bytes:
    """A member with an extended header (pax) that says one thing more of it."""
    rest = f" {key}={value}\n".encode()
    size = next(n for n in range(len(rest), 10_000) if n == len(str(n)) + len(rest))
    return member("pax", size, tarfile.XHDTYPE, str(size).encode() + rest) + next_member


TARS = {
    "a size that leads back": member("a") + member("b", -512),
    "a size that leads back behind another": member("a") + extended("GNU.sparse.size", "7", member("b", -1536)),
    "a size that leads back, of a header": member("a") + member("b", -512, tarfile.XHDTYPE) + member("c"),
    "a size of 2^63": member("a", 2**63) + member("b"),
    "a size of 2^80": member("a", 2**80) + member("b"),
    "a size of 30 digits": extended("size", "9" * 30, member("a")),
    "a size of 5000 digits": extended("size", "9" * 5000, member("a")),
    "a map of holes that is none": extended("GNU.sparse.map", "a,b,c", member("a")),
    "holes without end": extended("GNU.sparse.major", "1", extended("GNU.sparse.minor", "0", member("a"))),
    "headers of headers": member("a", 0, tarfile.XHDTYPE) * 3000 + member("b"),
    "names of names": member("a", 0, tarfile.GNUTYPE_LONGNAME) * 3000 + member("b"),
    "a name that is not UTF-8": member("\udcff"),
    "names that lead elsewhere": member("../../escaped") + member(str(ESCAPED)) + member("a\\..\\escaped"),
    "links and devices": b"".join(member(kind.decode(), 0, kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6")),
}


@pytest.mark.parametrize("kind", TARS)
def test_a_hostile_tar_is_a_fault_and_writes_nothing(kind: str) -> None:
    path = "shards/000000.tar"
    tree = {**dataset(), path: TARS[kind].ljust(len(dataset()[path]), b"\0")}
    with folder_of(tree) as root, held():
        before = snapshot(root.parent)
        assert "000000.tar" in "".join(verify(root))
        assert snapshot(root.parent) == before


@fuzz
@given(mutated_json(dataset()["dataset.json"]))
def test_a_damaged_manifest_gives_samples_faults_or_an_error_of_ours(manifest: bytes) -> None:
    with folder_of({**dataset(), "dataset.json": manifest}) as root:
        read_dataset(root)


OTHER_COLUMNS = [
    pa.nulls(2), pa.array([None, 1], pa.int64()), pa.array([-1, 2**62]), pa.array([2**63 - 1, -(2**63)]),
    pa.array(["x", "y"]), pa.array([1.5, float("nan")]), pa.array([b"x", b"\xff"]), pa.array([[1, 2], [3]]),
    pa.array([{"a": 1}, None]),
    pa.array([[2**31 - 1] * 3, [-1, 0, 1]], pa.list_(pa.int32(), 3)),
    pa.array([None, [2, 64, 64]], pa.list_(pa.int32(), 3)), pa.array([[2, 64, None]] * 2, pa.list_(pa.int32(), 3)),
]  # fmt: skip


@fuzz
@given(st.data())
def test_a_table_of_other_columns_gives_samples_faults_or_an_error_of_ours(data: st.DataObject) -> None:
    path = "shards/000000.parquet"
    table = pq.read_table(io.BytesIO(dataset()[path]))
    for name in data.draw(st.lists(st.sampled_from(table.column_names), min_size=1, max_size=2, unique=True)):
        column = data.draw(st.sampled_from([None, *OTHER_COLUMNS]))
        at = table.schema.get_field_index(name)
        table = table.remove_column(at) if column is None else table.set_column(at, name, column)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with folder_of({**dataset(), path: buffer.getvalue()}) as root:
        read_dataset(root)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_a_damaged_payload_gives_pixels_or_an_error_of_ours(codec: codecs.Codec) -> None:
    payload = codecs.encode(pixels(), codec)

    @fuzz
    @given(mutated(payload), st.booleans())
    def holds(data: bytes, told: bool) -> None:
        with held():
            codecs.decode(memoryview(data), codec, codecs.Form((2, 64, 64), "uint16") if told else None)

    holds()


# ---- nothing is written elsewhere -----------------------------------------------------------------------------------


def snapshot(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


HOSTILE_PLACES = [
    "../../../escaped", str(ESCAPED), "a/../../escaped", "..\\..\\escaped", "a\\b", "x y", "..", "a\nb",
    "\x1b[31m\x07", "\x9b31m",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PLACES)
@pytest.mark.parametrize(
    "where", ["plate", "url", "index", "mlf", "zarr name", "zarr path", "label", "channel", "wave"]
)
def test_a_build_writes_only_into_its_folder_whatever_names_an_archive_has(
    tmp_path: Path, where: str, name: str
) -> None:
    raw, out = tmp_path / "deep/er/raw", tmp_path / "deep/er/out"
    tree: dict[str, bytes] = {"A1_w1.tif": tiffs()["plain"]}
    pattern, plate, labels = "{well}_w{channel}.tif", None, None
    if where == "plate":
        plate = name
    elif where in ("url", "index"):
        tree, pattern = columbus_tree(**{where: name}), ""
    elif where == "mlf":
        tree = {**tree, "MeasurementData.mlf": MLF.format(name=name).encode()}
        pattern = ""
    elif where.startswith("zarr"):
        tree, pattern = dict(zarrs()["v2 blosc"]), ""
        path, old = (".zattrs", '"p"') if where == "zarr name" else ("B/7/.zattrs", '"0"')
        assert old in tree[path].decode()
        tree[path] = tree[path].decode().replace(old, json.dumps(name)).encode()
    elif where == "wave":
        tree = {"p_A01_w1.TIF": tiffs()["plain"], "p.HTD": f'"WaveName1", "{name}"\n'.encode("latin-1")}
        pattern = ""
    elif where == "label":
        labels = tmp_path / "wells.csv"
        labels.write_text(f'well,"{name}",b\nA1,x,"{name}"\n', newline="")
    else:
        tree = {f"A1_w{name}.tif".replace("/", "-"): tiffs()["plain"]}
    for path, data in tree.items():
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(data)
    before = snapshot(tmp_path), ESCAPED.exists()
    with held():
        archive = find(str(raw), Request(pattern=pattern, plate=plate, labels=labels))
        build(make_plan(archive, Options(), *probe(archive)), out, workers=1, max_rejects=0)
        assert list(verify(out)) == []
        assert len(bie_stream.open(out)[0]) == len(read_manifest(out).channels)
    added = snapshot(tmp_path) - before[0]
    assert all(path.startswith("deep/er/out") for path in added), added
    assert ESCAPED.exists() == before[1]


@pytest.mark.parametrize("where", ["folder", "plate", "channel", "experiment"])
def test_names_that_are_not_utf_8_are_refused_before_anything_is_read(tmp_path: Path, where: str) -> None:
    names = dict.fromkeys(("folder", "plate", "channel", "experiment"), "x") | {
        where: "\udcff"
    }  # as Linux may have them
    raw = tmp_path / names["folder"]
    tree = {f"{names['plate']}/A1_w{names['channel']}.tif": tiffs()["plain"]}
    request = Request(pattern="{plate}/{well}_w{channel}.tif")
    if where == "experiment":
        tree, request = {"\udcff_A01_s1_w1.tif": tiffs()["plain"], "x.HTD": b""}, Request()
    for path, data in tree.items():
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(data)
    with held(), pytest.raises(SourceError, match=r"the name '.*\\udcff.*' is not in UTF-8; rename it"):
        find(str(raw), request)


MLF = """<?xml version="1.0" encoding="utf-8"?>
<bts:MeasurementData xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0" bts:Version="1.0">
<bts:MeasurementRecord bts:Type="IMG" bts:Row="4" bts:Column="8" bts:FieldIndex="1" bts:TimePoint="1" bts:ZIndex="1" \
bts:Ch="1">{name}</bts:MeasurementRecord></bts:MeasurementData>"""


# ---- XML without entities -------------------------------------------------------------------------------------------

LAUGHS = '<!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
ENTITIES = {
    "a billion laughs": f"{LAUGHS}]><x>&a11;</x>",
    "a file": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    "a parameter": '<!DOCTYPE x [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><x/>',
    "a DTD elsewhere": '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><x/>',
}


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp037"]
)
@pytest.mark.parametrize("kind", ENTITIES)
def test_no_entity_of_xml_is_read_in_whatever_encoding(kind: str, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    with held(), pytest.raises(SourceError):
        parse_xml(f"{head}{ENTITIES[kind]}".encode(encoding), "index.xml")


# ---- nothing is unpickled -------------------------------------------------------------------------------------------


def trap(path: Path) -> bytes:
    """A pickle that makes a folder there."""

    class Made:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(path),)

    return pickle.dumps(Made())


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """Where a folder is made by who unpickles; there must be none in the end."""
    with pytest.raises(FileExistsError):
        pickle.loads(trap(tmp_path))  # the trap works
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "codec", [{"id": "pickle", "protocol": 5}, {"id": "json2"}, {"id": "msgpack2"}, {"id": "vlen-utf8"}]
)
@pytest.mark.parametrize("dtype", ["|O", "<u2"])
def test_a_zarr_of_objects_is_not_unpickled(tmp_path: Path, sprung: Path, codec: dict[str, Any], dtype: str) -> None:
    about = {
        "zarr_format": 2, "shape": [8, 8], "chunks": [8, 8], "dtype": dtype, "compressor": None, "fill_value": None,
        "order": "C", "filters": [codec],
    }  # fmt: skip
    for place in ("filters", "compressor"):
        changed = about | ({"filters": [codec]} if place == "filters" else {"filters": None, "compressor": codec})
        tree = {".zarray": json.dumps(changed).encode(), "0.0": trap(sprung)}
        with folder_of(tree) as root, held(), pytest.raises(SourceError):
            ome_zarr.find(open_files(root), "")


def test_an_npy_of_objects_is_not_unpickled(sprung: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1, 1, 1)})
    for expected in (None, codecs.Form((1, 1, 1), "uint16")):
        with held(), pytest.raises(SampleError):
            codecs.decode(memoryview(buffer.getvalue() + trap(sprung)), "npy", expected)


def test_a_table_with_pickled_metadata_is_not_unpickled(tmp_path: Path, sprung: Path) -> None:
    path = "shards/000000.parquet"
    table = pq.read_table(io.BytesIO(dataset()[path]))
    for key in ("ARROW:extension:metadata", "PARQUET:pickle"):
        metadata = {"ARROW:extension:name": b"arrow.py_extension_type", key: trap(sprung)}
        at = table.schema.get_field_index("drug")
        field = table.schema.field("drug").with_metadata(metadata)
        buffer = io.BytesIO()
        other = table.set_column(at, field, table["drug"])
        pq.write_table(other.replace_schema_metadata({"pandas": trap(sprung), "bie_stream": trap(sprung)}), buffer)
        with folder_of({**dataset(), path: buffer.getvalue()}) as root:
            read_dataset(root)


# ---- bombs ----------------------------------------------------------------------------------------------------------

IN_BOUNDS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
from pathlib import Path
from bie_stream.errors import SourceError
from shardgen.archive import Archive
from shardgen.files import open_files
from shardgen.labels import parse_table
from shardgen.pixels import probe, read_field
from shardgen.sources import ome_tiff, ome_zarr, tiff_folder
root = Path(sys.argv[1])
try:
    if (table := root / "wells.csv.gz").exists():
        parse_table(table.read_bytes(), table.name)
    else:
        files = open_files(root)
        if (root / "A1.tif").exists():
            layout = ome_tiff.expand(files, tiff_folder.find(files, "{well}.tif", plate="p"))
        else:
            layout = ome_zarr.find(files, "")
        archive = Archive(files, "s", "s", layout.channels, layout.fields, layout.format)
        dtype, shape = probe(archive)
        pixels = read_field(archive, layout.fields[0], dtype, shape)
        print("read", pixels.shape)
except SourceError as error:
    print("SourceError", error)
# Its own: getrusage would count what the process that started it had before.
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print("peak", int(status["VmHWM"].split()[0]) // 1024)
"""


def tiff_with(changes: Mapping[int, int], data: bytes | None = None, kind: str = "one strip") -> bytes:
    """A compressed TIFF with these tags overwritten; `data`: its only strip, at the end."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels()[0], compression="zlib", rowsperstrip=64, metadata=None)
    whole = bytearray(buffer.getvalue() if kind == "one strip" else tiffs()[kind])
    with tifffile.TiffFile(io.BytesIO(whole)) as tif:
        tags = {tag.code: tag for tag in tif.pages[0].tags}
        if data is not None:
            changes = {**changes, 273: len(whole), 279: len(data)}
        for code, value in changes.items():
            at = tags[code].valueoffset
            size = 4 if tags[code].dtype == 4 else 2
            if value >= 2 ** (8 * size):
                whole[at - 6 : at - 4], size = (4).to_bytes(2, "little"), 4
            whole[at : at + size] = value.to_bytes(size, "little")
    return bytes(whole) + (data or b"")


def ome_of(times: int) -> bytes:
    """An OME-TIFF of two pages that claims to have been imaged so often."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for number, image in enumerate(pixels()):
            text = None if number else DESCRIPTIONS["ome"].replace('SizeT="1"', f'SizeT="{times}"')
            writer.write(image, photometric="minisblack", metadata=None, description=text)
    return buffer.getvalue()


def zarr_2(compressor: dict[str, Any], chunk: bytes, shape: int = 64, chunks: int = 64) -> dict[str, bytes]:
    about = {
        "zarr_format": 2, "shape": [shape, shape], "chunks": [chunks, chunks], "dtype": "<u2", "compressor": compressor,
        "fill_value": 0, "order": "C", "filters": None,
    }  # fmt: skip
    return {".zarray": json.dumps(about).encode(), "0.0": chunk}


def deflated(wbits: int, size: int = 8 * GIB) -> bytes:
    """Zeros that need a thousandth of their size; the checksum is wrong, but nobody should come so far."""
    packer = zlib.compressobj(9, wbits=wbits)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // 2**24) + packer.flush()


def zstd_bomb(size: int) -> bytes:
    """A frame that says its size, of blocks that repeat one byte (RFC 8878)."""
    block = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (1 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    count = size // 2**17
    head = 0xFD2FB528.to_bytes(4, "little") + bytes([0xC0, 0x58]) + (count * 2**17 + 1).to_bytes(8, "little")
    return head + block * count + last


def zarr_3(codec: dict[str, Any], chunk: bytes, **changes: Any) -> dict[str, bytes]:
    about = {
        "zarr_format": 3, "node_type": "array", "shape": [64, 64], "data_type": "uint16", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64, 64]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, codec],
    }  # fmt: skip
    return {"zarr.json": json.dumps(about | changes).encode(), "c/0/0": chunk}


def blosc_bomb() -> bytes:
    """A chunk of 2 GiB, one value repeated."""
    return bytes(numcodecs.Blosc("lz4", 1, shuffle=0).encode(np.zeros(2**31 - 2**20, np.uint8)))


BOMBS: dict[str, Callable[[], dict[str, bytes]]] = {
    "a TIFF that claims 2^31 x 2^31 pixels": lambda: {"A1.tif": tiff_with({256: 2**31, 257: 2**31})},
    "a TIFF that claims a strip of 4 GiB": lambda: {"A1.tif": tiff_with({279: 2**32 - 1})},
    "a TIFF that claims 2^31 rows of a strip": lambda: {"A1.tif": tiff_with({278: 2**32 - 1, 257: 2**31})},
    "a TIFF that claims tiles of 2^31 x 32 pixels": lambda: {"A1.tif": tiff_with({322: 2**31 - 16}, kind="tiled")},
    "an OME-TIFF that claims 10^9 planes": lambda: {"A1.tif": ome_of(10**9)},
    "a deflated TIFF of 8 GiB": lambda: {"A1.tif": tiff_with({}, deflated(15))},
    "a table of 8 GiB": lambda: {"wells.csv.gz": deflated(31)},
    "zarr 2, gzip, 8 GiB": lambda: zarr_2({"id": "gzip", "level": 1}, deflated(31)),
    "zarr 2, zlib, 8 GiB": lambda: zarr_2({"id": "zlib", "level": 1}, deflated(15)),
    "zarr 2, zstd, 64 GiB": lambda: zarr_2({"id": "zstd", "level": 1}, zstd_bomb(64 * GIB)),
    "zarr 2, zstd, 4 GiB": lambda: zarr_2({"id": "zstd", "level": 1}, zstd_bomb(4 * GIB)),
    "zarr 2, bz2, 4 GiB": lambda: zarr_2({"id": "bz2", "level": 1}, bz2_bomb()),
    "zarr 2, lzma, 4 GiB": lambda: zarr_2({"id": "lzma"}, lzma_bomb()),
    "zarr 2, lz4, 2 GiB": lambda: zarr_2({"id": "lz4"}, (2**31 - 1).to_bytes(4, "little") + bytes(100)),
    "zarr 2, blosc, 2 GiB": lambda: zarr_2({"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 1}, blosc_bomb()),
    "zarr 2, chunks of 2^30 x 2^30": lambda: zarr_2({"id": "zlib", "level": 1}, b"", chunks=2**30),
    "zarr 2, shape of 2^39 x 2^39": lambda: zarr_2({"id": "zlib", "level": 1}, b"", shape=2**39),
    "zarr 3, gzip, 8 GiB": lambda: zarr_3({"name": "gzip", "configuration": {"level": 1}}, deflated(31)),
    "zarr 3, zstd, 4 GiB": lambda: zarr_3({"name": "zstd", "configuration": {"level": 1}}, zstd_bomb(4 * GIB)),
    "zarr 3, blosc, 2 GiB": lambda: zarr_3(
        {
            "name": "blosc",
            "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
        },
        blosc_bomb(),
    ),
    "zarr 3, chunks of 2^30 x 2^30": lambda: zarr_3(
        {"name": "gzip", "configuration": {"level": 1}}, b"",
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": [2**30, 2**30]}},
    ),
}  # fmt: skip


def bz2_bomb() -> bytes:
    return bz2.compress(bytes(2**22)) * 1024


def lzma_bomb() -> bytes:
    return lzma.compress(bytes(2**22)) * 1024


@pytest.mark.parametrize("kind", BOMBS)
def test_what_unpacks_to_gigabytes_is_refused_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    for path, data in BOMBS[kind]().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    done = command("-c", IN_BOUNDS, tmp_path, env={"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    said, peak = done.stdout.splitlines()[0], int(done.stdout.split()[-1])
    assert said.startswith("SourceError"), said
    bound = 2300 if "table" in kind else 1200  # MiB; a plane or table may take 1 GiB, a table grows as it is unpacked
    assert peak < bound, f"{peak} MiB"

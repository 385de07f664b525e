import contextlib
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from command_line import ROOT

from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Archive, Field, Layout, Plane
from shardgen.files import Files, Http, Transfer, open_files
from shardgen.pixels import probe, read_field
from shardgen.sources import ome_zarr
from shardgen.sources.ome_zarr import find, there

DATA = ROOT.parent / "shared" / "data"
FIXTURES = DATA / "ome_zarr_fixtures"
TIFFS = DATA / "hcs_layouts" / "ImageXpress_exported" / "9987_Plate_3434" / "TimePoint_1"
real = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"real OME-Zarr is not in {FIXTURES}")

Array = np.ndarray[Any, Any]
Serve = Callable[[Path], str]
TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


class Server(SimpleHTTPRequestHandler):
    """Files and ranges of them; no listing, as of an object store."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Range", "")))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, match = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match:
            last = min(int(match[2] or len(data)), len(data) - 1)
            part = data[int(match[1]) : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {match[1]}-{last}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> list[tuple[str, str]]:
    """What the server was asked for: path and range."""
    return []


@pytest.fixture
def serve(asked: list[tuple[str, str]]) -> Iterator[Serve]:
    """Puts a folder on a server and gives its address."""
    servers = []

    def start(folder: Path) -> str:
        handler = type("Handler", (Server,), {"asked": asked})
        server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *request: handler(*request, directory=str(folder)))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _forget() -> None:
    """Tests change arrays in place, which no archive does while it is read."""
    ome_zarr.open_zarr.cache_clear()


def remote(address: str) -> Http:
    return Http(address, Transfer(tries=1))


def put(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def put_group(group: Path, about: dict[str, Any], version: str = "0.4") -> None:
    """A group with OME metadata, where this version has it."""
    if version == "0.5":
        attributes = {"ome": {"version": "0.5", **about}}
        put(group / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
    else:
        put(group / ".zgroup", {"zarr_format": 2})
        put(group / ".zattrs", about)


def put_array(folder: Path, pixels: Array, version: str = "0.4", **how: Any) -> None:
    how = {"chunks": (*(1 for _ in pixels.shape[:-2]), *pixels.shape[-2:]), **how}
    if version != "0.5" and "chunk_key_encoding" not in how:
        how["chunk_key_encoding"] = {"name": "v2", "separator": "." if version == "0.1" else "/"}
    kind = 3 if version == "0.5" else 2
    array = zarr.create_array(str(folder), shape=pixels.shape, dtype=pixels.dtype, zarr_format=kind, **how)
    array[...] = pixels


def multiscale(axes: str, version: str = "0.4", unit: str | None = None, scale: float = 1.0) -> dict[str, Any]:
    """One of `multiscales`, as this version describes it."""
    about: dict[str, Any] = {"datasets": [{"path": "0"}, {"path": "1"}]}
    if version != "0.5":
        about["version"] = version
    if version == "0.3":
        about["axes"] = list(axes)
    if version in ("0.4", "0.5"):
        units = {"unit": unit} if unit else {}
        about["axes"] = [{"name": a, "type": TYPES[a], **(units if a in "zyx" else {})} for a in axes]
        scales = [scale if a in "yx" else 1.0 for a in axes]
        about["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": scales}]
    return about


def put_image(
    group: Path, pixels: Array, axes: str, version: str = "0.4", labels: list[str] | None = None,
    unit: str | None = None, scale: float = 1.0, **how: Any,
) -> None:  # fmt: skip
    about: dict[str, Any] = {"multiscales": [multiscale(axes, version, unit, scale)]}
    if labels:
        about["omero"] = {"channels": [{"label": label} for label in labels]}
    put_group(group, about, version)
    put_array(group / "0", pixels, version, **how)


def put_plate(root: Path, wells: list[dict[str, Any]], version: str = "0.4", **more: Any) -> None:
    described = {"wells": wells, "rows": [{"name": "A"}], "columns": [{"name": "1"}], **more}
    put_group(root, {"plate": described if version == "0.5" else {**described, "version": version}}, version)


def put_well(well: Path, images: list[str], version: str = "0.4") -> None:
    put_group(well, {"well": {"images": [{"path": path} for path in images]}}, version)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 2**16, shape, dtype="uint16")


def small_plate(root: Path, wells: int = 2, version: str = "0.4", **how: Any) -> Path:
    """Wells A/1, A/2, … of two fields (c, y, x)."""
    names = [f"A/{column}" for column in range(1, wells + 1)]
    put_plate(root, [{"path": name} for name in names], version, name="small")
    for number, name in enumerate(names):
        put_well(root / name, ["0", "1"], version)
        for field in (0, 1):
            put_image(root / name / str(field), random(2, 4, 6, seed=10 * number + field), "cyx", version, **how)
    return root


def pixels_of(files: Files, layout: Layout, field: Field) -> Array:
    archive = Archive(files, "study", "source", layout.channels, layout.fields, layout.format)
    return read_field(archive, field, *probe(archive))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Edits the OME metadata of a group."""
    file = path / "zarr.json" if (path / "zarr.json").exists() else path / ".zattrs"
    document = json.loads(file.read_text())
    edit(document["attributes"]["ome"] if file.name == "zarr.json" else document)
    file.write_text(json.dumps(document))


# ---------------------------------------------------------------------------------------------- real archives


@real
def test_a_real_imagexpress_plate_is_read_as_zarr_reads_it() -> None:
    root = FIXTURES / "mobie" / "single-plane-hcs.zarr"
    files = open_files(root)
    layout = find(files, "")
    assert [channel.name for channel in layout.channels] == ["c0", "c1", "c2"]  # two have the same label
    assert (layout.format, layout.pixel_size_um) == ("zarr", pytest.approx(2.7336))
    assert [(f.plate, f.well, f.field, f.z, f.t) for f in layout.fields] == [
        ("md-single-plane", "E7", "1", 0, 0),
        ("md-single-plane", "E8", "1", 0, 0),
    ]
    assert layout.fields[0].planes == tuple((Plane("E/07/0/0", (c,)),) for c in range(3))
    expected = np.asarray(zarr.open_array(str(root / "E" / "07" / "0" / "0"), mode="r"))
    assert expected.shape == (3, 256, 512)
    np.testing.assert_array_equal(pixels_of(files, layout, layout.fields[0]), expected)


@real
def test_a_well_of_a_real_plate_that_is_not_there_is_left_out(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(FIXTURES / "mobie" / "single-plane-hcs.zarr", tmp_path / "plate.zarr")
    shutil.rmtree(root / "E" / "08")
    for files in (open_files(root), remote(serve(root))):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "shardgen"):
            assert [field.well for field in find(files, "").fields] == ["E7"]
        assert caplog.messages == ["1 of 2 wells that the plate lists are not there: E8"]
    shutil.rmtree(root / "E" / "07")
    with pytest.raises(SourceError, match="lists 2 wells, none is there: E8, E7"):
        find(open_files(root), "")


@real
def test_a_real_plate_of_bioformats2raw_is_read_over_http_as_on_disk(serve: Serve) -> None:
    folder = FIXTURES / "bia"
    local, web = open_files(folder), remote(serve(folder))
    layout = find(web, "hcs.ome.zarr")
    assert layout == find(local, "hcs.ome.zarr")
    assert layout.pixel_size_um == 1.0
    assert [channel.name for channel in layout.channels] == ["Name"]
    assert [(f.plate, f.well, f.field) for f in layout.fields] == [
        ("Plate Name 0", well, field) for well in ("A1", "A2", "B1", "B2") for field in ("1", "2")
    ]
    for field in layout.fields:
        ((plane,),) = field.planes
        expected = np.asarray(zarr.open_array(str(folder / plane.path), mode="r")).reshape(1, 64, 64)
        np.testing.assert_array_equal(pixels_of(web, layout, field), expected)
        np.testing.assert_array_equal(pixels_of(local, layout, field), expected)


@real
def test_a_real_series_of_bioformats2raw_is_in_well_a1() -> None:
    root = FIXTURES / "bia" / "im06.ome.zarr"
    layout = find(open_files(root), "")
    assert [channel.name for channel in layout.channels] == ["Channel 0", "Channel 1", "Channel 2"]
    (field,) = layout.fields
    assert (field.plate, field.well, field.field) == ("im06", "A1", "1")
    expected = np.asarray(zarr.open_array(str(root / "0" / "0"), mode="r"))[0, :, 0]
    np.testing.assert_array_equal(pixels_of(open_files(root), layout, field), expected)


@real
@pytest.mark.filterwarnings("ignore:Found an empty list of filters")  # zarr's own reading of it
@pytest.mark.parametrize(
    ("path", "axis", "count"),
    [("mobie/mri-stack.ome.zarr", "z", 27), ("mobie/skimage-2dt-zarr/image.ome.zarr", "t", 10)],
)
def test_real_images_have_a_field_for_every_z_and_t(path: str, axis: str, count: int) -> None:
    files = open_files(FIXTURES)
    layout = find(files, path)
    assert [getattr(field, axis) for field in layout.fields] == list(range(count))
    assert layout.pixel_size_um is None  # its unit is "pixel"
    expected = np.asarray(zarr.open_array(str(FIXTURES / path / "s0"), mode="r"))
    for number in (0, count - 1):
        np.testing.assert_array_equal(pixels_of(files, layout, layout.fields[number]), expected[number : number + 1])


@real
def test_a_real_image_of_one_plane_is_one_field() -> None:
    files = open_files(FIXTURES / "mobie/minimal-mobie-project/data/blobs/images")
    layout = find(files, "blobs.ome.zarr")
    assert layout.fields == (Field("blobs", "A1", "1", 0, 0, ((Plane("blobs.ome.zarr/s0"),),)),)
    assert pixels_of(files, layout, layout.fields[0]).shape == (1, 254, 256)


# ------------------------------------------------------------------------- real pixels in every version


@pytest.mark.skipif(not TIFFS.is_dir(), reason=f"real TIFFs are not in {TIFFS}")
@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3", "0.4", "0.5"])
def test_real_pixels_come_back_from_every_version(tmp_path: Path, version: str, serve: Serve) -> None:
    axes = {"0.1": "tczyx", "0.2": "tczyx", "0.3": "zcyx"}.get(version, "czyx")
    root = tmp_path / f"real-{version}.ome.zarr"
    expected: dict[tuple[str, str, int], Array] = {}
    put_plate(root, [{"path": f"B/0{column}"} for column in (2, 3)], version)
    for column in (2, 3):
        put_well(root / f"B/0{column}", ["0", "1"], version)
        for site in (1, 2):
            names = [[TIFFS / f"ZStep_{z}/9987_B0{column}_s{site}_w{w}.TIF" for z in range(3)] for w in (1, 2, 3)]
            czyx = np.stack([np.stack([tifffile.imread(name) for name in zs]) for zs in names])
            how: dict[str, Any] = {}
            if version == "0.5" and (column, site) == (2, 1):
                how = {"chunks": (1, 1, 64, 64), "shards": (1, 3, 256, 256)}
            pixels = {"tczyx": czyx[None], "zcyx": czyx.swapaxes(0, 1), "czyx": czyx}[axes]
            pixels = pixels.astype(">u2") if version in ("0.2", "0.4") else pixels
            labels = ["w1", "w2", "w3"]
            place = root / f"B/0{column}" / str(site - 1)
            put_image(place, pixels, axes, version, labels, unit="nanometer", scale=650.0, **how)
            for z in range(3):
                expected[f"B{column}", str(site), z] = czyx[:, z]
    for files in (open_files(root), remote(serve(tmp_path) + "/" + root.name)):
        layout = find(files, "")
        assert [channel.name for channel in layout.channels] == ["w1", "w2", "w3"]
        assert {field.plate for field in layout.fields} == {f"real-{version}"}
        assert layout.pixel_size_um == (pytest.approx(0.65) if version in ("0.4", "0.5") else None)
        assert [(f.well, f.field, f.z) for f in layout.fields] == list(expected)
        for field in layout.fields:
            found = pixels_of(files, layout, field)
            np.testing.assert_array_equal(found, expected[field.well, field.field, field.z])


def test_a_plane_of_a_shard_is_read_over_http_without_the_rest(
    tmp_path: Path, serve: Serve, asked: list[tuple[str, str]]
) -> None:
    pixels = random(8, 64, 64)
    put_image(tmp_path, pixels, "cyx", "0.5", chunks=(1, 32, 32), shards=(8, 64, 64), compressors=None)
    files = remote(serve(tmp_path))
    layout = find(files, "")
    one = Layout(layout.channels[:1], (Field("p", "A1", "1", 0, 0, layout.fields[0].planes[3:4]),), "zarr")
    np.testing.assert_array_equal(pixels_of(files, one, one.fields[0]), pixels[3:4])
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d*)", part) for path, part in asked if path.endswith("/c/0/0/0")]
    assert len(ranges) == 5  # the index and four chunks
    end = (tmp_path / "0/c/0/0/0").stat().st_size
    assert sum(int(part[2] or end) - int(part[1]) for part in ranges if part) < pixels.nbytes / 4


# --------------------------------------------------------------------------------------------- what is walked


def test_nothing_is_listed_and_no_array_but_the_first_is_looked_at(
    tmp_path: Path, serve: Serve, asked: list[tuple[str, str]]
) -> None:
    small_plate(tmp_path, wells=3)
    find(remote(serve(tmp_path)), "")
    images = [f"/A/{well}/{field}/.zattrs" for well in (1, 2, 3) for field in (0, 1)]
    wells = [f"/A/{well}/.zattrs" for well in (1, 2, 3)]
    assert sorted(path for path, _ in asked) == sorted(["/.zattrs", *wells, *images, "/A/1/0/0/.zarray"])


def test_only_the_wells_asked_for_are_read(tmp_path: Path, serve: Serve, asked: list[tuple[str, str]]) -> None:
    small_plate(tmp_path, wells=3)
    layout = find(remote(serve(tmp_path)), "", wells=frozenset({"A2", "H12"}))
    assert {field.well for field in layout.fields} == {"A2"}
    assert all(path == "/.zattrs" or path.startswith("/A/2/") for path, _ in asked)
    with pytest.raises(SourceError, match="has none of wells B1; it has A1, A2, A3"):
        find(open_files(tmp_path), "", wells=frozenset({"B1"}))


def test_the_plate_is_named_by_argument_then_metadata_then_folder(tmp_path: Path) -> None:
    root = small_plate(tmp_path / "x.ome.zarr")
    files = open_files(tmp_path)
    assert find(files, "x.ome.zarr", "mine").fields[0].plate == "mine"
    assert find(files, "x.ome.zarr").fields[0].plate == "small"
    change(root, lambda about: about["plate"].pop("name"))
    assert find(files, "x.ome.zarr/").fields[0].plate == "x"
    assert find(open_files(root), "").fields[0].plate == "x"


@pytest.mark.parametrize(
    ("listed", "well"),
    [
        ({"path": "A/1"}, "A1"),  # version 0.1 has no indices
        ({"path": "b/03", "rowIndex": 1, "columnIndex": 2}, "B3"),
        ({"path": "C/5", "rowIndex": 0, "columnIndex": 0}, "C5"),  # of rows [C] and columns [5], as written by Fractal
        ({"path": "AF/48", "rowIndex": 31, "columnIndex": 47}, "AF48"),
        ({"path": "row 1/x", "rowIndex": 26, "columnIndex": 0}, "AA1"),
    ],
)
def test_a_well_is_named_by_its_path_else_by_its_indices(tmp_path: Path, listed: dict[str, Any], well: str) -> None:
    put_plate(tmp_path, [listed])
    put_well(tmp_path / listed["path"], ["0"])
    put_image(tmp_path / listed["path"] / "0", random(4, 6), "yx")
    assert [field.well for field in find(open_files(tmp_path), "").fields] == [well]


def test_wells_may_have_fewer_fields_and_fields_that_are_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_plate(tmp_path)
    change(root, lambda about: about["plate"].update(field_count=2))  # the most that a well has
    change(root / "A/1", lambda about: about["well"]["images"].pop())
    shutil.rmtree(root / "A/2/0")
    assert [(field.well, field.field) for field in find(open_files(root), "").fields] == [("A1", "1"), ("A2", "2")]
    assert caplog.messages == ["1 of 3 images that are listed are not there"]


def test_the_shape_comes_from_the_first_image_whose_array_is_there(tmp_path: Path) -> None:
    root = small_plate(tmp_path)
    shutil.rmtree(root / "A/1/0/0")
    layout = find(open_files(root), "")
    assert len(layout.fields) == 4
    with pytest.raises(SourceMissing, match="A/1/0/0 is no Zarr array"):
        pixels_of(open_files(root), layout, layout.fields[0])
    for image in root.glob("A/*/*/0"):
        shutil.rmtree(image)
    ome_zarr.open_zarr.cache_clear()
    with pytest.raises(SourceError, match="A/1/0/0 and the arrays after it are not there"):
        find(open_files(root), "")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [True, False])
def test_images_of_a_series_are_fields_in_order(tmp_path: Path, version: str, listed: bool) -> None:
    root = tmp_path / "s.zarr"
    names = ["a", "z/b", "c"] if listed else [str(number) for number in range(12)]
    put_group(root, {"bioformats2raw.layout": 3}, version)
    if listed:
        put_group(root / "OME", {"series": names}, version)
    for number, name in enumerate(names):
        put_image(root / name, random(2, 4, 6, seed=number), "cyx", version)
    layout = find(open_files(root), "")
    assert [(f.plate, f.well, f.field) for f in layout.fields] == [("s", "A1", str(i + 1)) for i in range(len(names))]
    for number, field in enumerate(layout.fields):
        np.testing.assert_array_equal(pixels_of(open_files(root), layout, field), random(2, 4, 6, seed=number))


def test_images_of_a_series_may_differ_in_depth_but_not_in_width(tmp_path: Path) -> None:
    put_group(tmp_path, {"bioformats2raw.layout": 3})
    put_image(tmp_path / "0", random(2, 4, 6), "zyx")
    put_image(tmp_path / "1", random(3, 4, 6), "zyx")
    found = [(field.field, field.z) for field in find(open_files(tmp_path), "").fields]
    assert found == [("1", 0), ("1", 1), ("2", 0), ("2", 1), ("2", 2)]
    put_image(tmp_path / "2", random(3, 4, 7), "zyx")
    with pytest.raises(SourceError, match=r"0/0 has zyx \(2, 4, 6\), 2/0 has zyx \(3, 4, 7\)"):
        find(open_files(tmp_path), "")


def test_a_series_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ome_zarr, "MOST_SERIES", 3)
    put_group(tmp_path, {"bioformats2raw.layout": 3})
    for number in range(4):
        put_image(tmp_path / str(number), random(4, 6), "yx")
    with pytest.raises(SourceError, match="more than 3 series"):
        find(open_files(tmp_path), "")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 6), "yx"), ((2, 4, 6), "cyx"), ((2, 3, 4, 6), "czyx"), ((2, 3, 2, 4, 6), "tczyx")]
)
def test_a_plain_array_is_t_c_z_y_x_or_the_last_of_these(
    tmp_path: Path, version: int, shape: tuple[int, ...], axes: str, serve: Serve
) -> None:
    pixels = random(*shape)
    put_array(tmp_path / "p.zarr", pixels, "0.5" if version == 3 else "0.4")
    if version == 2:
        put(tmp_path / "p.zarr" / ".zattrs", {"_ARRAY_DIMENSIONS": list(axes)})
    full = pixels.reshape([dict(zip(axes, shape, strict=True)).get(axis, 1) for axis in "tczyx"])
    for files, folder in ((open_files(tmp_path), "p.zarr"), (remote(serve(tmp_path / "p.zarr")), "")):
        layout = find(files, folder, "p")
        assert [channel.name for channel in layout.channels] == [f"c{c}" for c in range(full.shape[1])]
        assert [(f.plate, f.well, f.field) for f in layout.fields] == [("p", "A1", "1")] * len(layout.fields)
        assert [(f.t, f.z) for f in layout.fields] == list(np.ndindex(full.shape[0], full.shape[2]))
        for field in layout.fields:
            np.testing.assert_array_equal(pixels_of(files, layout, field), full[field.t, :, field.z])


def test_a_plain_array_of_more_axes_is_refused(tmp_path: Path) -> None:
    put_array(tmp_path, random(1, 1, 1, 1, 4, 6))
    with pytest.raises(SourceError, match="has 6 axes; an array of yx, cyx, czyx, tczyx can be read"):
        find(open_files(tmp_path), "")


def test_what_is_no_plate_has_only_well_a1(tmp_path: Path) -> None:
    put_image(tmp_path, random(4, 6), "yx")
    assert len(find(open_files(tmp_path), "", wells=frozenset({"A1"})).fields) == 1
    with pytest.raises(SourceError, match="only well A1, not B2"):
        find(open_files(tmp_path), "", wells=frozenset({"B2"}))


def test_where_no_zarr_is_it_is_missing(tmp_path: Path) -> None:
    for folder in ("", "nothing"):
        with pytest.raises(SourceMissing):
            find(open_files(tmp_path), folder)


@pytest.mark.parametrize("name", [".zattrs", ".zgroup", ".zarray", "zarr.json"])
def test_zarr_is_told_by_its_metadata_files(name: str) -> None:
    assert there(["A/", name])
    assert not there(["A/", "zarr", "image.tif", name + ".txt"])


# ------------------------------------------------------------------------------------ axes, channels, pixel size


@pytest.mark.parametrize("axes", ["ctzyx", "zctyx", "tcyx", "tyx", "zcyx", "yx"])
def test_the_order_of_the_axes_decides_which_plane_is_which(tmp_path: Path, axes: str) -> None:
    sizes = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}
    pixels = random(*(sizes[axis] for axis in axes))
    put_image(tmp_path, pixels, axes)
    layout = find(open_files(tmp_path), "")
    full = np.einsum(f"{axes}->{''.join(a for a in 'tczyx' if a in axes)}", pixels)
    full = full.reshape([sizes[a] if a in axes else 1 for a in "tczyx"])
    assert len(layout.fields) == full.shape[0] * full.shape[2]
    for field in layout.fields:
        np.testing.assert_array_equal(pixels_of(open_files(tmp_path), layout, field), full[field.t, :, field.z])


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["y", "x", "c"], "has axes yxc; expected"),
        (["c", "x", "y"], "has axes cxy"),
        (["c", "c", "y", "x"], "has axes ccyx"),
        (["x"], "has axes x"),
        (["q", "y", "x"], "an axis 'q' of type None"),
        ([{"name": "angle", "type": "custom"}, "y", "x"], "an axis 'angle' of type 'custom'"),
        ([{"name": "c", "type": "space"}, "y", "x"], "an axis 'c' of type 'space'"),
        ([{"name": "z", "type": "time"}, "y", "x"], "an axis 'z' of type 'time'"),
        ([{"type": "space"}, "y", "x"], "an axis None"),
        ([{"name": ["c"]}, "y", "x"], r"an axis \['c'\]"),
        ([{"name": "c", "type": ["channel"]}, "y", "x"], r"of type \['channel'\]"),
        ([5, "y", "x"], "expected a JSON object"),
        ("cyx", "expected a JSON array"),
        ([], "not empty"),
        (None, "expected a JSON array"),
        (["z", "c", "y", "x"], "expected 4 finite numbers"),
    ],
)
def test_other_axes_are_refused_with_what_was_found(tmp_path: Path, axes: object, said: str) -> None:
    put_image(tmp_path, random(2, 4, 6), "cyx")
    change(tmp_path, lambda about: about["multiscales"][0].update(axes=axes))
    with pytest.raises(SourceError, match=said):
        find(open_files(tmp_path), "")


def test_axes_that_the_array_does_not_have_are_refused(tmp_path: Path) -> None:
    put_image(tmp_path, random(2, 4, 6), "zcyx", "0.3", chunks=(1, 4, 6))
    with pytest.raises(SourceError, match=r"0 has shape \(2, 4, 6\), its axes are zcyx"):
        find(open_files(tmp_path), "")


def test_a_plate_of_version_0_3_may_have_no_axes_but_y_and_x(tmp_path: Path) -> None:
    put_plate(tmp_path, [{"path": "A/1"}], "0.3", field_count=9)
    put_well(tmp_path / "A/1", ["0"], "0.3")
    put_image(tmp_path / "A/1/0", random(4, 6), "yx", "0.3")
    layout = find(open_files(tmp_path), "")
    assert [(f.well, f.planes) for f in layout.fields] == [("A1", ((Plane("A/1/0/0"),),))]
    np.testing.assert_array_equal(pixels_of(open_files(tmp_path), layout, layout.fields[0]), random(1, 4, 6))


def test_a_time_and_a_channel_are_told_by_their_type(tmp_path: Path) -> None:
    put_image(tmp_path, random(3, 2, 4, 6), "tcyx")
    axes = [{"name": "minute", "type": "time"}, {"name": "dye", "type": "channel"}, {"name": "y"}, {"name": "x"}]
    change(tmp_path, lambda about: about["multiscales"][0].update(axes=axes))
    layout = find(open_files(tmp_path), "")
    assert (len(layout.fields), len(layout.channels)) == (3, 2)


def test_only_versions_0_1_and_0_2_may_have_no_axes(tmp_path: Path) -> None:
    put_image(tmp_path, random(1, 1, 1, 4, 6), "tczyx")
    change(tmp_path, lambda about: about["multiscales"][0].pop("axes"))
    with pytest.raises(SourceError, match=r"no axes, which OME-Zarr 0\.4 must have"):
        find(open_files(tmp_path), "")
    change(tmp_path, lambda about: about["multiscales"][0].pop("version"))
    assert len(find(open_files(tmp_path), "").fields) == 1


@pytest.mark.parametrize("version", ["0.6rc0", "1.0", "0.7", 5, [], {"a": 1}])
def test_other_versions_are_refused(tmp_path: Path, version: object) -> None:
    small_plate(tmp_path)
    change(tmp_path / "A/1/0", lambda about: about["multiscales"][0].update(version=version))
    with pytest.raises(SourceError, match=r"A/1/0 is OME-Zarr .*; this reads 0\.1 to 0\.5"):
        find(open_files(tmp_path), "")
    change(tmp_path, lambda about: about["plate"].update(version=version))
    with pytest.raises(SourceError, match="the plate is OME-Zarr"):
        find(open_files(tmp_path), "")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["DNA", " Actin "], ["DNA", "Actin"]),
        (["DNA", "DNA"], ["c0", "c1"]),
        (["DNA", ""], ["c0", "c1"]),
        (["DNA", 7], ["c0", "c1"]),
        (["DNA", "A\nB"], ["c0", "c1"]),
        (["DNA", "\ud800"], ["c0", "c1"]),
        (["DNA", "x" * 1000], ["c0", "c1"]),
        (["DNA"], ["c0", "c1"]),
        ([], ["c0", "c1"]),
    ],
)
def test_channels_have_their_labels_or_numbers(tmp_path: Path, labels: list[Any], names: list[str]) -> None:
    put_image(tmp_path, random(2, 4, 6), "cyx")
    change(tmp_path, lambda about: about.update(omero={"channels": [{"label": label} for label in labels]}))
    assert [channel.name for channel in find(open_files(tmp_path), "").channels] == names


def test_wells_of_other_channels_or_axes_are_refused(tmp_path: Path) -> None:
    root = small_plate(tmp_path, labels=["DNA", "Actin"])
    put_image(root / "A/2/1", random(2, 4, 6), "cyx", overwrite=True)  # says nothing of its channels
    assert [channel.name for channel in find(open_files(root), "").channels] == ["DNA", "Actin"]
    put_image(root / "A/2/1", random(1, 4, 6), "cyx", labels=["DNA"], overwrite=True)
    with pytest.raises(SourceError, match=r"A/1/0/0 has 2 channels \(DNA, Actin\), A/2/1/0 has 1 channels \(DNA\)"):
        find(open_files(root), "")
    put_image(root / "A/2/1", random(2, 4, 6), "cyx", labels=["Actin", "DNA"], overwrite=True)
    with pytest.raises(SourceError, match=r"A/2/1/0 has 2 channels \(Actin, DNA\)"):
        find(open_files(root), "")
    put_image(root / "A/2/1", random(2, 4, 6), "zyx", overwrite=True)
    with pytest.raises(SourceError, match="A/1/0/0 has axes cyx, A/2/1/0 has zyx"):
        find(open_files(root), "")


@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 4, 7), (2, 1, 4, 6)])
def test_an_array_unlike_the_first_is_an_error_when_it_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    root = small_plate(tmp_path)
    put_array(root / "A/2/1/0", random(*shape), overwrite=True)
    layout = find(open_files(root), "")
    pixels_of(open_files(root), layout, layout.fields[2])
    with pytest.raises(SourceError, match="A/2/1/0"):
        pixels_of(open_files(root), layout, layout.fields[3])


def scale(*values: object) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


@pytest.mark.parametrize(
    ("unit", "level", "whole", "size"),
    [
        ("micrometer", [scale(1, 0.65, 0.65)], None, 0.65),
        ("nanometer", [scale(1, 325, 325)], None, 0.325),
        ("millimeter", [scale(1, 0.001, 0.001)], [], 1.0),
        ("micrometer", [{"type": "translation", "translation": [0, 1, 1]}, scale(1, 2, 2)], [scale(1, 0.5, 0.5)], 1.0),
        ("micrometer", [scale(1, 0.653, 0.65)], None, 0.65),
        ("micrometer", [scale(1, 0.66, 0.65)], None, None),
        ("micrometer", [scale(1, 0, 0)], None, None),
        ("micrometer", [scale(1, -1, -1)], None, None),
        ("micrometer", [{"type": "identity"}], [scale(1, 2, 2)], None),
        ("micrometer", [{"type": "scale", "path": "scales"}], None, None),
        ("micrometer", None, None, None),
        ("pixel", [scale(1, 1, 1)], None, None),
        (None, [scale(1, 1, 1)], None, None),
        (7, [scale(1, 1, 1)], None, None),
        ([], [scale(1, 1, 1)], None, None),
    ],
)
def test_the_pixel_size_is_the_scale_in_its_unit(
    tmp_path: Path, unit: object, level: object, whole: object, size: float | None
) -> None:
    def edit(about: Any) -> None:
        (image,) = about["multiscales"]
        image["coordinateTransformations"] = whole
        image["datasets"][0]["coordinateTransformations"] = level
        for axis in image["axes"][1:]:
            axis["unit"] = unit

    put_image(tmp_path, random(2, 4, 6), "cyx")
    change(tmp_path, edit)
    assert find(open_files(tmp_path), "").pixel_size_um == (size and pytest.approx(size))


def test_images_of_different_pixel_sizes_have_none_in_common(tmp_path: Path) -> None:
    root = small_plate(tmp_path, unit="micrometer", scale=0.5)
    assert find(open_files(root), "").pixel_size_um == 0.5
    put_image(root / "A/2/1", random(2, 4, 6), "cyx", unit="micrometer", scale=0.6, overwrite=True)
    assert find(open_files(root), "").pixel_size_um is None


# -------------------------------------------------------------------------------------- what cannot be trusted


@pytest.mark.parametrize(
    "values",
    [
        [1, float("nan"), 1], [1, 1, float("inf")], [1, 10**400, 1], [1, 1], [1, 1, 1, 1], [1, "2", 2], [1, None, 1],
        [], 5, None,
    ],
    ids=lambda values: str(values)[:20],
)  # fmt: skip
def test_a_scale_that_is_not_finite_numbers_is_refused(tmp_path: Path, values: object) -> None:
    put_image(tmp_path, random(2, 4, 6), "cyx")
    broken = [{"type": "scale", "scale": values}]
    for holder in (["datasets", 0], []):

        def edit(about: Any, holder: list[Any] = holder) -> None:
            target = about["multiscales"][0]
            for key in holder:
                target = target[key]
            target["coordinateTransformations"] = broken

        change(tmp_path, edit)
        with pytest.raises(SourceError, match="scale"):
            find(open_files(tmp_path), "")


PATHS = [
    "../x", "/x", "a/../../x", "", ".", "./0", "0/", "a//b", "a\\b", "a\0b", "x" * 300, "y/" * 600 + "0", "\ud800", 0,
    None, ["0"], {"path": "0"}, True,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:20])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_paths_that_lead_out_or_are_none_are_refused(tmp_path: Path, path: object, version: str, serve: Serve) -> None:
    root = small_plate(tmp_path / "inside" / "p.zarr", version=version)
    small_plate(tmp_path / "x", version=version)
    places: list[tuple[Path, Callable[[Any], object]]] = [
        (root / "A/1/0", lambda about: about["multiscales"][0]["datasets"][0].update(path=path)),
        (root / "A/1", lambda about: about["well"]["images"][1].update(path=path)),
        (root, lambda about: about["plate"]["wells"][1].update(path=path)),
    ]
    for group, edit in places:
        change(group, edit)
        for files in (open_files(root), remote(serve(root))):
            with pytest.raises(SourceError, match=r"path|expected row/column"):
                find(files, "")


@pytest.mark.parametrize("folder", ["../p.zarr", "a/../../p.zarr", "a\\b"])
def test_a_folder_outside_the_root_is_refused(tmp_path: Path, folder: str) -> None:
    small_plate(tmp_path / "p.zarr")
    with pytest.raises(SourceError, match="not a path inside"):
        find(open_files(small_plate(tmp_path / "inside")), folder)


def test_two_wells_or_images_of_one_name_are_refused(tmp_path: Path) -> None:
    root = small_plate(tmp_path)
    change(root / "A/1", lambda about: about["well"].update(images=[{"path": "0"}, {"path": "0"}]))
    with pytest.raises(SourceError, match="A/1 lists an image twice"):
        find(open_files(root), "")
    change(root, lambda about: about["plate"]["wells"].append({"path": "A/01"}))
    with pytest.raises(SourceError, match="'A/01' and 'A/1', which are one well"):
        find(open_files(root), "")


def test_more_planes_than_memory_holds_are_refused(tmp_path: Path) -> None:
    array = {"zarr_format": 2, "dtype": "<u2", "compressor": None, "filters": None, "fill_value": 0, "order": "C"}
    put(tmp_path / ".zarray", {**array, "shape": [2**39, 2**39, 2**39, 4, 6], "chunks": [1, 1, 1, 4, 6]})
    with pytest.raises(SourceError, match=r"has 1\.7e\+35 planes; 10,000,000 can be read at once"):
        find(open_files(tmp_path), "")


def test_codecs_of_unknown_names_are_refused(tmp_path: Path) -> None:
    root = small_plate(tmp_path)
    about = json.loads((root / "A/1/0/0/.zarray").read_text())
    put(root / "A/1/0/0/.zarray", {**about, "compressor": {"id": "pickle"}})
    with pytest.raises(SourceError, match="codec 'pickle', expected blosc"):
        find(open_files(root), "")


STRANGE = [None, True, 5, -1.5, "text", [], {}, [None], [[]], {"path": {}}, [5], float("nan"), [{}], "\ud800"]


def keys(document: Any, found: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a document is."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*found, key)
        if isinstance(value, dict | list):
            yield from keys(value, (*found, key))


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5"])
@pytest.mark.parametrize("group", ["", "A/1", "A/1/0", "A/1/0/0"])
def test_whatever_metadata_holds_it_is_read_or_a_source_error(tmp_path: Path, version: str, group: str) -> None:
    root = small_plate(tmp_path, wells=1, version=version, labels=["DNA", "Actin"])
    name = "zarr.json" if version == "0.5" else ".zarray" if group.endswith("0/0") else ".zattrs"
    text = (root / group / name).read_text()
    for place in keys(json.loads(text)):
        for strange in STRANGE:
            document = json.loads(text)
            holder = document
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = strange
            put(root / group / name, document)
            ome_zarr.open_zarr.cache_clear()
            with contextlib.suppress(SourceError):
                layout = find(open_files(root), "")
                for field in layout.fields:
                    pixels_of(open_files(root), layout, field)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff", b"[" * 10_000, b'{"plate":' * 10_000, b"null", b'"x"', b"1"]
)
@pytest.mark.parametrize("group", ["", "A/1", "A/1/0", "A/1/0/0"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_metadata_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes, group: str, version: str) -> None:
    root = small_plate(tmp_path, version=version)
    name = "zarr.json" if version == "0.5" else ".zarray" if group.endswith("0/0") else ".zattrs"
    (root / group / name).write_bytes(text)
    with pytest.raises(SourceError, match="JSON"):
        find(open_files(root), "")


# --------------------------------------------------------------------------- the cases of the specification

SPECIFIED = sorted(FIXTURES.glob("ngff-spec/tests/zarr/*/*/*/*.zarr/zarr.json"))
HARMLESS = {  # what the specification forbids and a reader of pixels need not mind
    *("duplicate_scale", "empty_transformations", "missing_transformations", "missing_scale"),
    *("invalid_transformation_type", "invalid_channels_color", "invalid_channels_window"),
    *("acquisition_negative_starttime", "acquisition_noninteger_endtime", "acquisition_noninteger_starttime"),
    *("acquisition_zero_maximumfieldcount", "duplicate_columns", "duplicate_rows", "duplicate_rows-2"),
    *("empty_columns", "empty_rows", "missing_acquisition_id", "missing_column_name", "missing_columns"),
    *("missing_row_name", "missing_rows", "missing_well_columnIndex", "missing_well_rowIndex"),
    *("negative_acquisition_id", "negative_endtime", "non_alphanumeric_column", "non_integer_acquisition_id"),
    *("non_integer_acquisition_maximumfieldcount", "missing_acquisition_name", "missing_name"),
    "missing_acquisition_maximumfieldcount",
}


REFUSED = {  # what the specification allows and is not a plane of one channel, z and t
    "custom_type_axes": "an axis 'angle' of type",
    "untyped_axes": "an axis 'angle' of type None",
    "mismatch_axes_units": r"scale \[0.13, 0.13\]; expected 3 finite numbers",
}


def as_0_5(document: Any) -> dict[str, Any]:
    """The OME metadata of a case, which is of version 0.6, as version 0.5 has it: axes without coordinate systems."""
    attributes = document["attributes"]
    about: dict[str, Any] = attributes.get("ome") or {"well": attributes["well"]}
    for image in about.get("multiscales", []):
        if systems := image.pop("coordinateSystems", None):
            image["axes"] = systems[0]["axes"]
    return {**about, "version": "0.5"}


@real
@pytest.mark.parametrize("case", SPECIFIED, ids=lambda path: "-".join(path.parts[-5:-1]))
def test_cases_of_the_specification_are_read_or_refused_as_they_should(tmp_path: Path, case: Path) -> None:
    with pytest.raises(SourceError, match=r"0\.6rc0|JSON|neither plate nor image|is a 'group'"):
        find(open_files(case.parent), "")  # they are of version 0.6
    try:
        about = as_0_5(json.loads(case.read_text()))
    except ValueError:
        return  # two are no JSON
    valid, kind, name = case.parts[-4] == "valid", case.parts[-3], case.parts[-2].removesuffix(".ome.zarr")
    root = tmp_path / "case.zarr"
    fields = put_around(root, kind, about)
    if kind == "label":
        with pytest.raises(SourceError, match="neither plate nor image"):
            find(open_files(root), "")
    elif valid and name in REFUSED:
        with pytest.raises(SourceError, match=REFUSED[name]):
            find(open_files(root), "")
    elif valid or name in HARMLESS:
        assert len(find(open_files(root), "").fields) == fields
    else:
        with pytest.raises(SourceError):
            find(open_files(root), "")


def put_around(root: Path, kind: str, about: dict[str, Any]) -> int:
    """Puts a group's metadata, and around it what it needs to be found whole; how many fields that makes."""
    group = root / "A" / "1" if kind == "well" else root
    put_group(group, about, "0.5")
    if kind == "well":
        put_plate(root, [{"path": "A/1"}], "0.5")
        images = [group / str(image.get("path")) for image in about["well"]["images"]]
    elif kind == "plate":
        wells = [root / well["path"] for well in about["plate"].get("wells", []) if "path" in well]
        for well in wells:
            put_well(well, ["0"], "0.5")
        images = [well / "0" for well in wells]
    else:
        images = []
        for image in about.get("multiscales", []):
            axes = len(image.get("axes", "tczyx"))
            for dataset in image.get("datasets", [])[:1]:
                put_array(root / str(dataset.get("path", "0")), random(*(1,) * max(0, axes - 2), 4, 6), "0.5")
                return 1
    for image in set(images):
        put_image(image, random(4, 6), "yx", "0.5")
    return len(set(images))

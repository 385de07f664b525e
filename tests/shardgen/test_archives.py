"""`shardgen build` of every kind of archive, from a server that speaks as they do, with their real files."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from archive_server import DATA, ArchiveServer, content
from typer.testing import CliRunner

import bie_stream
from shardgen.cli import app

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the archives' real files are not beside this checkout")

LAYOUTS = DATA / "hcs_layouts"


@pytest.fixture(scope="module")
def server() -> Iterator[ArchiveServer]:
    with ArchiveServer() as running:
        yield running


def run(server: ArchiveServer, command: str, *words: object) -> str:
    endpoints = [word for name, url in server.endpoints.items() for word in ("--endpoint", f"{name}={url}")]
    result = CliRunner().invoke(app, [command, *map(str, words), *endpoints, "--timeout-s", "2"])
    assert result.exit_code == 0, result.output
    return result.stdout


def build(server: ArchiveServer, out: Path, *words: object) -> bie_stream.Dataset:
    run(server, "build", *words, "--workers", 1, "--out", out)
    verified = CliRunner().invoke(app, ["verify", str(out)])
    assert verified.exit_code == 0, verified.output
    return bie_stream.open(out)


def tree(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


IDR0036 = ("idr0036", "--plates", "20585,20646", "--channels", "Hoechst,Mito", "--wells", "A1,O2", "--fields", "1,9")


def test_idr0036_has_the_right_pixels_labels_and_licence(server: ArchiveServer, tmp_path: Path) -> None:
    found = build(server, tmp_path / "out", *IDR0036)
    assert (found.manifest.study, found.manifest.licence) == ("idr0036-gustafsdottir-cellpainting/screenA", "CC0 1.0")
    assert "journal.pone.0080999" in (found.manifest.citation or "")
    assert [channel.name for channel in found.manifest.channels] == ["Hoechst", "Mito"]
    rows = found.table.to_pylist()
    places = {(row["plate"], row["well"], row["field"]) for row in rows}
    assert places == {(p, w, f) for p in ("20585", "20646") for w in ("A1", "O2") for f in ("1", "9")}
    library = (DATA / "idr_metadata/idr0036/screenA/idr0036-screenA-library.txt").read_text().splitlines()
    names = library[0].split("\t")
    truth = {tuple(cells[:2]): cells[names.index("Compound Name")] for cells in (row.split("\t") for row in library)}
    assert [row["Compound Name"] for row in rows] == [truth[row["plate"], row["well"]] for row in rows]
    screens = {p: (DATA / f"idr_metadata/idr0036/screens/{p}.screen").read_text() for p in ("20585", "20646")}
    for number, row in enumerate(rows):
        well = f"{row['well'][0]}{int(row['well'][1:]):02d}_s{row['field']}_w1"
        (name,) = {w for w in screens[row["plate"]].replace("<", ",").split(",") if f"Hoechst/IXMtest_{well}" in w}
        folder = "/pub/databases/IDR/idr0036-gustafsdottir-cellpainting/2016-01-19-screens-bbbc022"
        source = server.tree[f"{folder}/{row['plate']}-{name}.tif"]
        assert isinstance(source, Path)
        np.testing.assert_array_equal(found[number][0], tifffile.imread(source))


def test_faults_of_the_server_change_no_byte(server: ArchiveServer, tmp_path: Path) -> None:
    asked = IDR0036[:-2]  # all nine fields
    build(server, tmp_path / "calm", *asked)
    with ArchiveServer(faults=0.1, stall_s=5.0, retry_after="0") as rough:
        build(rough, tmp_path / "rough", *asked)
        assert sum(request.fault is not None for request in rough.requests) > 3
    calm, rough_tree = tree(tmp_path / "calm"), tree(tmp_path / "rough")
    manifests = [json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("calm", "rough")]
    assert manifests[0].pop("source").split("/", 3)[3] == manifests[1].pop("source").split("/", 3)[3]  # but the port
    assert manifests[0] == manifests[1]
    assert {k: v for k, v in calm.items() if k != "dataset.json"} == {
        k: v for k, v in rough_tree.items() if k != "dataset.json"
    }


def test_a_plan_reads_no_pixels(server: ArchiveServer, tmp_path: Path) -> None:
    before, sent = len(server.requests), server.bytes_sent
    said = run(server, "plan", *IDR0036)
    assert "planes                       16" in said
    planes = [request for request in server.requests[before:] if request.path.endswith(".tif")]
    read = [request for request in planes if request.method == "GET"]
    assert len({request.path for request in read}) <= 1, "only the first plane's header"
    assert sum(request.body_bytes for request in planes) < 700_000
    assert len(planes) - len(read) <= 9, "sizes of eight files, and of that one"
    assert server.bytes_sent > sent


def test_idr0006_says_that_it_is_not_for_commercial_use(server: ArchiveServer, tmp_path: Path) -> None:
    endpoints = [word for name, url in server.endpoints.items() for word in ("--endpoint", f"{name}={url}")]
    out = tmp_path / "out"
    words = ["build", "idr0006", "--plates", "11001", "--workers", "1", "--out", str(out), *endpoints]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "CC BY-NC-SA 3.0: no commercial use" in result.stderr
    found = bie_stream.open(out)
    assert found.manifest.licence == "CC BY-NC-SA 3.0"
    assert [channel.name for channel in found.manifest.channels] == ["DAPI", "TRITC"]
    assert {row["well"] for row in found.table.to_pylist()} == {"B2", "B3"}
    assert {row["Gene Symbol"] for row in found.table.to_pylist()} - {None}
    first = found.table.to_pylist()[0]
    real = LAYOUTS / "ImageXpress_exported/9987_Plate_3435/TimePoint_1" / f"9987_B02_s{first['field']}_w2.TIF"
    np.testing.assert_array_equal(found[0][1], tifffile.imread(real))


def test_the_plate_of_idr0093_whose_index_has_another_name_is_found(server: ArchiveServer, tmp_path: Path) -> None:
    found = build(
        server, tmp_path / "out", "idr0093", "--plates", "082", "--fields", "1", "--z", "middle", "--tile", 500
    )
    rows = found.table.to_pylist()
    assert {row["plate"] for row in rows} == {"082"}
    assert {row["well"]: row["Gene Symbol"] for row in rows} == {"D8": "KIF11", "E3": None, "F8": "PCNA"}
    assert {row["well"]: row["Control Type"] for row in rows}["E3"] == "negative control"
    assert found.manifest.licence == "CC BY 4.0"
    assert found.manifest.pixel_size_um == pytest.approx(0.325)


def test_idr0094_has_decimal_commas_and_brackets_in_its_paths(server: ArchiveServer, tmp_path: Path) -> None:
    found = build(server, tmp_path / "out", "idr0094A", "--plates", "ESP0025769")
    rows = found.table.to_pylist()
    assert {(row["well"], row["field"]) for row in rows} == {(w, f) for w in ("A1", "A2") for f in ("1", "2")}
    assert {row["well"]: row["Percentage Inhibition (DPC)"] for row in rows}["A1"] == 33.33
    assert [channel.name for channel in found.manifest.channels] == ["cell body"]


def test_labels_come_from_omero_where_the_file_is_missing(tmp_path: Path) -> None:
    with ArchiveServer(largest_page=2, needs_session=True) as server:
        for path in [path for path in server.tree if "idr0036-screenA-" in path and path.endswith((".txt", ".csv"))]:
            del server.tree[path]
        found = build(server, tmp_path / "out", *IDR0036[:5], "--wells", "A1,O2", "--fields", "1")
    names = {(row["plate"], row["well"]): row["Compound Name"] for row in found.table.to_pylist()}
    assert names["20585", "A1"] == "NIFLUMIC ACID"
    assert all(names.values())


@pytest.mark.parametrize("form", ["redirect", "link", "body"])
def test_a_study_of_the_bioimage_archive_is_built_by_pattern(tmp_path: Path, form: str) -> None:
    with ArchiveServer(biostudies=form) as server:  # type: ignore[arg-type]
        found = build(server, tmp_path / "out", "S-BIAD9001", "--pattern", PATTERN_9001)
    assert found.manifest.study == "S-BIAD9001"
    assert found.manifest.licence
    first = found.table.to_pylist()[0]
    real = LAYOUTS / "ImageXpress_exported/9987_Plate_3435/TimePoint_1" / f"9987_B02_s{first['field']}_w1.TIF"
    np.testing.assert_array_equal(found[0][0], tifffile.imread(real))


PATTERN_9001 = "plate [1]/{*}_{well}_s{field}_w{channel}.TIF"


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data + b"x"])
def test_a_file_that_has_not_the_size_its_submission_lists_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    with ArchiveServer() as server:
        path = next(path for path in server.tree if "S-BIAD9001/Files/plate [1]/" in path)
        listed = content(server.tree[path])
        server.tree[path] = spoil(listed)
        words = ["build", "S-BIAD9001", "--pattern", PATTERN_9001, "--workers", "1", "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*words, "--endpoint", f"biostudies={server.endpoints['biostudies']}"])
        assert result.exit_code == 1
        assert f"has {len(spoil(listed))} bytes, its archive lists it with {len(listed)}" in result.stderr
        assert path.rpartition("/")[2] in result.stderr
        whole = [r for r in server.requests if r.path == path and r.method == "GET" and r.range is None]
        assert len(whole) == 1, "to fetch it again would not help"


def test_a_plan_of_a_submission_says_exactly_what_will_be_fetched(server: ArchiveServer) -> None:
    files = [content(server.tree[path]) for path in server.tree if "S-BIAD9001/Files/plate [1]/" in path]
    said = run(server, "plan", "S-BIAD9001", "--pattern", PATTERN_9001)
    assert f"bytes to fetch               {sum(map(len, files)) / 1e3:.1f} kB in {len(files)} files\n" in said


def test_a_plate_of_ome_zarr_is_built_over_http_without_its_absent_well(tmp_path: Path) -> None:
    import zarr

    with ArchiveServer() as server:
        for path in [path for path in server.tree if "/single-plane-hcs.zarr/E/08/" in path]:
            del server.tree[path]
        found = build(server, tmp_path / "out", f"{server.url}/zarr/mobie/single-plane-hcs.zarr")
    (row,) = found.table.to_pylist()
    assert row["well"] == "E7"
    (there,) = (DATA / "ome_zarr_fixtures").rglob("single-plane-hcs.zarr")
    np.testing.assert_array_equal(found[0], zarr.open_array(there / "E/07/0/0", mode="r")[:])


def test_folders_of_vendors_are_known_by_what_is_in_them(server: ArchiveServer, tmp_path: Path) -> None:
    yokogawa = next((LAYOUTS / "CV8000").rglob("MeasurementData.mlf")).parent
    found = build(server, tmp_path / "a", yokogawa, "--wells", "D8", "--fields", "1", "--z", "max", "--tile", 500)
    assert [channel.name for channel in found.manifest.channels] == ["1", "2"]
    metaxpress = LAYOUTS / "ImageXpress_exported/9987_Plate_3434/TimePoint_1"
    found = build(server, tmp_path / "b", metaxpress, "--z", "max", "--limit", 1)
    row = found.table.to_pylist()[0]
    steps = [tifffile.imread(path) for path in sorted(metaxpress.glob(f"ZStep_[1-9]*/9987_B02_s{row['field']}_w1.TIF"))]
    np.testing.assert_array_equal(found[0][0], np.max(steps, axis=0))

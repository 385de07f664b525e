import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from archive_server import DATA, ArchiveServer

from bie_stream.errors import SourceError, SourceMissing
from bie_stream.shards import Channel
from shardgen.archive import Field, Layout, Plane
from shardgen.endpoints import Endpoints
from shardgen.files import Transfer, open_files
from shardgen.labels import labels_of
from shardgen.request import Request
from shardgen.select import Selection
from shardgen.studies import idr0006
from shardgen.studies.idr import (
    Screen,
    citation,
    find,
    label_table,
    omero_table,
    on_server,
    plate_paths,
    study_facts,
)

METADATA = DATA / "idr_metadata"
real = pytest.mark.skipif(not METADATA.is_dir(), reason="the studies' real metadata are not beside this checkout")


@real
@pytest.mark.parametrize(
    ("study", "screen", "plates", "first"),
    [
        ("idr0006", "screenA", 169, "11001"),  # name, path
        ("idr0036", "screenA", 20, "20585"),
        ("idr0093", "screenA", 83, "001"),  # path, name
        ("idr0094", "screenA", 64, "ESP0025769"),
        ("idr0094", "screenB", 102, "ESP0025712"),
    ],
)
def test_plates_are_found_whichever_column_holds_the_path(study: str, screen: str, plates: int, first: str) -> None:
    table = (METADATA / study / screen / f"{study}-{screen}-plates.tsv").read_bytes()
    found = plate_paths(table, study)
    assert len(found) == plates
    assert all("/" in path and "/" not in name for name, path in found.items())
    assert list(found) == sorted(found)
    assert next(iter(found)) == first


@real
def test_the_path_of_a_plate_is_as_it_is_written_not_as_its_name_would_have_it() -> None:
    found = plate_paths((METADATA / "idr0093/screenA/idr0093-screenA-plates.tsv").read_bytes(), "idr0093")
    assert found["082"].endswith("/05_batch/082/No Response Detected.wpi")


@real
@pytest.mark.parametrize(
    ("study", "licence"),
    [("idr0006", "CC BY-NC-SA 3.0"), ("idr0036", "CC0 1.0"), ("idr0093", "CC BY 4.0"), ("idr0094", "CC0 1.0")],
)
def test_licence_and_citation_are_those_of_the_study(study: str, licence: str) -> None:
    facts = study_facts((METADATA / study / f"{study}-study.txt").read_bytes())
    assert facts["Study License"] == licence
    assert "https://doi.org/" in (citation(facts) or "").replace("http://dx.doi.org/", "https://doi.org/")


def test_a_line_that_is_no_plate_is_refused() -> None:
    for text in (b"001\n", b"001\t002\n", b"a/b\tc/d\n", b"001\ta/b\tc\n"):
        with pytest.raises(SourceError, match="is not a plate and its path"):
            plate_paths(text, "idr0001")


def test_only_paths_of_the_server_are_taken() -> None:
    assert on_server("/uod/idr/filesets/idr0006-x/a b/c.HTD") == "idr0006-x/a b/c.HTD"
    assert on_server("/idr/filesets/idr0006-x/c.HTD") == "idr0006-x/c.HTD"
    with pytest.raises(SourceError, match="is not on IDR's server"):
        on_server("/etc/passwd")


def test_a_byte_order_mark_is_no_part_of_a_plate_or_a_key() -> None:
    assert plate_paths("\ufeff001\t/uod/a/001.wpi".encode(), "it") == {"001": "/uod/a/001.wpi"}
    assert study_facts("\ufeffStudy License\tCC0 1.0\r\n".encode()) == {"Study License": "CC0 1.0"}


def test_facts_are_those_of_the_study_and_not_of_its_comments_or_screens() -> None:
    text = (
        '# Study License\tno\n"# Study Title"\tno\n\nStudy License\tCC0 1.0\thttp://more\nStudy Title\t\n'
        "Screen Number\t1\nStudy License\tother\nStudy Title\tA title\n"
    )
    assert study_facts(text.encode()) == {"Study License": "CC0 1.0", "Screen Number": "1", "Study Title": "A title"}


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\x00b", "\x9b31m", "x" * 5000, "9" * 5000])
def test_a_plate_whose_name_is_none_for_people_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="is not a plate and its path"):
        plate_paths(f"{name}\t/uod/a/b".encode(), "it")


# ---- labels ---------------------------------------------------------------------------------------------------------

WELLS = [("p", "A1"), ("p", "O2")]
ANNOTATION = b"\xef\xbb\xbfPlate,Well,Drug\np,A1,annotated\np,o2,\n"
LIBRARY = b"Plate\tWell\tCompound\np\tA1\tx\np\tO2\ty\n"
NOWHERE = Endpoints(omero="http://127.0.0.1:9")  # who asks it, fails
IMPATIENT = Transfer(timeout_s=2.0, tries=1)


def screen(channels: tuple[str, ...] = ("DNA", "Actin"), there: Mapping[str, int] | None = None) -> Screen:
    """One whose plates have so many channels."""

    def read(images: Any, path: str, plate: str, metadata: Any) -> Layout:
        number = (there or {})[plate]
        planes = tuple((Plane(f"{plate}_{n}.tif"),) for n in range(number))
        found = tuple(Channel(name=str(n + 1)) for n in range(number))
        return Layout(found, (Field(plate, "A1", "1", 0, 0, planes),))

    return Screen("idr9-x/screenA", "IDR/idr9-x", "", channels, read)


def write(folder: Path, tables: Mapping[str, bytes]) -> None:
    for name, data in tables.items():
        (folder / "screenA").mkdir(parents=True, exist_ok=True)
        (folder / "screenA" / f"idr9-screenA-{name}").write_bytes(data)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"annotation.csv": ANNOTATION, "library.txt": LIBRARY}, [{"Drug": "annotated"}, {"Drug": None}]),
        ({"annotation.csv.gz": gzip.compress(ANNOTATION)}, [{"Drug": "annotated"}, {"Drug": None}]),
        ({"library.txt": LIBRARY}, [{"Compound": "x"}, {"Compound": "y"}]),
        (
            {"library.txt": LIBRARY, "processed.txt": b"Compound\tPhenotype\ny\tround\n"},
            [{"Compound": "x", "Phenotype": None}, {"Compound": "y", "Phenotype": "round"}],
        ),
    ],
    ids=["annotation", "packed", "library", "library and processed"],
)
def test_labels_are_read_from_the_tables_of_the_study(
    tmp_path: Path, tables: Mapping[str, bytes], expected: list[dict[str, str | None]]
) -> None:
    write(tmp_path, tables)
    table = label_table(screen(), open_files(tmp_path), Request(endpoints=NOWHERE, transfer=IMPATIENT))
    assert [labels_of(table, WELLS)[well] for well in WELLS] == expected


def omero(server: ArchiveServer, answer: object) -> Request:
    screens = {"data": [{"@id": 7, "Name": "idr9-x/screenA"}], "meta": {"totalCount": 1}}
    server.tree = {
        "/webclient/": b"",
        "/api/v0/m/screens/": json.dumps(screens).encode(),
        "/webgateway/table/Screen/7/query/": json.dumps(answer).encode(),
    }
    return Request(endpoints=Endpoints(omero=server.url), transfer=IMPATIENT)


def test_a_table_of_omero_that_lacks_rows_is_refused() -> None:
    columns = ["Plate", "Well", "Drug", "Plate Name", "Well Name"]
    data = {"columns": columns, "rows": [[1, 2, "x", "p", "a1"], [1, 3, None, "p", "o2"]]}
    with ArchiveServer({}) as server:
        table = omero_table("idr9-x/screenA", omero(server, {"data": data, "meta": {"rowCount": 2, "totalCount": 1}}))
        assert labels_of(table, WELLS) == {("p", "A1"): {"Drug": "x"}, ("p", "O2"): {"Drug": None}}
        with pytest.raises(SourceError, match="gives 2 of 4224 rows"):
            omero_table("idr9-x/screenA", omero(server, {"data": data, "meta": {"rowCount": 4224}}))


def test_what_omero_says_instead_of_a_table_is_said() -> None:
    refusal = {"error": "Trying to download 16224 rows exceeds configured omero.web.max_table_download_rows of 10000"}
    with ArchiveServer({}) as server, pytest.raises(SourceError, match="the server says 'Trying to download"):
        omero_table("idr9-x/screenA", omero(server, refusal))


# ---- channels -------------------------------------------------------------------------------------------------------


def channels_of(tmp_path: Path, there: Mapping[str, int]) -> list[str]:
    folder = tmp_path / "IDR" / "idr9-x" / "HEAD"
    plates = "".join(f"{plate}\t/uod/idr/filesets/{plate}\n" for plate in there)
    labels = "Plate,Well\n" + "".join(f"{plate},A1\n" for plate in there)
    write(folder, {"plates.tsv": plates.encode(), "annotation.csv": labels.encode()})
    (folder / "idr9-study.txt").write_text("Study License\tCC0 1.0\n")
    at = Endpoints(idr_metadata=str(tmp_path), idr_files=str(tmp_path))
    return [channel.name for channel in find(screen(there=there), Request(endpoints=at)).channels]


def test_channels_have_the_names_of_the_study_where_there_are_as_many(tmp_path: Path) -> None:
    assert channels_of(tmp_path / "a", {"p": 2, "q": 2}) == ["DNA", "Actin"]
    assert channels_of(tmp_path / "b", {"p": 3}) == ["1", "2", "3"]
    with pytest.raises(SourceError, match="plate q has 1 channels, those before it 2"):
        channels_of(tmp_path / "c", {"p": 2, "q": 1})


@real
def test_a_plate_that_the_server_lacks_is_named() -> None:
    with ArchiveServer() as server:
        request = Request(endpoints=Endpoints(**server.endpoints), selection=Selection(plates=("11001", "11002")))
        with pytest.raises(SourceMissing, match=r"plate 11002: .*11002_Plate_137.* is not there .* with --plates"):
            find(idr0006.SCREEN, request)

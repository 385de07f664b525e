"""What a submission lists, as the archive's own server tells it."""

import json

import pytest
from archive_server import DATA, ArchiveServer, content

from bie_stream.errors import SourceError
from shardgen.archive import Plane, require_size
from shardgen.endpoints import Endpoints
from shardgen.find import find
from shardgen.request import Request
from shardgen.sources import biostudies


@pytest.mark.skipif(not DATA.is_dir(), reason="the archives' real files are not beside this checkout")
def test_every_plane_knows_the_size_that_the_submission_lists_for_its_file() -> None:
    with ArchiveServer() as server:
        request = Request(
            pattern="plate [1]/{*}_{well}_s{field}_w{channel}.TIF",
            endpoints=Endpoints(biostudies=server.endpoints["biostudies"]),
        )
        archive = find("S-BIAD9001", request)
        (folder,) = {path.partition("plate [1]")[0] for path in server.tree if "S-BIAD9001/Files/plate [1]/" in path}
        planes = [plane for field in archive.fields for planes in field.planes for plane in planes]
        assert len(planes) == 6
        assert {p.path: p.file_bytes for p in planes} == {
            p.path: len(content(server.tree[folder + p.path])) for p in planes
        }


@pytest.mark.parametrize(("size", "known"), [(12, 12), (0, 0), (None, None), ("12", None), (-1, None), (True, None)])
def test_a_size_that_is_no_number_of_bytes_is_not_known(size: object, known: int | None) -> None:
    study = "/api/v1/studies/S-BIAD1"
    section = {
        "files": [[{"path": "direct.tif", "type": "file", "size": size}, {"path": "sub", "type": "directory"}]],
        "subsections": [{"attributes": [{"name": "File List", "value": "list.tsv"}]}],
    }
    listed = [{"path": "a.tif", "type": "file", "size": size}, {"path": "b.tif", "size": 7}, {"path": None}]
    with ArchiveServer({}) as server:
        server.tree = {
            study: json.dumps({"section": section}).encode(),
            f"{study}/info": json.dumps({"httpLink": f"{server.url}/fire"}).encode(),
            "/files/S-BIAD1/list.json": json.dumps(listed).encode(),
        }
        found = biostudies.read("S-BIAD1", Request(endpoints=Endpoints(biostudies=server.url)))
    assert dict(found.sizes) == {"direct.tif": known, "a.tif": known, "b.tif": 7}


def test_a_size_other_than_the_listed_one_is_refused_and_both_are_named() -> None:
    require_size(Plane("a.tif"), 10)
    require_size(Plane("a.tif", (), 10), 10)
    for found in (0, 9, 11):
        with pytest.raises(SourceError, match=rf"a\.tif has {found} bytes, its archive lists it with 10"):
            require_size(Plane("a.tif", (), 10), found)


def attributes(**values: object) -> list[dict[str, object]]:
    return [{"name": name.replace("_", " "), "value": value, "reference": False} for name, value in values.items()]


def test_sections_files_and_values_are_found_however_a_page_tab_nests_them() -> None:
    component = {"type": "Study Component", "attributes": attributes(Name=None, File_List="of a table.tsv")}
    section = {
        "type": "Study",
        "attributes": [*attributes(Title="Cells", Keywords=None), {"name": "License", "value": "CC0", "valqual": None}],
        "links": {},
        "files": [{"path": "direct.tif"}, [{"path": "a/table.tif", "attributes": {}}], {}, None],
        "subsections": [
            {"type": "author", "subsections": {}, "links": [{}], "files": {}, "attributes": {}},
            [{"type": "Organism"}, [component]],
            {"type": "Study Component", "subsections": [[{"attributes": attributes(File_List="deep.json")}]]},
        ],
    }
    lists = {
        "of a table": [
            {"path": "b [1]/x.tif", "attributes": [{"value": "null"}]},
            {"path": "zip", "type": "directory"},
        ],
        "deep": [[{"path": "c.tif", "type": "file", "attributes": {}}], {"path": "d.tif", "attributes": None}],
    }
    with ArchiveServer({}) as server:
        server.tree = {
            "/api/v1/studies/S-BIAD1": json.dumps({"section": section, "attributes": None}).encode(),
            "/api/v1/studies/S-BIAD1/info": json.dumps({"httpLink": f"{server.url}/fire"}).encode(),
            **{f"/files/S-BIAD1/{name}.json": json.dumps(listed).encode() for name, listed in lists.items()},
        }
        found = biostudies.read("S-BIAD1", Request(endpoints=Endpoints(biostudies=server.url)))
        agents = {request.headers["user-agent"] for request in server.requests}
    assert list(found.sizes) == ["direct.tif", "a/table.tif", "b [1]/x.tif", "c.tif", "d.tif"]
    assert (found.title, found.licence) == ("Cells", "CC0")
    assert all(agent.startswith("Mozilla/5.0") for agent in agents), "the archive turns away what is no browser"

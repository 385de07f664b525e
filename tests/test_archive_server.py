"""The archives' server does what is known of the archives, so that tests against it mean something."""

import base64
import gzip
import hashlib
import html
import io
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import tifffile
from archive_server import DATA, ArchiveServer, archive_tree, hoechst_images, rounded

needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared data are not here")
IMAGES = "/pub/databases/IDR"
IDR0036 = f"{IMAGES}/idr0036-gustafsdottir-cellpainting/2016-01-19-screens-bbbc022"


@pytest.fixture
def archives() -> Iterator[httpx.Client]:
    with ArchiveServer() as server, httpx.Client(base_url=server.url) as client:
        yield client


def get(client: httpx.Client, path: str) -> httpx.Response:
    """Of a path that is not yet escaped."""
    return client.get(urllib.parse.quote(path, safe="/?=&*"))


def test_a_folder_is_listed_as_apache_lists_it() -> None:
    tree = {"/pub/x/a b#1.tif": bytes(138_020), "/pub/x/deep/er": b"", "/pub/x/c:d": b"1"}
    with ArchiveServer(tree) as server, httpx.Client(base_url=server.url) as client:
        page = client.get("/pub/x/").text
        assert "<title>Index of /pub/x</title>" in page
        assert '<td><a href="/pub/">Parent Directory</a></td>' in page
        assert '<a href="?C=N;O=D">Name</a>' in page
        assert '<td><a href="a%20b%231.tif">a b#1.tif</a></td><td align="right">2025-02-07 19:49  </td>' in page
        assert '<td align="right">135K</td>' in page
        assert '<a href="deep/">deep/</a>' in page
        assert '<a href="./c:d">c:d</a>' in page
        assert client.get("/pub/x").headers["location"] == "/pub/x/"
        assert client.get("/pub/none/").status_code == 404
        for href in re.findall(r'<td><a href="([^"/][^"]*)"', page):
            assert client.get(f"/pub/x/{html.unescape(href)}").status_code == 200


def test_sizes_are_rounded_as_apache_rounds_them() -> None:
    shown = {0: "0", 972: "972", 973: "1.0K", 1024: "1.0K", 10_239: "10K", 138_020: "135K", 1_288_490_189: "1.2G"}
    assert {size: rounded(size) for size in shown} == shown


def test_parts_are_served_as_http_says() -> None:
    with ArchiveServer({"/a": bytes(range(100))}) as server, httpx.Client(base_url=server.url) as client:
        whole = client.get("/a")
        cases: dict[str, tuple[int, bytes]] = {
            "bytes=10-19": (206, whole.content[10:20]),
            "bytes=90-": (206, whole.content[90:]),
            "bytes=90-1000": (206, whole.content[90:]),
            "bytes=-7": (206, whole.content[-7:]),
            "bytes=100-": (416, b""),
            "bytes=0-1,5-6": (200, whole.content),
            "bytes=5-4": (200, whole.content),
            "lines=1-2": (200, whole.content),
        }
        for asked, expected in cases.items():
            answer = client.get("/a", headers={"Range": asked})
            assert (answer.status_code, answer.content) == expected, asked
        assert client.get("/a", headers={"Range": "bytes=-7"}).headers["content-range"] == "bytes 93-99/100"
        for tag, status in ((whole.headers["etag"], 206), (whole.headers["last-modified"], 206), ('"other"', 200)):
            assert client.get("/a", headers={"Range": "bytes=1-2", "If-Range": tag}).status_code == status
        head = client.head("/a")
        assert (head.headers["content-length"], head.content) == ("100", b"")
        assert server.connections == 1
        assert server.asked == {"/a": 14}


def test_digests_are_of_the_file_or_of_the_part_as_their_standards_say() -> None:
    data, part = b'{"hello": "world"}\n', b"hello"

    def sent(*names: str, **headers: str) -> dict[str, str]:
        asked = {name.replace("_", "-"): value for name, value in headers.items()}
        with ArchiveServer({"/a": data}, digests=names) as server, httpx.Client(base_url=server.url) as client:
            found = client.get("/a", headers=asked).headers
            return {name: found[name] for name in names if name in found}

    of_file = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"  # RFC 9530, appendix B.1
    of_part = f"sha-256=:{base64.b64encode(hashlib.sha256(part).digest()).decode()}:"
    for asked, digest in (({}, of_file), ({"range": "bytes=2-6"}, of_part)):
        found = sent("Repr-Digest", "Content-Digest", **asked)
        assert found["Repr-Digest"].startswith(of_file)
        assert found["Content-Digest"] == digest
    assert sent("Content-MD5", range="bytes=2-6") == {"Content-MD5": "XUFAKrxLKna5cZ2REBfFkg=="}
    s3 = "x-amz-checksum-sha256"
    assert sent(s3) == sent(s3, range="bytes=2-6", x_amz_checksum_mode="ENABLED") == {}
    assert sent(s3, x_amz_checksum_mode="ENABLED") == {s3: of_file[9:-1]}


def test_a_corrupt_answer_has_one_wrong_byte_and_the_right_head() -> None:
    with ArchiveServer({"/a": bytes(10)}, digests=["Content-MD5"]) as server:
        server.fail("/a", "corrupt")
        wrong, right = httpx.get(f"{server.url}/a"), httpx.get(f"{server.url}/a")
    assert dict(wrong.headers) == dict(right.headers)
    assert (wrong.content, right.content) == (b"\0\0\0\0\0\1\0\0\0\0", bytes(10))


def test_faults_are_the_same_for_the_same_seed_and_never_four_in_a_row() -> None:
    runs = []
    for seed in (1, 1, 2):
        with ArchiveServer({}, faults=0.7, seed=seed) as server:
            runs.append([server.faults.draw("/a") for _ in range(400)])
    assert runs[0] == runs[1] != runs[2]
    assert set(runs[0]) == {None, "503", "429", "stall", "truncate"}
    struck = "".join(" " if fault is None else "x" for fault in runs[0])
    assert max(map(len, struck.split())) == 3
    with ArchiveServer({}, faults=0.1) as server:
        share = sum(server.faults.draw(f"/{i}") is not None for i in range(2000)) / 2000
    assert 0.08 < share < 0.12


@needs_data
def test_every_plane_that_a_screen_names_is_there(archives: httpx.Client) -> None:
    listing = get(archives, f"{IDR0036}/20585-Hoechst/").text
    assert listing.count(".tif</a>") == 3456
    ours = {path.name for path in hoechst_images()}
    real = [path for path in archive_tree() if path.startswith(IDR0036) and path.rpartition("/")[2] in ours]
    assert len(real) == 6
    for path in real:
        assert get(archives, path).content == next(p for p in hoechst_images() if path.endswith(p.name)).read_bytes()
    name = f"{IDR0036}/20646-Mito/IXMtest_P24_s1_w5"
    other = next(path for path in archive_tree() if path.startswith(name))
    assert tifffile.imread(io.BytesIO(get(archives, other).content)).shape == (520, 696)


@needs_data
def test_plates_lie_where_the_real_tables_say(archives: httpx.Client) -> None:
    table = get(archives, "/IDR/idr0093-mueller-perturbation/HEAD/screenA/idr0093-screenA-plates.tsv").text
    path = next(line for line in table.splitlines() if line.endswith("\t082")).split("\t")[0]
    folder = path.replace("/uod/idr/filesets", IMAGES).rpartition("/")[0]
    assert get(archives, f"{folder}/No Response Detected.wpi").status_code == 200
    namespace = "{http://www.yokogawa.co.jp/BTS/BTSSchema/1.0}"
    planes = ElementTree.fromstring(get(archives, f"{folder}/MeasurementData.mlf").content)
    names = [record.text for record in planes if record.get(f"{namespace}Type") == "IMG"]
    assert len(names) == 96
    assert all(f"{folder}/{name}" in archive_tree() for name in names)


@needs_data
def test_the_columbus_index_names_planes_that_are_there(archives: httpx.Client) -> None:
    folder = f"{IMAGES}/idr0094-ellinger-sarscov2/20200802-ftp/SARS-CoV2[2454]/ESP0025769[6377]"
    folder += "/2020-03-31T111336+0200[6690]"
    index = ElementTree.fromstring(get(archives, f"{folder}/MeasurementIndex.ColumbusIDX.xml").content)
    reference = index.findtext(".//Reference")
    images = ElementTree.fromstring(get(archives, f"{folder}/{reference}").content)
    names = [url.text for url in images.iter("{http://www.perkinelmer.com/Columbus}URL")]
    assert names == ["001001-1.tif", "001001-2.tif", "001002-1.tif", "001002-2.tif"]
    for name in names:
        assert tifffile.imread(io.BytesIO(get(archives, f"{folder}/{name}").content)).shape == (512, 512)


@needs_data
def test_raw_metadata_are_served_but_not_listed(archives: httpx.Client) -> None:
    folder = "/IDR/idr-metadata/HEAD/idr0036-gustafsdottir-cellpainting"
    assert get(archives, f"{folder}/idr0036-study.txt").text.count("Study Title") > 0
    assert get(archives, f"{folder}/screens/20585.screen").status_code == 200
    assert get(archives, f"{folder}/screens/").status_code == 404
    packed = get(archives, "/IDR/idr0093-mueller-perturbation/HEAD/screenA/idr0093-screenA-annotation.csv.gz").content
    assert gzip.decompress(packed).startswith(b"Plate,Well,")
    assert get(archives, "/zarr/mobie/single-plane-hcs.zarr/.zattrs").json()["plate"]


@needs_data
def test_the_json_api_pages_its_lists(archives: httpx.Client) -> None:
    plates = "/api/v0/m/screens/253/plates/"
    first = archives.get(plates).json()
    assert first["meta"] == {"totalCount": 169, "maxLimit": 500, "limit": 200, "offset": 0}
    pages: list[dict[str, Any]] = []
    for offset in range(0, 169, 50):
        pages += archives.get(plates, params={"limit": 50, "offset": offset}).json()["data"]
    assert pages == first["data"]
    assert (pages[0]["Name"], pages[0]["Rows"], pages[0]["Columns"]) == ("11001", 8, 12)
    assert archives.get(plates, params={"limit": 9999}).json()["meta"]["limit"] == 500
    assert archives.get("/api/v0/m/screens/").json()["meta"]["totalCount"] > 80
    assert archives.get("/api/v0/m/screens/2751/").json()["data"]["Name"] == "idr0093-mueller-perturbation/screenA"
    for path, status in (("screens/99999/", 404), ("none/", 404), ("screens/?limit=x", 400)):
        answer = archives.get(f"/api/v0/m/{path}")
        assert answer.status_code == status
        assert "message" in answer.json()


@needs_data
def test_the_web_client_gives_a_session_where_one_is_needed() -> None:
    with ArchiveServer(needs_session=True, largest_page=7) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/api/v0/m/screens/").status_code == 403
        assert client.get("/webclient/?experimenter=-1").status_code == 200
        assert len(client.get("/api/v0/m/screens/").json()["data"]) == 7


@needs_data
@pytest.mark.parametrize(("screen", "rows"), [(253, 16224), (1952, 7680), (2751, 3), (2602, 6144), (2603, 7949)])
def test_a_bulk_annotation_table_ends_with_the_names(archives: httpx.Client, screen: int, rows: int) -> None:
    table = archives.get(f"/webgateway/table/Screen/{screen}/query/?query=*").json()
    columns, first = table["data"]["columns"], table["data"]["rows"][0]
    assert table["meta"]["rowCount"] == len(table["data"]["rows"]) == rows
    assert len(table["data"]["column_types"]) == len(columns) == len(first)
    assert columns[-2:] == ["Plate Name", "Well Name"]
    plate = archives.get(f"/api/v0/m/screens/{screen}/plates/").json()["data"]
    assert first[-2] == next(p["Name"] for p in plate if p["@id"] == first[columns.index("Plate")])
    assert re.fullmatch(r"[a-p]\d+", first[-1])
    assert isinstance(first[columns.index("Well")], int)
    assert "error" in archives.get("/webgateway/table/Screen/1/query/?query=*").json()


@needs_data
@pytest.mark.parametrize("form", ["redirect", "link", "body"])
def test_a_study_of_biostudies_is_found_in_each_form(form: Any) -> None:
    with ArchiveServer(biostudies=form) as server, httpx.Client(base_url=server.url) as client:
        answer = client.get("/biostudies/api/v1/studies/S-BIAD9001")
        if form == "redirect":
            assert answer.status_code == 302
            answer = client.get(answer.headers["location"])
        elif form == "link":
            answer = client.get(answer.json()["ftpHttp_link"] + "S-BIAD9001.json")
        assert answer.json()["accno"] == "S-BIAD9001"
        missing = client.get("/biostudies/api/v1/studies/S-BIAD1")
        assert (missing.status_code, missing.json()) == (404, {"errorMessage": "Study not found"})


@needs_data
def test_a_file_list_names_files_that_are_there(archives: httpx.Client) -> None:
    link = archives.get("/biostudies/api/v1/studies/S-BIAD9001/info").json()["httpLink"]
    listed = get(archives, "/biostudies/files/S-BIAD9001/plate images.json").json()
    assert len(listed) == 6
    for entry in listed:
        body = archives.get(f"{link}/Files/{urllib.parse.quote(entry['path'])}").content
        assert len(body) == entry["size"]
        assert tifffile.imread(io.BytesIO(body)).shape == (256, 256)
        values = {attribute["name"]: attribute["value"] for attribute in entry["attributes"]}
        assert f"{values['Well']}_s{values['Site']}_w{values['Channel']}" in entry["path"]
    moved = get(archives, f"/biostudies/files/S-BIAD9001/{listed[0]['path']}")
    assert moved.headers["location"].endswith("/S-BIAD9001/Files/plate%20%5B1%5D/9987_B02_s1_w1.TIF")
    page_tab = json.dumps(archives.get(f"{link}/S-BIAD9001.json").json())
    assert all(trap in page_tab for trap in ('"links": {}', '"subsections": [[', "null"))

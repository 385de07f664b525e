"""Files of archives: the same from a folder and over HTTP, whatever the server does."""

import pickle
import random
import re
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from archive_server import Answer, ArchiveServer, Fault

from bie_stream.errors import SourceError, SourceMissing
from shardgen import files
from shardgen.endpoints import Endpoints
from shardgen.files import Files, Http, Transfer, fetch, open_files
from shardgen.request import Request

FAST = Transfer(timeout_s=0.3, pause_s=0.01, longest_pause_s=0.05)
NAMES = [
    "a.tif",
    "plate 1/x y.tif",
    "S[2454]/2020+0200[6690]/#1 100%.tif",
    "S[2454]/Ü&é;=.tif",
    "z/.zattrs",
    "z/a:b.tif",
]
BODY = random.Random(0).randbytes(300_000)


@pytest.fixture
def tree(tmp_path: Path) -> Mapping[str, bytes]:
    """A small tree, written below `tmp_path`: bytes by path."""
    tree = {name: random.Random(name).randbytes(1000 + 7 * i) for i, name in enumerate(NAMES)} | {"empty": b""}
    for name, data in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tree


def served(server: ArchiveServer, transfer: Transfer = FAST) -> Files:
    return open_files(f"{server.url}/tree/", transfer)


def of(tree: Mapping[str, bytes]) -> dict[str, bytes]:
    """A tree as the server has it."""
    return {f"/tree/{name}": data for name, data in tree.items()}


def test_a_folder_and_a_server_give_the_same_bytes_sizes_and_names(tmp_path: Path, tree: Mapping[str, bytes]) -> None:
    parts = [(0, None), (0, 0), (10, 19), (990, None), (990, 5000), (5000, 5001), (0, 99_999)]
    with ArchiveServer(of(tree)) as server:
        for root in (open_files(tmp_path), served(server)):
            for name, data in tree.items():
                assert root.size(name) == len(data)
                for first, last in parts:
                    assert root.read(name, first, last) == data[first : None if last is None else last + 1]
            assert root.list() == ["S[2454]/", "a.tif", "empty", "plate 1/", "z/"]
            assert root.list("S[2454]/2020+0200[6690]") == ["#1 100%.tif"]
            assert root.list("z/") == [".zattrs", "a:b.tif"]
            assert sorted(files.walk(root)) == sorted(tree)


def test_blanks_brackets_plus_and_others_are_escaped_in_addresses() -> None:
    path = "SARS-CoV2[2454]/2020-03-31T111336+0200[6690]/plate 11001_é#1%.tif"
    address = Http("https://host/IDR").url(path)
    assert address == (
        "https://host/IDR/SARS-CoV2%5B2454%5D/2020-03-31T111336%2B0200%5B6690%5D/plate%2011001_%C3%A9%231%25.tif"
    )
    assert httpx.URL(address).raw_path.decode() == address.removeprefix("https://host")  # what is sent


def test_files_can_be_sent_to_workers(tmp_path: Path) -> None:
    for root in (open_files(tmp_path), open_files("https://host/tree/", FAST)):
        again = pickle.loads(pickle.dumps(root))
        assert again == root
        assert hash(again) == hash(root)
    assert open_files("https://host/tree/").root == "https://host/tree"


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "a\\..\\secret", "a\0b", "..", "a/.."])
def test_no_path_leaves_its_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("no")
    with ArchiveServer({"/secret": b"no", "/tree/a/b": b"yes"}) as server:
        for root in (open_files(tmp_path / "root"), served(server)):
            for ask in (root.read, root.size, root.list):
                with pytest.raises(SourceError, match=re.escape(repr(path))):
                    ask(path)
        assert not server.requests


def test_no_link_leaves_its_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "own").write_text("yes")
    (tmp_path / "secret").write_text("no")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    (tmp_path / "root" / "in").symlink_to("own")
    (tmp_path / "also").symlink_to("root")
    for root in (open_files(tmp_path / "root"), open_files(tmp_path / "also")):
        assert root.read("in") == b"yes"
        for path in ("out", "up/secret"):
            with pytest.raises(SourceError, match="leads out"):
                root.read(path)
            with pytest.raises(SourceError, match="leads out"):
                root.size(path)


def test_escaped_dots_are_a_name_and_no_way_out(tmp_path: Path) -> None:
    with ArchiveServer({"/secret": b"no", "/tree/%2e%2e/secret": b"a name"}) as server:
        assert served(server).read("%2e%2e/secret") == b"a name"


def test_what_is_not_there_is_missing_and_is_asked_for_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with ArchiveServer({"/tree/file": b"x"}) as server:
        for root in (open_files(tmp_path), served(server)):
            for path in ("none", "none/at/all", "file/below"):
                for ask in (root.read, root.size, root.list):
                    with pytest.raises(SourceMissing, match=re.escape(path)):
                        ask(path)
            with pytest.raises(SourceMissing):
                root.list("file")
        assert server.asked["/tree/none"] == 2
    with pytest.raises(SourceMissing):
        open_files(tmp_path).size("")


@pytest.mark.parametrize("fault", ["503", "429", "stall", "truncate"])
def test_what_fails_now_and_then_is_asked_for_again(fault: Fault) -> None:
    with ArchiveServer({"/tree/a": BODY}) as server:
        server.fail("/tree/a", fault, fault, fault)
        assert served(server).read("a") == BODY
        assert served(server).size("a") == len(BODY)
        assert [request.fault for request in server.requests] == [fault] * 3 + [None] * 2


@pytest.mark.parametrize("fault", ["503", "429"])
def test_a_size_is_asked_for_again_too(fault: Fault) -> None:
    with ArchiveServer({"/tree/a": BODY}) as server:
        server.fail("/tree/a", fault, fault)
        assert served(server).size("a") == len(BODY)
        assert [request.method for request in server.requests] == ["HEAD"] * 3


def test_a_server_is_left_alone_for_as_long_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    with ArchiveServer({"/tree/a": BODY}, retry_after="7") as server:
        server.fail("/tree/a", "429", "503", "503", "503")
        transfer = replace(FAST, pause_s=1.0, longest_pause_s=10.0)
        assert served(server, transfer).read("a") == BODY
        server.fail("/tree/a", "429")
        served(server).read("a")
    assert pauses[0] == 7
    assert [low <= pause <= 2 * low for low, pause in zip((1, 2, 4), pauses[1:4])] == [True] * 3
    assert pauses[4] == 0.05  # nobody makes us wait for longer than we want to


@pytest.mark.parametrize("wish", ["soon", "²", "-1", "Fri, 07 Feb 2025 19:49:00 GMT"])
def test_a_wish_that_is_no_number_of_seconds_does_no_harm(wish: str) -> None:
    with ArchiveServer({"/tree/a": BODY}, retry_after=wish) as server:
        server.fail("/tree/a", "429")
        assert served(server).read("a") == BODY


@pytest.mark.parametrize("fault", ["stall", "truncate"])
@pytest.mark.parametrize(("first", "last"), [(0, None), (100_000, None), (0, 250_000), (1000, 200_999)])
def test_a_broken_connection_goes_on_where_it_stopped(fault: Fault, first: int, last: int | None) -> None:
    expected = BODY[first : None if last is None else last + 1]
    with ArchiveServer({"/tree/a": BODY}) as server:
        server.fail("/tree/a", fault, fault)
        assert served(server).read("a", first, last) == expected
        assert server.bytes_sent == len(expected)  # none was sent twice
        half, quarter = first + len(expected) // 2, first + len(expected) // 2 + (len(expected) + 1) // 2 // 2
        end = "" if last is None else last
        assert [request.range for request in server.requests[1:]] == [f"bytes={half}-{end}", f"bytes={quarter}-{end}"]


def versions(*bodies: bytes) -> Callable[[], bytes]:
    """A file that is another at each request; the last stays."""
    left = deque(bodies)
    return lambda: left.popleft() if len(left) > 1 else left[0]


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("new", [BODY[::-1], BODY[:1000], BODY + BODY])
def test_a_file_that_changed_meanwhile_is_fetched_anew(if_range: bool, new: bytes) -> None:
    with ArchiveServer({"/tree/a": versions(BODY, new)}, if_range=if_range) as server:
        server.fail("/tree/a", "truncate")
        assert served(server).read("a") == new
    with ArchiveServer({"/tree/a": versions(BODY, new)}, if_range=if_range) as server:
        server.fail("/tree/a", "truncate")
        assert served(server).read("a", 500, 200_000) == new[500:200_001]


def test_without_a_strong_tag_the_file_is_fetched_anew() -> None:
    with ArchiveServer({"/tree/a": versions(BODY, BODY[::-1])}, etag="weak") as server:
        server.fail("/tree/a", "truncate")
        assert served(server).read("a") == BODY[::-1]
        assert [request.range for request in server.requests] == [None, None]


def test_without_a_tag_the_date_tells_that_it_is_the_same_file() -> None:
    with ArchiveServer({"/tree/a": BODY}, etag="none") as server:
        server.fail("/tree/a", "truncate")
        assert served(server).read("a") == BODY
        assert server.bytes_sent == len(BODY)


def test_a_server_without_ranges_gives_the_right_bytes() -> None:
    with ArchiveServer({"/tree/a": BODY}, ranges=False) as server:
        root = served(server)
        assert root.read("a", 1000, 1999) == BODY[1000:2000]
        assert root.read("a", 290_000) == BODY[290_000:]
        assert root.read("a", 400_000) == b""
        server.fail("/tree/a", "truncate", "stall")
        assert root.read("a", 10, 250_000) == BODY[10:250_001]
        server.fail("/tree/a", "stall", "truncate")
        assert root.read("a") == BODY


DIGESTS = ["Repr-Digest", "Digest", "x-goog-hash", "Content-Digest", "Content-MD5"]
OF_S3 = ["x-amz-checksum-sha256", "x-amz-checksum-crc32c"]
OF_FILE = DIGESTS[:3]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_file_that_has_not_the_checksum_its_server_states_is_fetched_anew(name: str) -> None:
    with ArchiveServer({"/tree/a": BODY}, digests=[name]) as server:
        server.fail("/tree/a", "corrupt", "corrupt")
        assert served(server).read("a") == BODY
        assert [(request.fault, request.range) for request in server.requests] == [
            ("corrupt", None), ("corrupt", None), (None, None),
        ]  # fmt: skip


@pytest.mark.parametrize("name", OF_S3)
def test_s3_is_asked_for_checksums_and_no_other_server_is(name: str) -> None:
    with ArchiveServer({"/bucket/tree/a": BODY}, digests=[name]) as server:
        request = Request(transfer=FAST, endpoints=Endpoints(s3=server.url))
        server.fail("/bucket/tree/a", "corrupt")
        assert request.files("s3://bucket/tree").read("a") == BODY
        assert len(server.requests) == 2
        request.files(f"{server.url}/bucket/tree").read("a")
        assert ["x-amz-checksum-mode" in request.headers for request in server.requests] == [True, True, False]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_file_that_never_has_its_checksum_is_one_error_that_says_so(name: str) -> None:
    with ArchiveServer({"/tree/a": BODY}, digests=[name]) as server:
        server.fail("/tree/a", *["corrupt"] * 3)
        algorithm = "md5" if name in ("Content-MD5", "x-goog-hash") else r"sha-(256|512)"
        with pytest.raises(SourceError, match=rf"/tree/a: what came has another {algorithm} .* after 3 tries"):
            served(server, replace(FAST, tries=3)).read("a")


@pytest.mark.parametrize("name", DIGESTS)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_is_not_held_against_the_checksum_of_the_whole_nor_the_whole_against_that_of_a_part(
    name: str, ranges: bool
) -> None:
    with ArchiveServer({"/tree/a": BODY}, digests=[name], ranges=ranges) as server:
        root = served(server)
        assert root.read("a", 10, 19) == BODY[10:20]
        assert root.read("a", 10) == BODY[10:]
        assert root.read("a", 0, 19) == BODY[:20]
        assert root.read("a", 0, 400_000) == BODY
        assert len(server.requests) == 4
        server.fail("/tree/a", "truncate")
        assert root.read("a") == BODY
        assert len(server.requests) == 6


@pytest.mark.parametrize("name", DIGESTS)
def test_a_file_put_together_of_parts_has_the_checksum_of_the_whole(name: str) -> None:
    with ArchiveServer({"/tree/a": BODY}, digests=[name]) as server:
        server.fail("/tree/a", "truncate", "corrupt")
        assert served(server).read("a") == BODY
        assert [request.range for request in server.requests] == [None, "bytes=150000-", None]


@pytest.mark.parametrize("name", OF_FILE)
def test_a_file_that_ends_before_the_part_that_was_asked_for_has_the_checksum_of_the_whole(name: str) -> None:
    with ArchiveServer({"/tree/a": BODY}, digests=[name]) as server:
        server.fail("/tree/a", "corrupt")
        assert served(server).read("a", 0, 400_000) == BODY
        assert len(server.requests) == 2


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_held_against_its_own_checksum(if_range: bool) -> None:
    new = BODY[::-1]
    with ArchiveServer({"/tree/a": versions(BODY, new)}, if_range=if_range, digests=["Content-MD5"]) as server:
        server.fail("/tree/a", "truncate")
        assert served(server).read("a") == new


class _Malformed(ArchiveServer):
    """States checksums that are none."""

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        answer = super().answer(path, query, headers)
        nonsense = {"Repr-Digest": "sha-256=:AAAA:", "Content-MD5": "?", "x-goog-hash": "md5", "Digest": "=,=,"}
        return replace(answer, headers=answer.headers | nonsense)


def test_checksums_that_are_none_do_no_harm() -> None:
    with _Malformed({"/tree/a": BODY}) as server:
        assert served(server).read("a") == BODY
        assert len(server.requests) == 1


class _OtherPart(ArchiveServer):
    """Sends a part that begins one byte too early."""

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        wrong = {"range": "bytes=9-19"} if "range" in headers else {}
        return super().answer(path, query, {**headers, **wrong})


def test_a_part_that_was_not_asked_for_is_not_taken_for_it() -> None:
    with _OtherPart({"/tree/a": BODY}) as server, pytest.raises(SourceError, match="another part"):
        served(server, replace(FAST, tries=2)).read("a", 10, 19)


@pytest.mark.parametrize(
    ("fault", "reason"), [("503", "HTTP 503"), ("429", "HTTP 429"), ("stall", "timed out"), ("truncate", "closed")]
)
def test_a_file_that_never_comes_is_one_error_that_says_all(fault: Fault, reason: str) -> None:
    with ArchiveServer({"/tree/a b": BODY}) as server:
        server.fail("/tree/a b", *[fault] * 20)
        with pytest.raises(SourceError) as caught:
            served(server, replace(FAST, tries=3)).read("a b")
        assert not isinstance(caught.value, SourceMissing)
        for part in (f"{server.url}/tree/a%20b", reason, "3 tries"):
            assert part in str(caught.value)
        assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_an_error() -> None:
    with ArchiveServer({}) as server:
        url = server.url
    with pytest.raises(SourceError, match="2 tries"):
        fetch(f"{url}/a", replace(FAST, tries=2))


class _Circle(ArchiveServer):
    """Sends everybody round and round."""

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        return Answer(302, headers={"Location": path})


def test_redirects_in_a_circle_are_an_error() -> None:
    with _Circle({}) as server, pytest.raises(SourceError, match="redirects"):
        fetch(f"{server.url}/a", replace(FAST, tries=2))


class _Forbidden(ArchiveServer):
    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        return Answer(403, b"no")


def test_what_the_server_refuses_is_not_asked_for_again() -> None:
    with _Forbidden({}) as server:
        with pytest.raises(SourceError, match="HTTP 403"):
            served(server).read("a")
        assert len(server.requests) == 1


def test_no_host_has_more_connections_than_allowed() -> None:
    tree = {f"/tree/{i}": BODY[:5000] for i in range(200)}
    with ArchiveServer(tree, delay_s=0.002) as server:
        root = served(server, replace(FAST, timeout_s=10, connections=4))
        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(root.read, map(str, range(200)))) == [BODY[:5000]] * 200
        assert server.most_at_once == 4
        assert server.connections <= 8  # kept, and not one for each file


def test_a_connection_serves_one_request_after_another() -> None:
    with ArchiveServer({"/tree/a": BODY}) as server:
        root = served(server)
        for first in range(0, 100_000, 10_000):
            root.read("a", first, first + 9_999)
            root.size("a")
        root.read("a")
        assert server.connections == 1


class _Strange(ArchiveServer):
    """A listing that links to what is not below it."""

    def answer(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        links = [
            *("?C=N;O=D", "/pub/", "../", "..", ".", "./", "#top", "https://host/x", "//host/x", "mailto:a@b"),
            *("..%2Fx", "%2e%2e/", "a/b", "%2Fetc", "plate%201/", "x+y%5B1%5D.tif", "a&amp;b", "./1:2.tif", ""),
        ]
        return Answer(200, "".join(f'<a href="{link}">x</a><a name="n">' for link in links).encode())


def test_a_listing_gives_what_lies_in_the_folder_and_nothing_else() -> None:
    with _Strange({}) as server:
        assert served(server).list() == ["1:2.tif", "a&b", "plate 1/", "x+y[1].tif"]


def test_sizes_are_exact_where_a_listing_rounds_them() -> None:
    with ArchiveServer({"/tree/a": BODY}) as server:
        assert ">293K<" in fetch(f"{server.url}/tree/", FAST).decode()
        assert served(server).size("a") == 300_000
        assert [request.method for request in server.requests] == ["GET", "HEAD"]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, ranges: bool) -> None:
    with ArchiveServer({"/tree/a": BODY}, ranges=ranges) as server:
        root = served(server)
        monkeypatch.setattr(files, "LARGEST_BYTES", len(BODY))
        assert root.read("a") == BODY
        monkeypatch.setattr(files, "LARGEST_BYTES", len(BODY) - 1)
        assert root.read("a", 10, 19) == BODY[10:20]
        with pytest.raises(SourceError, match="larger than"):
            root.read("a")
        assert len(server.requests) == 3


def test_two_hundred_reads_from_a_bad_server_are_exact() -> None:
    tree = {f"/tree/plate [{i}].tif": random.Random(i).randbytes(2000 + i) for i in range(100)}
    parts: list[tuple[str, int, int | None]] = [(path, 0, None) for path in tree]
    parts += [(path, 100 + i, 1500 + i) for i, path in enumerate(tree)]
    with ArchiveServer(tree, faults=0.3, retry_after="0") as server:
        root = served(server)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda part: root.read(part[0].removeprefix("/tree/"), *part[1:]), parts))
        assert found == [tree[path][first : None if last is None else last + 1] for path, first, last in parts]
        assert {request.fault for request in server.requests} == {None, "503", "429", "stall", "truncate"}

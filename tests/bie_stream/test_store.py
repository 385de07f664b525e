"""Shards read over the network: real servers on loopback that fail, stall and cut; processes that are killed."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from archive_server import ArchiveServer
from s3_server import BUCKET, KEYS, Fault, Faulty, faulty, s3_server

import bie_stream
from bie_stream import store as store_module
from bie_stream.cache import Cache
from bie_stream.errors import DatasetError, DatasetNotFound, SampleError
from bie_stream.folder import RemoteFolder
from bie_stream.patience import Patience
from bie_stream.shards import MANIFEST, ShardEntry, read_manifest
from bie_stream.store import Counts, RemoteStore, open_store

BLOCK = 2**14  # bytes fetched at a time in these tests
SIZES = (300_001, 100_000)
BLOCKS = 19 + 7
DATA = [random.Random(number).randbytes(size) for number, size in enumerate(SIZES)]
QUICK = Patience(tries=3, limit_s=0.25, pause_s=0.05)
STEADY = Patience(tries=4, limit_s=10, pause_s=0.05)  # for a machine that is busy with other tests


def entries(data: Sequence[bytes] = DATA) -> list[ShardEntry]:
    return [
        ShardEntry(name=f"{number:06d}", samples=1, bytes=len(part), sha256=hashlib.sha256(part).hexdigest())
        for number, part in enumerate(data)
    ]


def store_at(
    url: str, cache: Path | None, *, patience: Patience = STEADY, limit: int | None = None, data: Sequence[bytes] = DATA
) -> RemoteStore:
    """Blocks of 16 KiB; a cache of its own, as another process has."""
    kept = None if cache is None else Cache(cache, limit)
    return RemoteStore(RemoteFolder(url, patience), entries(data), kept, BLOCK)


def spans(seed: int, count: int, longest: int = 3 * BLOCK) -> list[tuple[int, int, int]]:
    """Shard, offset and size of bytes anywhere."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        shard = chance.randrange(len(SIZES))
        size = chance.randrange(longest)
        found.append((shard, chance.randrange(SIZES[shard] - size), size))
    return found


def right(store: RemoteStore, span: tuple[int, int, int]) -> bool:
    shard, offset, size = span
    view = store.read(shard, offset, size)
    return view.readonly and view == DATA[shard][offset : offset + size]


def every_block() -> list[tuple[int, int, int]]:
    """A sample in each block."""
    return [(shard, at, 100) for shard, size in enumerate(SIZES) for at in range(0, size - 100, BLOCK)]


@pytest.fixture
def web() -> Iterator[ArchiveServer]:
    """A web server that lists no folder, with two shards at `{url}/zarr/plates`."""
    tree = {f"/zarr/plates/shards/{number:06d}.tar": data for number, data in enumerate(DATA)}
    with ArchiveServer(tree) as server:
        yield server
        forget_connections("http")


@pytest.fixture
def url(web: ArchiveServer) -> str:
    return f"{web.url}/zarr/plates"


TAR = "/zarr/plates/shards/000000.tar"


def forget_connections(kind: str) -> None:
    fsspec.get_filesystem_class(kind).clear_instance_cache()


def run(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Python code in a process of its own; `sys.argv[1:]` are the arguments."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    folders = [Path(__file__).parents[2], Path(__file__).parents[1], Path(__file__).parent]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.Popen(command, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> str:
    """What it printed; it must have ended well."""
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said == ""
    return out


def wait_for(condition: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


# ---- what is read, and what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_bytes_are_those_of_the_shard_wherever_blocks_end(url: str, tmp_path: Path, cached: bool) -> None:
    store = store_at(url, tmp_path if cached else None)
    whole = [(shard, 0, size) for shard, size in enumerate(SIZES)]
    ends = [(0, BLOCK - 1, 2), (0, BLOCK, BLOCK), (0, SIZES[0] - 1, 1), (1, 5, 0), (0, SIZES[0], 0)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda span: right(store, span), [*spans(0, 60), *whole, *ends, *spans(1, 60)]))
    with pytest.raises(SampleError, match=r"000001\.tar ends at byte 100000, wanted 99999..100001"):
        store.read(1, 99_999, 2)


def test_each_block_is_asked_for_once_and_a_second_epoch_asks_nothing(
    web: ArchiveServer, url: str, tmp_path: Path
) -> None:
    first = store_at(url, tmp_path)
    assert all(right(first, span) for span in [*spans(0, 80), *every_block()])
    assert len(web.requests) == BLOCKS
    assert first.counts.requests == BLOCKS
    assert first.counts.fetched_bytes == web.bytes_sent == sum(SIZES)
    assert first.counts.misses == BLOCKS
    another = store_at(url, tmp_path)
    for store in (first, another):
        assert all(right(store, span) for span in spans(2, 80))
    assert len(web.requests) == BLOCKS
    assert another.counts.requests == another.counts.misses == another.counts.fetched_bytes == 0
    assert another.counts.hits >= 80


def test_without_a_cache_only_what_is_read_is_asked_for(web: ArchiveServer, url: str) -> None:
    store = store_at(url, None)
    assert right(store, (0, BLOCK - 50, 100))
    assert right(store, (0, BLOCK - 50, 100))
    assert [request.range for request in web.requests] == [f"bytes={BLOCK - 50}-{BLOCK + 49}"] * 2
    store.prefetch(0, 0, 10)  # there is nowhere to put it
    store.forget(0, 0, 10)
    assert len(web.requests) == 2


def test_threads_that_want_one_block_make_one_request(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.delay_s = 0.3
    store, together = store_at(url, tmp_path), threading.Barrier(16)

    def read(number: int) -> bool:
        together.wait()
        return right(store, (0, 100 * number, 100))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))
    assert len(web.requests) == 1


def test_a_read_over_many_blocks_fetches_them_together(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.delay_s = 0.2
    assert right(store_at(url, tmp_path), (0, 0, 12 * BLOCK))
    assert len(web.requests) == 12
    assert web.most_at_once >= 6


def test_a_store_is_never_asked_for_too_much_at_once(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.delay_s = 0.05
    store = store_at(url, tmp_path)
    with ThreadPoolExecutor(64) as pool:
        for span in every_block():
            store.prefetch(*span)
        assert all(pool.map(lambda span: right(store, span), every_block()))
    assert len(web.requests) == BLOCKS
    assert 8 <= web.most_at_once <= 16


def test_what_is_asked_for_ahead_is_there_when_it_is_read(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.delay_s = 0.2
    store = store_at(url, tmp_path)
    start = time.monotonic()
    for span in every_block():
        store.prefetch(*span)
    assert time.monotonic() - start < 1
    wait_for(lambda: store.counts.fetched_bytes == sum(SIZES))
    wait_for(lambda: all(right(store, span) for span in every_block()))
    assert len(web.requests) == BLOCKS
    before = store.counts
    assert all(right(store, span) for span in every_block())
    assert store.counts.hits == before.hits + BLOCKS
    for span in every_block():
        store.prefetch(*span)
    assert len(web.requests) == BLOCKS


def test_what_waits_to_be_fetched_ahead_is_bounded(
    web: ArchiveServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_AHEAD_MOST", 2)
    web.delay_s = 0.5
    store = store_at(url, tmp_path)
    for span in every_block():
        store.prefetch(*span)
    wait_for(lambda: not any("aside" in thread.name for thread in threading.enumerate()))
    assert 2 <= len(web.requests) <= 8 + 2
    web.delay_s = 0
    assert all(right(store, span) for span in every_block())  # the others are fetched when they are read


def test_what_could_not_be_fetched_ahead_is_fetched_when_it_is_read(
    web: ArchiveServer, url: str, tmp_path: Path
) -> None:
    store = store_at(url, tmp_path, patience=QUICK)
    web.fail(TAR, "503", "503", "503")
    store.prefetch(0, 0, 10)
    wait_for(lambda: len(web.requests) == 3)
    wait_for(lambda: not any("aside" in thread.name for thread in threading.enumerate()))
    assert right(store, (0, 0, 10))


def test_bytes_that_came_wrong_can_be_fetched_anew(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    store = store_at(url, tmp_path)
    web.fail(TAR, "corrupt")
    assert not right(store, (0, 0, BLOCK))
    assert not right(store, (0, 0, BLOCK))
    store.forget(0, 0, BLOCK)
    assert right(store, (0, 0, BLOCK))


def test_a_shard_built_anew_is_another(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    assert all(right(store_at(url, tmp_path), span) for span in every_block())
    anew = [bytes(reversed(data)) for data in DATA]
    for number, data in enumerate(anew):
        web.tree[f"/zarr/plates/shards/{number:06d}.tar"] = data
    store = store_at(url, tmp_path, data=anew)
    assert all(store.read(*span) == anew[span[0]][span[1] : span[1] + span[2]] for span in spans(0, 50))


# ---- what fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["503", "429", "truncate", "stall"])
def test_what_fails_and_passes_is_asked_for_again(
    web: ArchiveServer, url: str, tmp_path: Path, fault: Any
) -> None:  # fmt: skip
    store = store_at(url, tmp_path, patience=Patience(tries=3, limit_s=0.5 if fault == "stall" else 10, pause_s=0.05))
    web.fail(TAR, fault, fault)
    assert right(store, (0, 0, BLOCK))
    assert store.counts.retries == 2
    assert store.counts.requests == len(web.requests) == 3


@pytest.mark.parametrize(
    ("fault", "said"), [("503", "503"), ("truncate", ""), ("stall", "no answer in 1 s")]
)  # fmt: skip
def test_what_never_passes_ends_in_bounded_time_and_names_the_shard(
    web: ArchiveServer, url: str, tmp_path: Path, fault: Any, said: str
) -> None:
    store = store_at(url, tmp_path, patience=QUICK)
    web.fail(TAR, *[fault] * 20)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:  # that wait for the same block
        errors = [reading.exception() for reading in [pool.submit(store.read, 0, 10, 20) for _ in range(4)]]
    assert time.monotonic() - start < QUICK.longest_s + 5
    for error in errors:
        assert isinstance(error, DatasetError)
        assert f"{url}/shards/000000.tar, bytes 10..30: " in str(error)
        assert said in str(error)
        assert "\n" not in str(error)
    assert len(web.requests) == 3
    web.faults.next.clear()
    assert right(store, (0, 10, 20))  # it is not held against the shard


def test_what_does_not_pass_is_asked_once(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    store = store_at(url, tmp_path)
    web.ranges = False
    with pytest.raises(DatasetError, match=r"300001 bytes came of 16384 asked for; the server must know ranges"):
        store.read(0, 0, 10)
    web.ranges = True
    web.tree[TAR] = DATA[0][:BLOCK]
    with pytest.raises(DatasetError, match=r"000000\.tar, bytes 16384..16394: 416"):
        store.read(0, BLOCK, 10)
    del web.tree[TAR]
    with pytest.raises(SampleError, match=r"000000\.tar is not there"):
        store.read(0, 0, 10)
    assert len(web.requests) == 3


def test_a_shard_that_became_shorter_is_an_error(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.tree[TAR] = DATA[0][: BLOCK + 100]
    store = store_at(url, tmp_path, patience=QUICK)
    with pytest.raises(DatasetError, match=r"000000\.tar, bytes 16384..16394: 100 bytes came of 16384 asked for"):
        store.read(0, BLOCK, 10)
    assert right(store, (0, 0, BLOCK))


def test_a_server_that_is_gone_is_an_error_in_bounded_time(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"000000\.tar, bytes 0..10"):
        store_at("http://127.0.0.1:9/plates", tmp_path, patience=QUICK).read(0, 0, 10)
    forget_connections("http")


def test_a_store_that_is_not_asynchronous_is_waited_for_no_longer(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/plates/shards/000000.tar", DATA[0])
    assert right(store_at("memory://plates", tmp_path), (0, 5, 50))
    pipe = tmp_path / "shards" / "000000.tar"
    pipe.parent.mkdir()
    os.mkfifo(pipe)  # to open it waits for a writer, for ever
    with pytest.raises(DatasetError, match=r"no answer in 0\.1 s"):
        store_at(f"file://{tmp_path}", tmp_path / "c", patience=Patience(1, 0.1, 0)).read(0, 0, 10)
    with pipe.open("wb"):
        pass  # lets it go


def test_a_cache_that_cannot_be_written_is_done_without(
    web: ArchiveServer, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = store_at(url, tmp_path / "file" / "cache")
    assert all(right(store, span) for span in spans(0, 20))
    assert len(caplog.records) == 1
    web.requests.clear()
    assert right(store, (0, 7, 11))
    assert [request.range for request in web.requests] == ["bytes=7-17"]


def test_reading_leaves_nothing_behind(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    """Of files, threads and maps, over thousands of reads of a cache that is smaller than the data."""
    store = store_at(url, tmp_path, limit=12 * (BLOCK + 4))

    def held() -> list[int]:
        wait_for(lambda: not any("aside" in thread.name for thread in threading.enumerate()))
        folders = [len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")]
        return [*folders, Path("/proc/self/maps").read_text().count("\n")]

    def use(rounds: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda span: right(store, span), spans(rounds, rounds, BLOCK)))

    use(100)
    before = held()
    use(600)
    assert all(now <= then + 10 for now, then in zip(held(), before, strict=True)), (before, held())
    assert store.counts.misses > 2 * BLOCKS


# ---- several processes ----------------------------------------------------------------------------------------------


_READ = """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from test_store import every_block, right, spans, store_at
    url, folder, limit, passes, seed = *sys.argv[1:3], *map(int, sys.argv[3:])
    store = store_at(url, Path(folder), limit=limit or None)
    with ThreadPoolExecutor(4) as pool:
        for number in range(passes):
            assert all(pool.map(lambda span: right(store, span), [*every_block(), *spans(seed + number, 50)]))
    print(store.counts.requests, store.counts.hits)
"""


def test_two_processes_at_once_fetch_most_blocks_once(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.delay_s = 0.05
    readers = [run(_READ, url, tmp_path, 0, 2, seed) for seed in (0, 100)]
    requests = [int(ended(reader).split()[0]) for reader in readers]
    assert BLOCKS <= sum(requests) == len(web.requests) <= 1.3 * BLOCKS


def test_two_processes_run_on_a_cache_smaller_than_the_data_and_stay_under_its_limit(
    web: ArchiveServer, url: str, tmp_path: Path
) -> None:
    limit = 18 * (BLOCK + 4)
    readers = [run(_READ, url, tmp_path, limit, 4, seed) for seed in (0, 100)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        with contextlib.suppress(FileNotFoundError):
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("??/*")))
        time.sleep(0.005)
    assert all(int(ended(reader).split()[1]) > 50 for reader in readers)
    assert limit // 2 < most <= limit


def test_a_process_killed_in_the_middle_leaves_nothing_that_is_believed(
    web: ArchiveServer, url: str, tmp_path: Path
) -> None:
    web.delay_s = 0.05
    for _ in range(2):
        killed = run(_READ, url, tmp_path, 0, 1, 0)
        asked = len(web.requests)
        wait_for(lambda asked=asked: len(web.requests) >= asked + 5)  # type: ignore[misc]
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert 0 < len(list(tmp_path.glob("??/*"))) < BLOCKS
    start = time.monotonic()
    assert all(right(store_at(url, tmp_path), span) for span in [*every_block(), *spans(0, 50)])
    assert time.monotonic() - start < STEADY.limit_s  # what it had claimed is free


def test_a_program_ends_though_fetches_are_under_way(web: ArchiveServer, url: str, tmp_path: Path) -> None:
    web.fail(TAR, *["stall"] * 20)
    process = run(
        """
        import sys
        from pathlib import Path
        from test_store import every_block, store_at
        store = store_at(sys.argv[1], Path(sys.argv[2]))
        for span in every_block():
            store.prefetch(*span)
        print("asked", flush=True)
        """,
        url, tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    start = time.monotonic()
    assert ended(process) == ""
    assert time.monotonic() - start < 5


# ---- a whole dataset ------------------------------------------------------------------------------------------------


@pytest.fixture
def plates(plate_dataset: Path) -> Iterator[ArchiveServer]:
    """A web server that has the dataset at `/zarr/plates`, and lists no folder."""
    files = [path for path in plate_dataset.rglob("*") if path.is_file()]
    with ArchiveServer({f"/zarr/plates/{path.relative_to(plate_dataset)}": path for path in files}) as server:
        yield server
        forget_connections("http")


def _tars(server: ArchiveServer) -> int:
    return sum(request.path.endswith(".tar") and request.method == "GET" for request in server.requests)


def test_a_dataset_on_a_web_server_is_the_one_on_disk(
    plates: ArchiveServer, plate_dataset: Path, cache_folder: Path
) -> None:
    here, there = bie_stream.open(plate_dataset), bie_stream.open(f"{plates.url}/zarr/plates/")
    assert there.table.equals(here.table)
    for _ in range(2):
        for sample in range(len(here)):
            np.testing.assert_array_equal(there[sample], here[sample])
    assert _tars(plates) == len(here.manifest.shards)
    assert there.store.counts.requests == 3
    assert here.store.counts == Counts()
    assert len(list(cache_folder.glob("??/*"))) == 3
    uncached = bie_stream.open(f"{plates.url}/zarr/plates", split="train", cache_bytes=0)
    np.testing.assert_array_equal(uncached[0], bie_stream.open(plate_dataset, split="train")[0])
    assert uncached.store.counts.fetched_bytes < 50_000


def test_to_open_a_dataset_outlasts_faults_and_ends_where_they_do_not(plates: ArchiveServer) -> None:
    where = "/zarr/plates"
    for path in (f"{where}/{MANIFEST}", f"{where}/shards/000001.parquet"):
        plates.fail(path, "503", "truncate", "429")
    assert len(bie_stream.open(RemoteFolder(plates.url + where, STEADY))) == 10
    plates.fail(f"{where}/{MANIFEST}", *["stall"] * 20)
    with pytest.raises(DatasetError, match=r"dataset\.json: no answer in 1 s"):
        bie_stream.open(RemoteFolder(plates.url + where, QUICK))
    plates.faults.next.clear()
    plates.fail(f"{where}/shards/000001.tar", *["503"] * 20)  # its size: nothing says that it is missing
    with pytest.raises(DatasetError, match=r"000001\.tar: 503"):
        bie_stream.open(RemoteFolder(plates.url + where, QUICK))


def test_nothing_on_a_web_server_is_told_from_a_missing_shard(plates: ArchiveServer) -> None:
    with pytest.raises(DatasetNotFound, match="nothing is there"):
        bie_stream.open(f"{plates.url}/zarr/other")
    del plates.tree["/zarr/plates/shards/000001.tar"]
    with pytest.raises(DatasetError, match=r"000001\.tar is missing"):
        bie_stream.open(f"{plates.url}/zarr/plates")


def test_a_manifest_cannot_name_files_outside_the_cache(plate_dataset: Path) -> None:
    shard = read_manifest(plate_dataset).shards[0]
    for wrong in ("../../../etc/passwd", "", shard.sha256.upper(), shard.sha256[:-1]):
        with pytest.raises(DatasetError, match="expected 64 digits of 0-f"):
            open_store(RemoteFolder("http://host/plates"), [shard.model_copy(update={"sha256": wrong})])


# ---- S3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def s3_url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def s3(port: int, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """A store that has the two shards, and fails only where a test says so."""
    with faulty(port) as proxy:
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        for number, data in enumerate(DATA):
            fsspec.filesystem("s3").pipe_file(f"{s3_url}/shards/{number:06d}.tar", data)
        yield proxy
    forget_connections("s3")


@pytest.mark.parametrize("fault", ["503", "500", "cut", "stall"])
def test_an_object_store_that_fails_now_and_then_is_read_whole(
    s3: Faulty, s3_url: str, tmp_path: Path, fault: Fault
) -> None:
    s3.fault, s3.only, s3.each = fault, ".tar", 4
    store = store_at(s3_url, tmp_path, patience=Patience(tries=6, limit_s=0.5, pause_s=0.05))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda span: right(store, span), [*every_block(), *spans(0, 30)]))
    assert s3.faults >= 6
    s3.each, asked = 0, len(s3.asked)
    assert all(right(store, span) for span in spans(1, 50))
    assert len(s3.asked) == asked


def test_an_object_store_that_stalls_is_an_error_in_bounded_time(s3: Faulty, s3_url: str, tmp_path: Path) -> None:
    s3.fault, s3.each, patience = "stall", 1, Patience(tries=2, limit_s=0.3, pause_s=0.05)
    start = time.monotonic()
    with pytest.raises(DatasetError, match=r"000000\.tar, bytes 0..10: no answer in 0.6 s"):
        store_at(s3_url, tmp_path, patience=patience).read(0, 0, 10)
    with pytest.raises(DatasetError, match=r"no answer in 0.6 s"):
        bie_stream.open(RemoteFolder(s3_url, patience))
    assert time.monotonic() - start < 2 * patience.longest_s + 10

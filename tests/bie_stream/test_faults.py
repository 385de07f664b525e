"""What a loader does when what it reads is bad, gone, late or cut: on disk, and on a web server that really fails.

A sample that is bad is left out, counted and replaced, the same everywhere; a store that does not answer ends the run.
Nothing hangs, and no thread stays behind.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from archive_server import ArchiveServer

import bie_stream
from bie_stream import Batch, Dataset, DatasetError, Loader
from bie_stream.folder import RemoteFolder
from bie_stream.patience import Patience
from bie_stream.shards import shard_file, tar_path

QUICK = Patience(tries=3, limit_s=0.25, pause_s=0.05)
STEADY = Patience(tries=4, limit_s=10, pause_s=0.05)  # for a machine that is busy with other tests
WHERE = "/zarr/plates"
ASKED: dict[str, Any] = {"batch_size": 5, "crop": 48, "threads": 2, "shuffle": "blocked"}


@pytest.fixture
def server(own_plate_dataset: Path) -> Iterator[ArchiveServer]:
    """A web server that has a dataset, and lists no folder."""
    files = [path for path in own_plate_dataset.rglob("*") if path.is_file()]
    with ArchiveServer({f"{WHERE}/{path.relative_to(own_plate_dataset)}": path for path in files}) as server:
        yield server
        fsspec.get_filesystem_class("http").clear_instance_cache()


def _served(server: ArchiveServer, patience: Patience = STEADY, cache_bytes: int | None = None) -> Dataset:
    return bie_stream.open(RemoteFolder(server.url + WHERE, patience), cache_bytes=cache_bytes)


def _tar(name: str) -> str:
    return f"{WHERE}/{shard_file(name)}"


def _asked(server: ArchiveServer) -> int:
    return sum(request.path.endswith(".tar") and request.method == "GET" for request in server.requests)


def _damage(root: Path, sample: int) -> None:
    row = bie_stream.open(root).table.to_pylist()[sample]
    path = tar_path(root, f"{row['shard']:06d}")
    data = bytearray(path.read_bytes())
    data[row["offset"] + 200] ^= 255
    path.write_bytes(data)


def _same(got: Sequence[Batch], expected: Sequence[Batch]) -> bool:
    pairs = list(zip(got, expected, strict=True))
    return all(torch.equal(a.ids, b.ids) and torch.equal(a.images, b.images) for a, b in pairs)


def _nothing_stays() -> None:
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("bie_stream") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, [thread.name for thread in threading.enumerate()]
        time.sleep(0.05)


@pytest.mark.parametrize("fault", ["503", "429", "stall", "truncate", "corrupt"])
@pytest.mark.parametrize("cached", [True, False])
def test_faults_on_the_way_that_pass_change_nothing(
    server: ArchiveServer, own_plate_dataset: Path, fault: Any, cached: bool
) -> None:
    expected = list(Loader(bie_stream.open(own_plate_dataset), **ASKED))
    patience = Patience(tries=4, limit_s=0.5, pause_s=0.05) if fault == "stall" else STEADY
    dataset = _served(server, patience, None if cached else 0)
    for name in ("000000", "000001", "000002"):
        server.fail(_tar(name), fault)
    loader = Loader(dataset, **ASKED)
    assert _same(list(loader), expected)
    report = loader.report()
    assert report["bad_samples"] == []
    assert report["store"]["retries"] >= (0 if fault == "corrupt" else 3)
    _nothing_stays()


def test_a_second_epoch_of_a_store_asks_nothing_and_reads_ahead_in_the_first(server: ArchiveServer) -> None:
    loader = Loader(_served(server), **ASKED)
    list(loader)
    asked = _asked(server)
    assert asked == 3
    list(loader)
    assert _asked(server) == asked
    assert loader.report()["store"]["requests"] == 3
    assert loader.report()["store"]["retries"] == 0


def test_what_a_later_batch_needs_is_asked_for_before_it_is_its_turn(server: ArchiveServer) -> None:
    loader = Loader(_served(server), **{**ASKED, "batch_size": 1, "threads": 1, "shuffle": "everywhere"}, seed=3)
    shards = [int(loader.dataset.shards[i]) for i in loader.order.batch(0, batch_size=10, seed=3, epoch=0).ids]
    second = next(step for step, shard in enumerate(shards) if shard != shards[0])
    stream = iter(loader)
    for _ in range(second):
        next(stream)
    assert len({request.path for request in server.requests if request.path.endswith(".tar")}) >= 2
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    _nothing_stays()


def test_a_cache_smaller_than_the_data_gives_the_same_batches(server: ArchiveServer, own_plate_dataset: Path) -> None:
    expected = list(Loader(bie_stream.open(own_plate_dataset), **ASKED))
    largest = max(shard.bytes for shard in bie_stream.open(own_plate_dataset).manifest.shards)
    assert _same(list(Loader(_served(server, cache_bytes=largest + 10), **ASKED)), expected)


@pytest.mark.parametrize("remote", [True, False])
def test_a_changed_byte_costs_one_sample_which_is_named_counted_and_replaced(
    server: ArchiveServer, own_plate_dataset: Path, remote: bool
) -> None:
    _damage(own_plate_dataset, 3)
    loader = Loader(_served(server) if remote else bie_stream.open(own_plate_dataset), **ASKED, max_bad_fraction=0.1)
    for _ in range(2):
        ids = [int(sample) for batch in loader for sample in batch.ids]
        assert Counter(ids) == Counter([0, 1, 2, 4, 4, 5, 6, 7, 8, 9])
    (bad,) = loader.report()["bad_samples"]
    assert (bad["dataset"], bad["id"]) == (0, 3)
    assert re.search("has changed: crc32c", bad["why"])
    _nothing_stays()


@pytest.mark.parametrize("remote", [True, False])
def test_a_shard_that_vanishes_costs_its_samples_up_to_the_budget(
    server: ArchiveServer, own_plate_dataset: Path, remote: bool
) -> None:
    dataset = _served(server) if remote else bie_stream.open(own_plate_dataset)
    gone = {int(sample) for sample in (dataset.shards == 1).nonzero()[0]}
    if remote:
        del server.tree[_tar("000001")]
    else:
        tar_path(own_plate_dataset, "000001").unlink()
    loader = Loader(dataset, **ASKED, max_bad_fraction=0.4)
    ids = [int(sample) for batch in loader for sample in batch.ids]
    assert not gone & set(ids)
    assert len(ids) == 10
    assert {bad["id"] for bad in loader.report()["bad_samples"]} == gone
    with pytest.raises(DatasetError, match=r"2 unreadable samples, at most 1 of 10 may be unreadable here"):
        list(Loader(dataset, **ASKED, max_bad_fraction=0.1))
    _nothing_stays()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_cut_or_gone_before_the_start_is_refused_at_once(own_plate_dataset: Path, damage: str) -> None:
    path = tar_path(own_plate_dataset, "000002")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DatasetError, match=r"000002\.tar"):
        bie_stream.open(own_plate_dataset)


@pytest.mark.parametrize("column", ["offset", "size", "crc32c", "shape"])
def test_a_table_that_does_not_fit_its_tar_costs_its_samples_up_to_the_budget(
    own_plate_dataset: Path, column: str
) -> None:
    path = own_plate_dataset / shard_file("000000", ".parquet")
    table = pq.read_table(path, use_threads=False)
    old = table[column].to_pylist()
    new = [[*old[0][:2], old[0][2] + 1] if column == "shape" else old[0] + 1, *old[1:]]
    index, kind = table.schema.get_field_index(column), table.schema.field(column)
    pq.write_table(table.set_column(index, kind, pa.array(new, kind.type)), path)
    dataset = bie_stream.open(own_plate_dataset)
    loader = Loader(dataset, **ASKED, max_bad_fraction=0.1)
    ids = [int(sample) for batch in loader for sample in batch.ids]
    assert 0 not in ids
    assert [bad["id"] for bad in loader.report()["bad_samples"]] == [0]


@pytest.mark.parametrize(("fault", "said"), [("503", "503"), ("stall", "no answer in"), ("truncate", "not completed")])
def test_a_store_that_goes_on_failing_ends_the_run_and_blames_no_sample(
    server: ArchiveServer, fault: Any, said: str
) -> None:
    loader = Loader(_served(server, QUICK), **ASKED, max_bad_fraction=0.9)
    for name in ("000000", "000001", "000002"):
        server.fail(_tar(name), *[fault] * 40)
    start = time.monotonic()
    with pytest.raises(DatasetError, match=rf"\.tar, bytes \d+\.\.\d+: .*{said}.*; see the network and the store"):
        list(loader)
    assert time.monotonic() - start < 10 * QUICK.longest_s
    assert loader.report()["bad_samples"] == []
    assert loader.report()["store"]["retries"] >= 2
    _nothing_stays()
    server.faults.next.clear()
    assert len(list(loader)) == 2  # and goes on where it stood

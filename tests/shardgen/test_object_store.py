"""Datasets in an object store: the server is moto's, over HTTP, as s3fs talks to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from s3_server import BUCKET, KEYS, Faulty, faulty, s3_server

import bie_stream
from bie_stream.errors import DatasetError, DatasetNotFound, SampleError, SourceError
from bie_stream.shards import read_manifest
from shardgen.build import build
from shardgen.plan import Plan
from shardgen.verify import verify

PlanOf = Callable[..., Plan]
Tree = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def store(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """A store that fails only where a test says so, and is where the user's environment says."""
    with faulty(port) as proxy:
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        yield proxy
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


def _objects(url: str) -> dict[str, bytes]:
    files = fsspec.filesystem("s3", use_listings_cache=False)
    root = url.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("each", [0, 5])
def test_a_build_into_a_store_is_the_one_on_disk_also_when_the_store_fails_now_and_then(
    tmp_path: Path, store: Faulty, url: str, raw: Path, plan_of: PlanOf, each: int
) -> None:
    plan = plan_of(raw, shard_bytes=2000)
    store.each = each
    build(plan, url, workers=1)
    store.each = 0
    build(plan, tmp_path / "disk", workers=1)
    assert _objects(url) == _files(tmp_path / "disk")
    assert (store.faults > 5) == bool(each)


def test_samples_in_a_store_are_read_as_those_on_disk(
    tmp_path: Path, store: Faulty, url: str, raw: Path, plan_of: PlanOf
) -> None:
    plan = plan_of(raw, shard_bytes=2000)
    for out in (url, tmp_path / "disk"):
        build(plan, out, workers=1)
    there, here = bie_stream.open(url, split="train"), bie_stream.open(tmp_path / "disk", split="train")
    assert there.table.equals(here.table)
    assert there.statistics == here.statistics
    for sample in range(len(here)):
        np.testing.assert_array_equal(there[sample], here[sample])
    assert list(verify(url)) == []


def test_two_processes_build_into_a_store_and_a_killed_build_goes_on(
    tmp_path: Path, store: Faulty, url: str, write_archive: Callable[..., Any], shardgen: Callable[..., Any],
    plan_of: PlanOf,
) -> None:  # fmt: skip
    wells = [f"A{number:02d}" for number in range(1, 9)]
    write_archive(tmp_path / "raw", wells=wells, fields=1, channels=1, shape=(1024, 1024), dtype="uint8")
    command = ["build", str(tmp_path / "raw"), "--pattern", "{well}_s{field}_w{channel}.tif", "--shard-mb", "1",
               "--workers", "2", "--out", url]  # fmt: skip
    killed = subprocess.Popen(
        [sys.executable, "-m", "shardgen", *command], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )
    files = fsspec.filesystem("s3", use_listings_cache=False)
    try:
        while killed.poll() is None and not files.glob(f"{url}/shards/*.parquet"):
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not files.exists(f"{url}/dataset.json"), "the build ended before it could be killed"
    time.sleep(1)  # its workers end by themselves
    kept = {path: files.info(path)["LastModified"] for path in files.glob(f"{url}/shards/*.parquet")}
    ended = shardgen(*command)
    assert ended.returncode == 0, ended.stderr
    build(plan_of(tmp_path / "raw", shard_bytes=2**20), tmp_path / "disk", workers=1)
    assert _objects(url) == _files(tmp_path / "disk")
    assert {path: files.info(path)["LastModified"] for path in kept} == kept


def test_what_another_build_left_in_the_store_is_swept_away(
    tmp_path: Path, store: Faulty, url: str, raw: Path, plan_of: PlanOf
) -> None:
    build(plan_of(raw, shard_bytes=4000), url, workers=1)
    with pytest.raises(SourceError, match="already holds another dataset"):
        build(plan_of(raw), url, workers=1)
    fsspec.filesystem("s3").rm_file(f"{url}/dataset.json")
    build(plan_of(raw), url, workers=1)
    build(plan_of(raw), tmp_path / "clean", workers=1)
    assert _objects(url) == _files(tmp_path / "clean")


def test_damage_in_a_store_is_found(store: Faulty, url: str, raw: Path, plan_of: PlanOf) -> None:
    build(plan_of(raw), url, workers=1)
    tar = f"{url}/shards/000000.tar"
    files = fsspec.filesystem("s3", use_listings_cache=False)
    data = bytearray(files.cat_file(tar))
    data[700] ^= 1
    files.pipe_file(tar, bytes(data))
    assert any("crc32c" in fault for fault in verify(url))
    with pytest.raises(SampleError, match="has changed"):
        bie_stream.open(url)[0]
    files.rm_file(tar)
    with pytest.raises(DatasetError, match=r"000000\.tar is missing"):
        bie_stream.open(url)
    assert any("is missing" in fault or "000000.tar" in fault for fault in verify(url))


def test_nothing_there_and_a_store_that_refuses_are_told_apart(
    store: Faulty, url: str, shardgen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetNotFound, match="nothing is there"):
        read_manifest(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    ended = shardgen("info", url)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {url}/dataset.json: ")
    assert ended.stderr.count("\n") == 1
    assert os.environ["AWS_ENDPOINT_URL"].endswith(":9")

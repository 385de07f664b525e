import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import bie_stream
from bie_stream.errors import SourceError
from shardgen.build import build, write_shard
from shardgen.plan import Plan

PlanOf = Callable[..., Plan]
Tree = Callable[[Path], dict[str, str]]


def test_the_dataset_holds_the_pixels_and_labels_of_the_archive(
    tmp_path: Path, write_archive: Callable[..., Any], raw: Path, plan_of: PlanOf
) -> None:
    pixels = write_archive(tmp_path / "same")
    build(plan_of(raw, labels=tmp_path / "wells.csv", tile=6, shard_bytes=2000), tmp_path / "out", workers=1)
    dataset = bie_stream.open(tmp_path / "out")
    assert len(dataset) == 5 * 2 * 4
    drugs = {"A1": "dmso", "A2": "taxol", "B1": "dmso", "B2": "taxol", "C1": "taxol"}
    for number, row in enumerate(dataset.table.to_pylist()):
        name, field, y, x = f"{row['well'][0]}0{row['well'][1:]}", int(row["field"]), row["top"], row["left"]
        expected = np.stack([pixels[name, field, channel][y : y + 6, x : x + 6] for channel in (1, 2)])
        np.testing.assert_array_equal(dataset[number], expected)
        assert row["drug"] == drugs[row["well"]]
    taken = np.stack([dataset[i] for i in range(len(dataset))])
    for channel, found in enumerate(dataset.statistics):
        assert found.mean == pytest.approx(taken[:, channel].mean(), rel=1e-12)
        assert found.percentiles["50"] == np.percentile(taken[:, channel], 50, method="inverted_cdf")
    names = np.array(dataset.table["plate"].to_pylist())
    assert set(dataset.plates) == set(names)
    for name, channels in dataset.plates.items():
        own = taken[names == name].swapaxes(0, 1)
        np.testing.assert_allclose([c.mean for c in channels], own.mean(axis=(1, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose([c.std for c in channels], own.std(axis=(1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_building_twice_gives_the_same_bytes(
    tmp_path: Path, dtype: str, write_archive: Callable[..., Any], plan_of: PlanOf, tree: Tree
) -> None:
    write_archive(tmp_path / "raw", dtype=dtype)
    for name in ("one", "two"):
        build(plan_of(tmp_path / "raw"), tmp_path / name, workers=1)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path, raw: Path, plan_of: PlanOf, tree: Tree) -> None:
    plan = plan_of(raw, shard_bytes=2000)
    assert len(plan.shards) > 2
    for workers in (1, 2):
        build(plan, tmp_path / f"by{workers}", workers=workers)
    assert tree(tmp_path / "by1") == tree(tmp_path / "by2")


def test_a_finished_dataset_is_left_alone(tmp_path: Path, raw: Path, plan_of: PlanOf) -> None:
    first = build(plan_of(raw), tmp_path / "out", workers=1)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert build(plan_of(raw), tmp_path / "out", workers=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_another_dataset_in_the_folder_is_not_overwritten(
    tmp_path: Path, raw: Path, plan_of: PlanOf, tree: Tree
) -> None:
    build(plan_of(raw), tmp_path / "out", workers=1)
    before = tree(tmp_path / "out")
    with pytest.raises(SourceError, match=r"already holds another dataset .* differs in tile, split_seed; choose"):
        build(plan_of(raw, split_seed=1, tile=4), tmp_path / "out", workers=1)
    (raw / "C01_s2_w1.tif").unlink()
    with pytest.raises(SourceError, match="differs in which fields it has, or in what their labels say; choose"):
        build(plan_of(raw), tmp_path / "out", workers=1)
    assert tree(tmp_path / "out") == before


def test_shards_that_a_finished_dataset_has_lost_are_written_again(
    tmp_path: Path, raw: Path, plan_of: PlanOf, tree: Tree
) -> None:
    plan, shards = plan_of(raw, shard_bytes=2000), tmp_path / "out/shards"
    manifest = build(plan, tmp_path / "out", workers=1)
    assert len(manifest.shards) > 4
    before, kept = tree(tmp_path / "out"), (shards / "000000.tar").stat().st_mtime_ns
    (shards / "000001.tar").unlink()
    (shards / "000002.parquet").unlink()
    (shards / "000003.idx").unlink()
    os.truncate(shards / "000004.tar", 1000)
    assert build(plan, tmp_path / "out", workers=1) == manifest
    assert tree(tmp_path / "out") == before
    assert (shards / "000000.tar").stat().st_mtime_ns == kept


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except (OSError, ProcessLookupError):
            continue
    return found


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a build in /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_midway_and_run_again_gives_the_same_bytes(
    tmp_path: Path, workers: int, write_archive: Callable[..., Any], tree: Tree, shardgen: Callable[..., Any]
) -> None:
    write_archive(
        tmp_path / "raw",
        wells=[f"A{i:02d}" for i in range(1, 25)],
        fields=1,
        channels=1,
        shape=(1024, 1024),
        dtype="uint8",
    )

    def arguments(out: str) -> list[str]:
        return ["build", str(tmp_path / "raw"), "--pattern", "{well}_s{field}_w{channel}.tif", "--shard-mb", "1",
                "--workers", str(workers), "--out", str(tmp_path / out)]  # fmt: skip

    repository = Path(__file__).parents[2]
    finished = [tmp_path / f"killed/shards/00000{number}.parquet" for number in (0, 2)]
    build = subprocess.Popen(
        [sys.executable, "-m", "shardgen", *arguments("killed")], cwd=repository, stderr=subprocess.DEVNULL
    )
    try:
        while build.poll() is None and not all(path.exists() for path in finished):
            time.sleep(0.001)
        helpers = children(build.pid)
    finally:
        build.send_signal(signal.SIGKILL)
        build.wait()
    assert build.returncode == -signal.SIGKILL, "the build ended before it could be killed"
    assert not (tmp_path / "killed/dataset.json").exists()
    deadline = time.monotonic() + 10
    while (left := [process for process in helpers if running(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left, "processes of a killed build live on"
    kept = (tmp_path / "killed/shards/000000.tar").stat().st_mtime_ns
    for out in ("killed", "whole"):
        assert shardgen(*arguments(out)).returncode == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert (tmp_path / "killed/shards/000000.tar").stat().st_mtime_ns == kept


def test_a_field_left_out_is_listed_with_the_reason(tmp_path: Path, raw: Path, plan_of: PlanOf) -> None:
    (raw / "B01_s2_w2.tif").write_bytes((raw / "B01_s2_w2.tif").read_bytes()[:300])
    (raw / "C01_s1_w1.tif").unlink()
    with pytest.raises(SourceError, match="max-rejects"):
        build(plan_of(raw), tmp_path / "out", workers=1, max_rejects=1)
    assert not (tmp_path / "out/dataset.json").exists()
    manifest = build(plan_of(raw), tmp_path / "out", workers=1, max_rejects=2)
    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert [(row["well"], row["field"]) for row in rows] == [("B1", "2"), ("C1", "1")]
    assert "B01_s2_w2.tif is damaged" in rows[0]["reason"]
    assert "no plane of channel '1'" in rows[1]["reason"]
    assert (manifest.rejected, manifest.samples) == (2, 8)
    taken = bie_stream.open(tmp_path / "out").table.select(["well", "field"]).to_pylist()
    assert not {("B1", "2"), ("C1", "1")} & {(row["well"], row["field"]) for row in taken}


def test_what_an_earlier_build_left_among_the_shards_is_swept_away(
    tmp_path: Path, raw: Path, plan_of: PlanOf, tree: Tree
) -> None:
    build(plan_of(raw, shard_bytes=1), tmp_path / "out", workers=1)
    (tmp_path / "out/dataset.json").unlink()
    (tmp_path / "out/shards/000007.tar.partial").touch()
    (tmp_path / "out/000007.killed.partial/shards").mkdir(parents=True)
    (tmp_path / "out/000007.killed.partial/shards/000007.tar.partial").touch()
    for name in ("out", "clean"):
        build(plan_of(raw), tmp_path / name, workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


def test_what_no_build_names_so_is_not_swept_away(tmp_path: Path, raw: Path, plan_of: PlanOf) -> None:
    others = [tmp_path / "out" / name for name in ("shards/train-0001.tar", "shards/wells.parquet", "a.partial/b")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("another's")
    build(plan_of(raw), tmp_path / "out", workers=1)
    assert all(path.read_text() == "another's" for path in others)


def test_two_that_write_the_same_shard_at_once_leave_it_whole(
    tmp_path: Path, raw: Path, plan_of: PlanOf, tree: Tree
) -> None:
    plan = plan_of(raw)
    outcomes = []

    def second(fields: int) -> None:
        if not outcomes:
            outcomes.append(None)
            outcomes[0] = write_shard(plan, tmp_path / "two", 0, "000000", plan.shards[0], lambda fields: None)

    first = write_shard(plan, tmp_path / "two", 0, "000000", plan.shards[0], second)
    assert outcomes == [first]
    write_shard(plan, tmp_path / "one", 0, "000000", plan.shards[0], lambda fields: None)
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    assert list((tmp_path / "two").rglob("*.partial")) == []


def test_a_folder_that_the_writers_do_not_share_is_named(
    tmp_path: Path, raw: Path, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*_: Any) -> Callable[..., Any]:
        plan = plan_of(raw)
        return lambda write, todo, advance: (
            (name, write_shard(plan, tmp_path / "elsewhere", 0, name, shard, advance)) for name, shard in todo
        )

    monkeypatch.setattr("shardgen.build.chosen", elsewhere)
    monkeypatch.setattr("shardgen.build._VISIBLE_S", 0.2)
    with pytest.raises(SourceError, match=r"shard 000000 was written, but .*out/shards/000000\.tar .*all nodes share"):
        build(plan_of(raw), tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bie_stream.errors import SourceError
from shardgen.build import build
from shardgen.plan import Plan

pytestmark = pytest.mark.slow

PlanOf = Callable[..., Plan]
Tree = Callable[[Path], dict[str, str]]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
WELLS = [f"A{number:02d}" for number in range(1, 25)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a head of one CPU, and what nodes a test adds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        pytest.importorskip("ray", reason="Ray is not installed")
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args=NODE)
        yield started
        started.shutdown()


def writing(raylet: int, shards: Path) -> psutil.Process | None:
    """A worker of a node, stopped while it has a file open among the shards."""
    for worker in psutil.Process(raylet).children():
        try:
            if busy(worker, shards):
                worker.suspend()
                if busy(worker, shards):
                    return worker
                worker.resume()
        except psutil.NoSuchProcess:
            continue
    return None


def busy(worker: psutil.Process, shards: Path) -> bool:
    return any(file.path.startswith(str(shards.parent)) for file in worker.open_files())


class Killer(threading.Thread):
    """Kills a node as soon as it writes a shard while others, but not all, are finished."""

    def __init__(self, cluster: Any, node: Any, out: Path) -> None:
        super().__init__(daemon=True)
        self.cluster, self.node, self.shards = cluster, node, out / "shards"
        self.finished_at_the_kill: int | None = None

    def run(self) -> None:
        raylet = self.node.all_processes["raylet"][0].process.pid
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if len(list(self.shards.glob("*.parquet"))) >= 2 and (worker := writing(raylet, self.shards)):
                self.finished_at_the_kill = len(list(self.shards.glob("*.parquet")))
                self.cluster.remove_node(self.node, allow_graceful=False)
                worker.resume()  # it goes on writing until it finds that its node is dead
                return
            time.sleep(0.002)


def test_a_node_killed_while_it_writes_a_shard_does_not_change_a_byte(
    tmp_path: Path, cluster: Any, write_archive: Callable[..., Any], plan_of: PlanOf, tree: Tree
) -> None:
    write_archive(tmp_path / "raw", wells=WELLS, channels=1, shape=(1024, 1024), dtype="uint8")
    plan = plan_of(tmp_path / "raw", shard_bytes=4 * 2**20)
    assert len(plan.shards) == 12
    killer = Killer(cluster, cluster.add_node(**NODE), tmp_path / "killed")
    killer.start()
    build(plan, tmp_path / "killed", engine="ray", address=cluster.address)
    killer.join()
    assert killer.finished_at_the_kill is not None, "the build ended before a node could be killed"
    assert killer.finished_at_the_kill < 12
    build(plan, tmp_path / "whole", workers=1)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_too_many_rejects_in_a_cluster_stop_the_build_with_one_line(
    tmp_path: Path, cluster: Any, write_archive: Callable[..., Any], plan_of: PlanOf
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_archive(raw, wells=WELLS, fields=1)
    for well in WELLS[:2]:
        (raw / f"{well}_s1_w2.tif").write_bytes(b"not a TIFF")
    plan = plan_of(raw, shard_bytes=1)
    for allowed in (0, 1):  # within a task, and over all of them
        with pytest.raises(SourceError, match=r"_s1_w2\.tif is damaged.*--max-rejects") as refused:
            build(plan, out, max_rejects=allowed, engine="ray", address=cluster.address)
        assert type(refused.value) is SourceError
        assert "\n" not in str(refused.value)
    assert not (out / "dataset.json").exists()
    assert len(list(out.rglob("*.parquet"))) < len(WELLS) / 2, "shards were written after the build had failed"
    assert list(out.rglob("*.partial")) == []
    assert build(plan, out, max_rejects=2, engine="ray", address=cluster.address).rejected == 2


def test_an_interrupted_build_leaves_no_task_that_writes(
    tmp_path: Path, cluster: Any, write_archive: Callable[..., Any], plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    write_archive(tmp_path / "raw", wells=WELLS, channels=1, shape=(1024, 1024), dtype="uint8")
    monkeypatch.setattr("shardgen.build._require_visible", interrupt)  # Ctrl-C when the first shard is there
    with pytest.raises(KeyboardInterrupt):
        build(plan_of(tmp_path / "raw", shard_bytes=4 * 2**20), tmp_path / "out", engine="ray", address=cluster.address)
    left = sorted((tmp_path / "out").rglob("*"))
    assert not [path for path in left if path.suffix == ".partial"]
    time.sleep(1)
    assert sorted((tmp_path / "out").rglob("*")) == left


def test_a_ray_that_is_not_installed_is_named_with_what_to_install(
    tmp_path: Path, raw: Path, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SourceError, match=r"pip install 'bie-stream\[ray\]'"):
        build(plan_of(raw), tmp_path / "out", engine="ray")


def test_an_address_where_nothing_answers_ends_with_one_line(
    tmp_path: Path, raw: Path, shardgen: Callable[..., Any]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    result = shardgen("build", raw, "--pattern", "{well}_s{field}_w{channel}.tif", "--out", tmp_path / "out",
                      "--engine", "ray", "--address", "127.0.0.1:1")  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: nothing answers at 127.0.0.1:1 ")
    assert len(result.stderr.splitlines()) == 1


def test_an_address_without_a_cluster_engine_is_refused(tmp_path: Path, raw: Path, plan_of: PlanOf) -> None:
    with pytest.raises(SourceError, match="--engine ray"):
        build(plan_of(raw), tmp_path / "out", address="auto")

"""Engines of a build: shards written by processes of this machine, or by the nodes of a Ray cluster.

An engine is given a function that writes one shard, and the shards to do. It yields each one's name and what was noted
of it as they finish, in any order. Closed before its end, it stops what runs.
"""

import contextlib
import functools
import multiprocessing
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any, Literal

from bie_stream.errors import BieStreamError, SourceError
from shardgen.plan import Planned

Engine = Literal["processes", "ray"]
Shard = tuple[Planned, ...]
Facts = dict[str, Any]
Advance = Callable[[int], object]  # by so many fields
Write = Callable[[str, Shard, Advance], Facts]
Todo = Sequence[tuple[str, Shard]]
Written = Generator[tuple[str, Facts], None, None]
Run = Callable[[Write, Todo, Advance], Written]

_RETRIES = 5  # of a shard whose node or worker died; one that kills its worker every time must end the build
_TASKS_PER_CPU = 2  # handed to Ray at once: one runs, one is ready; a study of 40,000 shards would choke it
_LOOK_AGAIN_S = 10  # a cluster that has grown is given more
_CONNECT_S = 10
_STOP_S = 10  # for a worker to tidy up before it is killed


def chosen(engine: Engine, workers: int | None, address: str | None) -> Run:
    """The engine of that name.

    Args:
        workers: shards written at once; None for as many as there are cores, here or in the cluster.
        address: of a Ray cluster, see `ray`.

    Raises:
        SourceError: an address for an engine that has none.
    """
    if engine == "ray":
        return functools.partial(ray, workers=workers, address=address)
    if address is not None:
        raise SourceError(f"address {address} is that of a Ray cluster; add --engine ray, or leave it out")
    return functools.partial(processes, workers=workers)


def processes(write: Write, todo: Todo, advance: Advance, workers: int | None = None) -> Written:
    """Processes of this machine; none besides this one where one is enough. They end when this one does."""
    workers = min(workers or os.cpu_count() or 1, len(todo))
    if workers <= 1:
        for name, shard in todo:
            yield name, write(name, shard, advance)
        return
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _share, (done,)) as pool:
        running = {pool.submit(_write_counting, write, name, shard): name for name, shard in todo}
        shown = 0
        try:
            while running:
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                advance(done.value - shown)
                shown = done.value
                for future in finished:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_done: Any = None


def _share(done: Any) -> None:
    global _done
    _done = done
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed build leaves no process behind that would write beside the next one."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _write_counting(write: Write, name: str, shard: Shard) -> Facts:
    def advance(fields: int) -> None:
        with _done.get_lock():
            _done.value += fields

    return write(name, shard, advance)


def ray(
    write: Write, todo: Todo, advance: Advance, workers: int | None = None, address: str | None = None
) -> Written:  # fmt: skip
    """Tasks of one CPU each in a Ray cluster; those of a node that dies are done again on another.

    All nodes must see the archive and the folder of the dataset under the same paths, and have this package; Ray and
    Python must be of the versions that the cluster's head has. A connection that the caller opened with `ray.init` is
    used and left open.

    Args:
        address: as `ray.init` takes it: `HOST:PORT` of a head, `auto` for the cluster of this machine, `local` for a
            new one here. None: `$RAY_ADDRESS`, else the cluster of this machine, else a new one on its cores.

    Raises:
        SourceError: Ray is not installed, there is no such cluster, or a shard's worker died time and again.
    """
    if not todo:
        return
    with _cluster(address) as cluster:
        task = cluster.remote(num_cpus=1, max_retries=_RETRIES)(_write_or_say_why)
        recipe = cluster.put(write)
        waiting = deque(todo)
        running: dict[Any, tuple[str, int]] = {}
        try:
            while waiting or running:
                at_once = workers or max(1, int(cluster.cluster_resources().get("CPU", 0)) * _TASKS_PER_CPU)
                while waiting and len(running) < at_once:
                    name, shard = waiting.popleft()
                    running[task.options(name=f"shard {name}").remote(recipe, name, shard)] = name, len(shard)
                finished, _ = cluster.wait(list(running), timeout=_LOOK_AGAIN_S)
                for task_id in finished:
                    name, fields = running.pop(task_id)
                    facts = _outcome(cluster, task_id, name)
                    advance(fields)
                    yield name, facts
        finally:
            _stop(cluster, list(running))


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here phones nobody
    try:
        import ray as cluster
    except ImportError as error:
        raise SourceError("the engine ray is not installed: pip install 'bie-stream[ray]'") from error
    if cluster.is_initialized():
        yield cluster
        return
    _require_answer(address)
    try:
        cluster.init(address=address, logging_level="error")  # its warnings are for who runs the cluster
    except (OSError, RuntimeError, ValueError, cluster.exceptions.RayError) as error:
        where = f"at {address}" if address else "here"
        said = " ".join(str(error).split())
        raise SourceError(f"no Ray cluster can be used {where}: {said}; see `ray status` on its head") from error
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _require_answer(address: str | None) -> None:
    """Ray itself would try an address where nothing is for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`, `local`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise SourceError(
            f"nothing answers at {address} ({error}); give the address that `ray start --head` printed"
        ) from error


def _write_or_say_why(write: Write, name: str, shard: Shard) -> Facts | Exception:
    """Errors for the user come back as values: Ray would wrap what is raised in the trace of another machine."""
    try:
        return write(name, shard, lambda fields: None)
    except (BieStreamError, OSError) as error:
        return error


def _outcome(cluster: Any, task_id: Any, name: str) -> Facts:
    try:
        outcome: Facts | Exception = cluster.get(task_id)
    except cluster.exceptions.RayTaskError:  # our own fault, with its trace
        raise
    except cluster.exceptions.RayError as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise SourceError(
            f"shard {name}: its worker died {_RETRIES + 1} times ({said}); "
            "see the logs of Ray, and whether the nodes have memory enough; then run the same build again"
        ) from error
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _stop(cluster: Any, running: list[Any]) -> None:
    """Interrupted, so that a worker removes what it has begun; killed, if that takes long."""
    if not running:
        return
    for task_id in running:
        cluster.cancel(task_id)
    _, left = cluster.wait(running, num_returns=len(running), timeout=_STOP_S)
    for task_id in left:
        cluster.cancel(task_id, force=True)

"""One contender's turn, in a process of its own: `python -m bench.turn` takes requests from its standard input.

Each line names a file that holds a `Request` as JSON; a child process does what it asks, and when the line "done" or
"failed" comes back, what was found lies beside it. torch, and modules named on the command line, are imported once,
before any child is made: the start of Python is not what is measured, and a turn would be mostly that.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bench.works import Work, read_pixels

_LEAST = 4  # batches of a window
_SHORTEST_WARM_UP = 0.5  # seconds
_LIMIT_S = 600  # of a turn, or of preparing a data set


@dataclass(frozen=True)
class Request:
    """What is asked of a turn.

    Attributes:
        module: in bench.peers.
        root: folder of the work, with its reference pixels.
        folder: inside it, the data set of this contender.
        workers: of `batches`; None to prepare the data set.
        seconds: of the window in which batches are summed; that in which they are not is half as long.
        pass_s: at most so long before the clock starts goes over the first epoch.
        sample: file for the first batch, .npy.
    """

    module: str
    root: str
    folder: str
    work: Work
    workers: int | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 2.0
    pass_s: float = 1.0
    sample: str | None = None


@dataclass(frozen=True)
class Window:
    """Batches that were taken one after the other; CPU seconds are those of all processes of the contender."""

    batches: int
    seconds: float
    cpu_s: float
    mean: float

    @property
    def rate(self) -> float:
        """Batches per second."""
        return self.batches / self.seconds


@dataclass(frozen=True)
class Outcome:
    """What a turn found.

    Attributes:
        shape, dtype: of every batch.
        first_batch_s: from the opening of the data set to its first batch, without imports.
        first_pass: what came after that and before the clock started.
        summed: every number was read by the taker.
        taken: they were not.
        peak_mb: resident memory of all its processes at their highest; what they share is in it more than once.
        own_mb: of it, at the end, what no file backs.
    """

    shape: tuple[int, ...]
    dtype: str
    first_batch_s: float
    first_pass: Window
    summed: Window
    taken: Window
    peak_mb: float
    own_mb: float


def perform(request: Request) -> Outcome | None:
    """Prepares a data set, or measures a contender."""
    root = Path(request.root)
    pixels, work = read_pixels(root, request.work)
    peer = importlib.import_module(f"bench.peers.{request.module}")
    if request.workers is None:
        peer.prepare(pixels, root / request.folder, work)
        return None
    torch.set_num_threads(1)
    start = time.perf_counter()
    batches = peer.batches(root / request.folder, work, request.workers, **request.options)
    first = next(batches)
    opened = time.perf_counter() - start
    if request.sample is not None:
        np.save(request.sample, first.numpy())
    shape, dtype = tuple(first.shape), str(first.dtype)
    del first
    return _measure(batches, request, shape, dtype, opened)


def _measure(
    batches: Iterator[torch.Tensor], request: Request, shape: tuple[int, ...], dtype: str, opened: float
) -> Outcome:
    def take(batch: torch.Tensor) -> torch.Tensor:
        if tuple(batch.shape) != shape or str(batch.dtype) != dtype or not batch.is_contiguous():
            raise ValueError(f"a batch {list(batch.shape)} {batch.dtype} after one of {list(shape)} {dtype}")
        return batch

    def mean(batch: torch.Tensor) -> float:
        return float(take(batch).sum()) / batch.numel()

    def nothing(batch: torch.Tensor) -> float:
        take(batch)
        return 0.0

    epoch = request.work.samples * request.work.laps // request.work.batch
    long_enough = min(request.pass_s, _SHORTEST_WARM_UP)
    first_pass = _window(batches, nothing, lambda n, s: s > request.pass_s or (n >= epoch and s > long_enough))
    summed = _window(batches, mean, lambda n, s: n >= _LEAST and s >= request.seconds)
    taken = _window(batches, nothing, lambda n, s: n >= _LEAST and s >= request.seconds / 2)
    return Outcome(shape, dtype, opened, first_pass, summed, taken, *_memory_mb())


def _window(
    batches: Iterator[torch.Tensor], take: Callable[[torch.Tensor], float], over: Callable[[int, float], bool]
) -> Window:
    cpu, start = _cpu_seconds(), time.perf_counter()
    count, total, elapsed = 0, 0.0, 0.0
    while not over(count, elapsed):
        total += take(next(batches))
        count += 1
        elapsed = time.perf_counter() - start
    return Window(count, elapsed, _cpu_seconds() - cpu, total / max(count, 1))


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_seconds() -> float:
    """Of this process and all below it, those that have ended too."""
    total = 0.0
    for process in _processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user, system, and those of children that were waited for
    return total


def memory_mb(process: int) -> dict[str, float]:
    """What Linux says of a process's memory, by its names; getrusage would count the parent's before the start."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for line in lines if (words := line.split())[-1] == "kB"}


def _memory_mb() -> tuple[float, float]:
    """Peak, and what no file backs: see `Outcome`."""
    peak = own = 0.0
    for process in _processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            memory = memory_mb(process.pid)
            peak += memory["VmHWM"]
            own += memory["RssAnon"] + memory["RssShmem"]
    return peak, own


def read_outcome(text: str) -> Outcome | None:
    """From JSON."""
    found: dict[str, Any] | None = json.loads(text)
    if found is None:
        return None
    windows = {name: Window(**found[name]) for name in ("first_pass", "summed", "taken")}
    return Outcome(**{**found, **windows, "shape": tuple(found["shape"])})


def read_request(text: str) -> Request:
    """From JSON."""
    found: dict[str, Any] = json.loads(text)
    work: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found["work"].items()}
    return Request(**{**found, "work": Work(**work)})


def _child(path: Path) -> int:
    """Exit status; the outcome, or the trace, is written."""
    os.setpgid(0, 0)
    signal.alarm(_LIMIT_S)
    try:
        outcome = perform(read_request(path.read_text()))
        found = None if outcome is None else dataclasses.asdict(outcome)
        path.with_suffix(".outcome").write_text(json.dumps(found))
        return 0
    except Exception:
        path.with_suffix(".error").write_text(traceback.format_exc())
        return 1


def main() -> None:
    """Serves requests until its input ends. Answers go to the first standard output, all else to standard error."""
    for module in sys.argv[1:]:
        importlib.import_module(f"bench.peers.{module}")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        if not (child := os.fork()):
            os._exit(_child(Path(line.strip())))  # its threads and workers need not be asked to stop: see below
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        answers.write("failed\n" if os.waitstatus_to_exitcode(status) else "done\n")


if __name__ == "__main__":
    main()

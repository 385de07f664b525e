"""Ceiling: batches copied from memory to memory."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.works import Work

_SOURCES = 8  # batches that are copied in turn: more than a cache holds

Slab = npt.NDArray[np.float32]


def batches(_: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    sources = [np.full(work.deliverable, n, np.float32) for n in range(_SOURCES)]
    slabs = [np.zeros(work.deliverable, np.float32) for _ in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Slab]] = deque()
        turn = 0
        while True:
            while len(pending) < workers:
                pending.append(pool.submit(_copy, sources[turn % len(sources)], slabs[turn % len(slabs)]))
                turn += 1
            yield torch.from_numpy(pending.popleft().result())


def _copy(source: Slab, slab: Slab) -> Slab:
    np.copyto(slab, source)
    return slab

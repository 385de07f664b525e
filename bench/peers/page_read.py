"""Ceiling: whole payloads read from the page cache into a recycled buffer, in any order."""

import itertools
import os
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from bench.peers.tars import Place, places, tars
from bench.works import Work


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers; what it gives are the bytes of the last payload of each batch."""
    files = [os.open(path, os.O_RDONLY) for path in tars(folder)]
    where = places(folder)
    buffers = itertools.cycle([bytearray(max(place.size for place in where)) for _ in range(workers + 1)])

    def read(chosen: list[Place], buffer: bytearray) -> torch.Tensor:
        for tar, offset, size in chosen:
            if os.preadv(files[tar], [memoryview(buffer)[:size]], offset) != size:
                raise EOFError("a payload was cut short")
        return torch.frombuffer(buffer, dtype=torch.uint8)

    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[torch.Tensor]] = deque()
        while True:
            while len(pending) < workers:
                pending.append(pool.submit(read, random.choices(where, k=work.batch), next(buffers)))
            yield pending.popleft().result()

"""Ceiling: crop, mirror, cast, normalise in one compiled loop over an array in memory, into recycled slabs.

No files, no checks, no errors to handle, no order to keep: what one simple pass over memory costs on these threads.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.works import PIXELS, Work
from bie_stream.compiled import compiled

_AHEAD = 2  # batches


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers. A batch is good until the next one is asked for."""
    pixels = np.load(folder / PIXELS)
    rng = np.random.default_rng()
    mean, scale = np.array(work.mean, np.float32), 1 / np.array(work.std, np.float32)
    room = np.array(work.shape[1:]) - work.crop + 1

    def fill(slab: Any, numbers: Any, corners: Any, mirrored: Any) -> Any:
        _fill(pixels, numbers, corners, mirrored, mean, scale, slab)
        return slab

    slabs = deque(np.empty(work.deliverable, np.float32) for _ in range(workers + _AHEAD + 1))
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Any] = deque()
        while True:
            while len(pending) < workers + _AHEAD:
                numbers = rng.integers(len(pixels), size=work.batch)
                corners, mirrored = rng.integers(room, size=(work.batch, 2)), rng.random(work.batch) < 0.5
                pending.append(pool.submit(fill, slabs.popleft(), numbers, corners, mirrored))
            slab = pending.popleft().result()
            yield torch.from_numpy(slab)
            slabs.append(slab)


@compiled
def _fill(pixels: Any, numbers: Any, corners: Any, mirrored: Any, mean: Any, scale: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            plane = pixels[numbers[i], c]
            _fill_plane(plane, corners[i, 0], corners[i, 1], mirrored[i], mean[c], scale[c], out[i, c])


@compiled
def _fill_plane(plane: Any, top: int, left: int, mirrored: bool, shift: Any, by: Any, out: Any) -> None:
    size = out.shape[1]
    for y in range(size):
        row, into = plane[top + y, left : left + size], out[y]
        if mirrored:
            for x in range(size):
                into[x] = (np.float32(row[np.uint64(size - 1 - x)]) - shift) * by  # unsigned: vectors can be used
        else:
            for x in range(size):
                into[x] = (np.float32(row[x]) - shift) * by

"""Ceiling: crop, mirror, cast, normalise in one compiled loop over an array in memory, into recycled slabs.

No files, no checks, no errors to handle, no order to keep: what one simple pass over memory costs on these threads.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from bench.works import Work

_AHEAD = 2  # batches


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers. A batch is good until the next one is asked for."""
    pixels = np.load(folder / "pixels.npy")
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


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # Numba has no types
def _fill(pixels: Any, numbers: Any, corners: Any, mirrored: Any, mean: Any, scale: Any, out: Any) -> None:
    size = out.shape[-1]
    for i in range(out.shape[0]):
        top, left = corners[i]
        for c in range(out.shape[1]):
            for y in range(size):
                row, into = pixels[numbers[i], c, top + y, left : left + size], out[i, c, y]
                if mirrored[i]:
                    for x in range(size):
                        into[x] = (np.float32(row[size - 1 - x]) - mean[c]) * scale[c]
                else:
                    for x in range(size):
                        into[x] = (np.float32(row[x]) - mean[c]) * scale[c]

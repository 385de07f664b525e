"""Ceiling: our compiled pass alone, over an array in memory, into recycled slabs.

No files, no checks, no errors to handle, no order to keep: what the pass itself costs on these threads. It is the pass
of the loader, so that what the loader lacks to it is the loader's own doing.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.works import PIXELS, Work
from bie_stream.kernels import crop_into

_AHEAD = 2  # batches


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers. A batch is good until the next one is asked for."""
    pixels = np.load(folder / PIXELS)
    rng = np.random.default_rng()
    each = (work.batch, work.shape[0])
    shift, scale = (np.broadcast_to(np.array(of, np.float32), each) for of in (work.mean, 1 / np.array(work.std)))
    shapes, none = np.broadcast_to(work.shape, (work.batch, 3)), np.zeros(work.batch, bool)
    channels, rows, dtype = np.arange(work.shape[0]), np.arange(work.batch), np.empty(0, pixels.dtype)
    room = np.array(work.shape[1:]) - work.crop + 1

    def fill(slab: Any, numbers: Any, corners: Any, mirrored: Any) -> Any:
        crop_into(
            pixels.ctypes.data + numbers * pixels.strides[0], shapes, dtype, channels, *corners, none, none, mirrored,
            shift, scale, False, rows, slab.numpy(),
        )  # fmt: skip
        return slab

    slabs = deque(torch.empty(work.deliverable) for _ in range(workers + _AHEAD + 1))
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Any] = deque()
        while True:
            while len(pending) < workers + _AHEAD:
                numbers = rng.integers(len(pixels), size=work.batch)
                corners = np.ascontiguousarray(rng.integers(room, size=(work.batch, 2)).T)
                mirrored = rng.random(work.batch) < 0.5
                pending.append(pool.submit(fill, slabs.popleft(), numbers, corners, mirrored))
            slab = pending.popleft().result()
            yield slab
            slabs.append(slab)

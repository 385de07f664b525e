"""SPDL: whole batches in its threads, from the same tars memory-mapped; of npy only the crop is touched."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from spdl.io import load_npy
from spdl.pipeline import PipelineBuilder

from bench.peers.sample import decode, view
from bench.peers.tars import Place, maps, places
from bench.works import Work

_AHEAD = 2  # batches


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    mapped, where = maps(folder), places(folder)

    def batch(chosen: list[Place]) -> torch.Tensor:
        images = np.empty(work.deliverable, np.float32)
        for out, (tar, offset, size) in zip(images, chosen, strict=True):
            payload = mapped[tar][offset : offset + size]
            view(load_npy(payload) if work.codec == "npy" else decode(payload, work.codec), work, out)
        return torch.from_numpy(images)

    pipeline = (
        PipelineBuilder()
        .add_source(_order(where, work.batch))
        .pipe(batch, concurrency=workers)
        .add_sink(_AHEAD)
        .build(num_threads=workers)
    )
    with pipeline.auto_stop():
        yield from pipeline


def _order(where: list[Place], size: int) -> Iterator[list[Place]]:
    """Batches of one permutation after the other."""
    while True:
        order = random.sample(where, len(where))
        yield from (order[at : at + size] for at in range(0, len(order) - size + 1, size))

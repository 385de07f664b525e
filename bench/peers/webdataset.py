"""webdataset: shards shuffled, then a buffer of samples; whole samples are read."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from bench.peers.sample import decode, view
from bench.peers.tars import tars
from bench.works import Work

_BUFFER_BYTES = 2**28
_SUFFIX = {"npy": "npy", "tif": "tif", "jph": "jph", "blosc2": "b2nd"}


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    shards = list(map(str, tars(folder)))
    suffix, held = _SUFFIX[work.codec], max(work.batch, _BUFFER_BYTES // (2 * int(np.prod(work.shape))))

    def image(sample: dict[str, Any]) -> Any:
        return view(decode(sample[suffix], work.codec), work)

    stream = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=random.randrange(2**31))
        .shuffle(held)
        .map(image)
        .batched(work.batch, collation_fn=_stack, partial=False)
        .repeat()
    )
    return iter(DataLoader(stream, batch_size=None, num_workers=workers))


def _stack(images: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))

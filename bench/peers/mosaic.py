"""MosaicML streaming: its MDS shards on this disk, its StreamingDataset; whole samples are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streaming
import torch
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from bench.peers.payload import encode, pixels_of
from bench.peers.sample import view
from bench.works import Pixels, Work

_ENDLESS = 2**20  # samples


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """Shards of at most 64 MB, its own default, or one sample."""
    with streaming.MDSWriter(out=str(folder), columns={"pixels": "bytes"}) as writer:
        for image in pixels:
            writer.write({"pixels": encode(image, work)})


class _Crops(streaming.StreamingDataset):  # type: ignore[misc]  # it has no types
    def __init__(self, folder: Path, work: Work) -> None:
        self._work = work
        super().__init__(local=str(folder), shuffle=True, batch_size=work.batch, epoch_size=_ENDLESS)

    def __getitem__(self, at: Any) -> torch.Tensor:
        data = super().__getitem__(at)["pixels"]
        return torch.from_numpy(view(pixels_of(data, self._work), self._work))


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    clean_stale_shared_memory()
    return iter(DataLoader(_Crops(folder, work), work.batch, num_workers=workers))

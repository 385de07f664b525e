"""torch DataLoader over np.memmap of the same tars: of npy only the crop is touched."""

from collections.abc import Iterator
from pathlib import Path

import torch

from bench.peers import samples
from bench.peers.sample import View, decode
from bench.peers.tars import maps, places
from bench.works import Pixels, Work


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    mapped, where = maps(folder), places(folder)

    def cut(number: int, view: View) -> Pixels:
        tar, offset, size = where[number]
        return decode(mapped[tar][offset : offset + size], work.codec)[:, view.rows, view.columns]

    return samples.loader(cut, len(where), work, workers)

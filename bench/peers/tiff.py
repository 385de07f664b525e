"""torch DataLoader over tifffile, one file a sample: memory-mapped where not compressed, else zstd with a predictor."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch

from bench.peers import samples
from bench.peers.sample import View
from bench.works import Pixels, Work

_COMPRESSION = {"npy": None, "tif": "zlib", "blosc2": "zstd"}


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """One page a channel, as microscopes write them."""
    compression = _COMPRESSION[work.codec]
    for number, image in enumerate(pixels):
        tifffile.imwrite(
            folder / f"{number:06d}.tif", image, photometric="minisblack", metadata=None, compression=compression,
            compressionargs={"level": 1} if compression else None, predictor=compression is not None,
        )  # fmt: skip


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    files = sorted(folder.glob("*.tif"))

    def cut(number: int, view: View) -> Pixels:
        image = (
            tifffile.memmap(files[number], mode="r")
            if work.codec == "npy"
            else tifffile.imread(files[number], maxworkers=1)
        )
        return np.asarray(image.reshape(work.shape)[:, view.rows, view.columns])

    return samples.loader(cut, len(files), work, workers)

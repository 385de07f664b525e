"""torch DataLoader over one Zarr array of all samples: chunks of one sample, or of 512 x 512 pixels of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec

from bench.peers import samples
from bench.peers.sample import View
from bench.works import Pixels, Work

_SIDE = 512  # of a chunk, at most, pixels


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """Raw, or Blosc (zstd 1, bytes shuffled)."""
    blosc = BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="shuffle")
    channels, height, width = work.shape
    array = zarr.create_array(
        folder / "samples.zarr", shape=pixels.shape, dtype=pixels.dtype,
        chunks=(1, channels, min(height, _SIDE), min(width, _SIDE)),
        compressors=None if work.codec == "npy" else (blosc,), filters=None,
    )  # fmt: skip
    for number, image in enumerate(pixels):
        array[number] = image


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    array: Any = zarr.open_array(folder / "samples.zarr", mode="r")

    def cut(number: int, view: View) -> Pixels:
        return np.asarray(array[number, :, view.rows, view.columns])

    return samples.loader(cut, array.shape[0], work, workers)

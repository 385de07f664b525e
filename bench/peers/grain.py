"""grain over ArrayRecord: threads of its iterator read, crop and normalise; whole samples are read."""

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
import torch
from array_record.python.array_record_module import ArrayRecordWriter

from bench.peers.payload import encode, pixels_of
from bench.peers.sample import view
from bench.works import Pixels, Work

_AHEAD = 2  # batches


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """One file, one record a group, as grain wants it for random access."""
    writer = ArrayRecordWriter(str(folder / "samples.array_record"), "group_size:1,uncompressed")
    for image in pixels:
        writer.write(encode(image, work))
    writer.close()


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    source = grain.sources.ArrayRecordDataSource(str(folder / "samples.array_record"))
    reading = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=_AHEAD * work.batch if workers else 0)
    images = (
        grain.MapDataset.source(source)
        .shuffle(seed=0)
        .repeat()
        .map(lambda data: view(pixels_of(data, work), work))
        .to_iter_dataset(reading)
        .batch(work.batch, batch_fn=np.stack)
    )
    return map(torch.from_numpy, iter(images))

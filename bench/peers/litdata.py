"""litdata: its chunks, its StreamingDataset and StreamingDataLoader; whole samples are read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import litdata
import torch
from litdata.streaming.writer import BinaryWriter

from bench.peers.payload import encode, pixels_of
from bench.peers.sample import view
from bench.works import Pixels, Work

_CHUNK = "64MB"  # litdata's own default


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """Chunks of bytes; an epoch names them `laps` times."""
    writer = BinaryWriter(str(folder), chunk_bytes=_CHUNK)
    for number, image in enumerate(pixels):
        writer[number] = encode(image, work)
    writer.done()
    writer.merge(1)
    _repeat(folder, work.laps)


def _repeat(folder: Path, laps: int) -> None:
    """The same files under more names."""
    index = json.loads((folder / "index.json").read_text())
    again = [
        {**chunk, "filename": f"lap{lap}-{chunk['filename']}"} for lap in range(1, laps) for chunk in index["chunks"]
    ]
    for chunk in again:
        os.link(folder / chunk["filename"].partition("-")[2], folder / chunk["filename"])
    (folder / "index.json").write_text(json.dumps({**index, "chunks": index["chunks"] + again}))


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""

    def image(data: bytes) -> torch.Tensor:
        return torch.from_numpy(view(pixels_of(data, work), work))

    samples = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True, transform=image)
    loader = litdata.StreamingDataLoader(
        samples, batch_size=work.batch, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        yield from loader

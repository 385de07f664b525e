"""bie_stream.Loader, through its public interface."""

from collections.abc import Iterator
from pathlib import Path

import torch

import bie_stream
from bench.works import Work
from bie_stream.loader import Backend, Loader


def batches(folder: Path, work: Work, workers: int, backend: Backend) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    loader = Loader(
        bie_stream.open(folder), work.batch, crop=work.crop, augment=bie_stream.Augment(quarter_turn=False),
        backend=backend, threads=workers,
    )  # fmt: skip
    while True:
        for batch in loader:
            yield batch.images

"""The same tars with TIFFs of DALI's fastest lossless compression: it has no Blosc2 on the CPU."""

import io
from pathlib import Path

import numpy as np
import tifffile

from bench.peers.shards import write
from bench.works import Pixels, Work


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """Channels side by side: of planar ones DALI makes a wrong image without an error."""
    write(pixels, folder, work, "tif", lambda image: (_encode(image),))


def _encode(image: Pixels) -> bytes:
    buffer, contiguous = io.BytesIO(), np.ascontiguousarray(image.transpose(1, 2, 0))
    tifffile.imwrite(
        buffer, contiguous, photometric="minisblack", planarconfig="contig", rowsperstrip=image.shape[1], metadata=None,
        compression="zstd", predictor=True, maxworkers=1,
    )  # fmt: skip
    return buffer.getvalue()

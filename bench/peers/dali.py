"""NVIDIA DALI on the CPU: its WebDataset reader with an index, its decoders, its crop; whole samples are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from bench.peers.tars import tars
from bench.works import Work

_BUFFER_BYTES = 2**28
_AHEAD = 2  # batches


def batches(folder: Path, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """See bench.peers."""
    paths = tars(folder)
    held = max(work.batch, _BUFFER_BYTES // (2 * int(np.prod(work.shape))))

    @pipeline_def(  # type: ignore[untyped-decorator]  # DALI has no types
        batch_size=work.batch, num_threads=workers, device_id=None, prefetch_queue_depth=_AHEAD
    )
    def graph() -> Any:
        payload = fn.readers.webdataset(
            paths=list(map(str, paths)), index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=["npy" if work.codec == "npy" else "tif"], random_shuffle=True, initial_fill=held,
        )  # fmt: skip
        return fn.crop_mirror_normalize(
            _decoded(payload, work), dtype=types.FLOAT, output_layout="CHW", crop=(work.crop, work.crop),
            crop_pos_x=fn.random.uniform(range=(0, 1)), crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(), mean=list(work.mean), std=list(work.std),
        )  # fmt: skip

    pipeline = graph()
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield torch.utils.dlpack.from_dlpack(images.as_tensor())


def _decoded(payload: Any, work: Work) -> Any:
    """[C, Y, X], uint16."""
    if work.codec == "npy":
        return fn.reshape(fn.decoders.numpy(payload), layout="CHW")
    return fn.decoders.image(payload, output_type=types.ANY_DATA, dtype=types.UINT16)  # HWC

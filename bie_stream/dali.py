"""NVIDIA DALI back end, CPU (`device_id=None`) or GPU: same work, same images as the native one.

Payloads go in through `external_source` without a copy: npy as bytes, decoded here by DALI; other codecs as pixels,
decoded in the threads that fetch (see `_inputs`). Every random choice comes in as a per-sample
argument, so DALI draws nothing itself. Equal bits for crop, turn, mirror and dataset normalisation; per-image
normalisation sums in another order (see tests/bie_stream/test_loader.py for the tolerance).
"""

from collections import deque
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray

from bie_stream import codecs
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR
from bie_stream.work import Fetch, Images, Settings, Work, ahead

Inputs = list[codecs.Pixels]


def images(steps: range, fetch: Fetch, settings: Settings) -> Images:
    """Each batch of work with its images [B, C, Y, X] on the device, in order."""
    depth = min(settings.prefetch_batches + 1, len(steps))
    if not depth:
        return
    pipeline = _pipeline(settings, depth)

    def prepare(step: int) -> tuple[Work, Inputs]:
        work = fetch(step)
        return work, _inputs(work, settings)

    inside: deque[tuple[Work, Inputs]] = deque()  # DALI reads inputs where they lie: they are kept until they are out
    for work, inputs in ahead(prepare, steps, settings.threads, settings.prefetch_batches):
        _feed(pipeline, work, inputs)
        inside.append((work, inputs))
        if len(inside) == depth:
            pipeline.schedule_run()  # the first call runs all `depth` batches that were fed, each later call one
            yield inside[0][0], _take(pipeline, settings)
            inside.popleft()
    while inside:
        yield inside[0][0], _take(pipeline, settings)
        inside.popleft()


def _inputs(work: Work, settings: Settings) -> Inputs:
    """What goes into the pipeline: bytes of npy, [C, Y, X] pixels of other codecs.

    DALI on a CPU has no Blosc2, decodes HTJ2K by the same OpenJPEG with a line on stderr for every image, and
    deflated TIFF no faster than tifffile.
    """
    if settings.codec == "npy":
        return [np.frombuffer(payload, np.uint8) for payload in work.payloads]
    decoded = (codecs.decode(p, settings.codec, form) for p, form in zip(work.payloads, work.forms, strict=True))
    return [np.ascontiguousarray(pixels) for pixels in decoded]


def _feed(pipeline: Pipeline, work: Work, inputs: Inputs) -> None:
    view = work.view
    pipeline.feed_input("payload", inputs)
    pipeline.feed_input("corner", list(np.stack([view.top, view.left], axis=1).astype(np.int32)))
    for name in ("swap", "flip_y", "flip_x"):
        pipeline.feed_input(name, list(getattr(view, name).astype(np.int32)))


def _take(pipeline: Pipeline, settings: Settings) -> torch.Tensor:
    (output,) = pipeline.share_outputs()
    batch = torch.empty(output.as_tensor().shape(), dtype=torch.float32, device=settings.device)
    feed_ndarray(output.as_tensor(), batch)
    pipeline.release_outputs()
    return batch.to(settings.dtype)


def _pipeline(settings: Settings, depth: int) -> Pipeline:
    on_gpu = settings.device.type == "cuda"
    height, width = settings.crop

    @pipeline_def(  # type: ignore[untyped-decorator]  # DALI has no types
        batch_size=settings.batch_size,
        num_threads=settings.threads,
        device_id=(settings.device.index or 0) if on_gpu else None,
        prefetch_queue_depth=depth,
        enable_conditionals=True,
    )
    def graph() -> Any:
        encoded = settings.codec == "npy"
        x = fn.external_source(name="payload", ndim=1 if encoded else 3, no_copy=True)
        corner = fn.external_source(name="corner", dtype=types.INT32, ndim=1)
        swap = fn.external_source(name="swap", dtype=types.INT32, ndim=0)
        flip_y = fn.external_source(name="flip_y", dtype=types.INT32, ndim=0)
        flip_x = fn.external_source(name="flip_x", dtype=types.INT32, ndim=0)
        if encoded:
            x = fn.decoders.numpy(x)
        x = fn.slice(x, corner, [height, width], axes=[1, 2])
        x = fn.cat(*[x[c : c + 1] for c in settings.channels], axis=0)
        if on_gpu:
            x = x.gpu()
        if swap != 0:
            x = fn.transpose(x, perm=[0, 2, 1])
        x = fn.flip(fn.reshape(x, layout="CHW"), vertical=flip_y, horizontal=flip_x)
        x = fn.cast(x, dtype=types.FLOAT)
        x = (x - types.Constant(settings.normalisation.shift)) * types.Constant(settings.normalisation.scale)
        if settings.normalisation.per_image:
            x = fn.normalize(x, axes=[1, 2], epsilon=IMAGE_VARIANCE_FLOOR)
        return x

    pipeline = graph()
    pipeline.build()
    return pipeline

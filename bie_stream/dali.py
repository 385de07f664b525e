"""NVIDIA DALI back end, CPU (`device_id=None`) or GPU: same work, same images as the native one.

Payloads go in through `external_source` without a copy: npy as bytes, decoded here by DALI; other codecs as pixels,
decoded in the threads that fetch (see `_inputs`). Every random choice comes in as a per-sample
argument, so DALI draws nothing itself. Equal bits for crop, turn, mirror and dataset normalisation; per-image
normalisation sums in another order, and rotation and scale take their places in float32 (see
tests/bie_stream/test_loader.py for the tolerances). What comes out is a torch tensor without a copy; DALI has no
bfloat16, so torch casts.
"""

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from bie_stream import affine, codecs, finish
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR
from bie_stream.work import Fetch, Images, Piece, Settings, Times, Work, ahead

Inputs = dict[str, list[codecs.Pixels]]
_FLAGS = ("swap", "flip_y", "flip_x")


def images(steps: Sequence[int], fetch: Fetch, settings: Settings, times: Times) -> Images:
    """Each batch of work with its images [B, C, Y, X] on the device, in order."""
    depth = min(settings.prefetch_batches + 1, len(steps))
    pipeline: Pipeline | None = None

    def prepare(step: int) -> tuple[Work, Inputs]:
        work = fetch(step)
        with times.busy("decode"):
            return work, _inputs(work.pieces[0], settings)

    inside: deque[tuple[Work, Inputs]] = deque()  # DALI reads inputs where they lie: they are kept until they are out
    with contextlib.closing(ahead(prepare, steps, settings)) as prepared:
        for work, inputs in prepared:
            pipeline = pipeline or _pipeline(settings, depth)
            for name, values in inputs.items():
                pipeline.feed_input(name, values)
            inside.append((work, inputs))
            if len(inside) == depth:
                pipeline.schedule_run()  # the first call runs all `depth` batches that were fed, each later call one
                yield inside[0][0], _take(pipeline, inside[0][0], settings)
                inside.popleft()
    while pipeline is not None and inside:
        yield inside[0][0], _take(pipeline, inside[0][0], settings)
        inside.popleft()


def _inputs(piece: Piece, settings: Settings) -> Inputs:
    """What goes into the pipeline: bytes of npy or [C, Y, X] pixels of other codecs, and what is done with them.

    DALI on a CPU has no Blosc2, decodes HTJ2K by the same OpenJPEG with a line on stderr for every image, and
    deflated TIFF no faster than tifffile.
    """
    kind, view = settings.kinds[0], piece.view
    encoded = kind.codec == "npy"
    inside = [np.frombuffer(each, np.uint8) for each in piece.payloads] if encoded else piece.decoded(kind)
    inputs: Inputs = {"payload": piece.by_image(inside)}
    if view.matrix is None:
        inputs["corner"] = list(np.stack([view.top, view.left], axis=1).astype(np.int32))
        return inputs | {name: list(getattr(view, name).astype(np.int32)) for name in _FLAGS}
    about = affine.centre(view, settings.crop)
    corner, size = affine.window(view.matrix, about, piece.shapes[:, 1:], settings.crop)
    matrix = affine.dali_matrix(view.matrix, about, corner, settings.crop)
    return inputs | {
        "corner": list(corner.astype(np.int32)),
        "size": list(size.astype(np.int32)),
        "matrix": list(matrix),
    }


def _take(pipeline: Pipeline, work: Work, settings: Settings) -> torch.Tensor:
    (output,) = pipeline.share_outputs()
    shared = torch.utils.dlpack.from_dlpack(output.as_tensor())  # memory that DALI writes to again after the release
    batch = shared.to(torch.float32 if settings.finished else settings.dtype, copy=True)
    if batch.is_cuda:
        torch.cuda.current_stream().synchronize()
    pipeline.release_outputs()
    return finish.apply(batch, work.pieces[0].view).to(settings.dtype) if settings.finished else batch


def _pipeline(settings: Settings, depth: int) -> Pipeline:
    on_gpu, resamples = settings.device.type == "cuda", settings.resampled
    kind, (height, width) = settings.kinds[0], settings.crop

    def argument(name: str, dtype: Any, ndim: int) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim)

    @pipeline_def(  # type: ignore[untyped-decorator]  # DALI has no types
        batch_size=settings.images,
        num_threads=settings.threads,
        device_id=(settings.device.index or 0) if on_gpu else None,
        prefetch_queue_depth=depth,
        enable_conditionals=True,
    )
    def graph() -> Any:
        encoded = kind.codec == "npy"
        x = fn.external_source(name="payload", ndim=1 if encoded else 3, no_copy=True)
        corner = argument("corner", types.INT32, 1)
        if encoded:
            x = fn.decoders.numpy(x)
        x = fn.slice(x, corner, argument("size", types.INT32, 1) if resamples else [height, width], axes=[1, 2])
        x = fn.cat(*[x[c : c + 1] for c in kind.channels.tolist()], axis=0)
        matrix = argument("matrix", types.FLOAT, 2) if resamples else None
        swap, flip_y, flip_x = (None if resamples else argument(name, types.INT32, 0) for name in _FLAGS)
        if on_gpu:
            x = x.gpu()
        if matrix is not None:
            x = fn.expand_dims(fn.reshape(fn.cast(x, dtype=types.FLOAT), layout="FHW"), axes=3, new_axis_names="C")
            x = fn.squeeze(fn.warp_affine(x, matrix=matrix, size=(height, width)), axes=3)
        else:
            if swap != 0:
                x = fn.transpose(x, perm=[0, 2, 1])
            x = fn.flip(fn.reshape(x, layout="CHW"), vertical=flip_y, horizontal=flip_x)
            x = fn.cast(x, dtype=types.FLOAT)
        x = (x - types.Constant(kind.normalisation.shift)) * types.Constant(kind.normalisation.scale)
        if kind.normalisation.per_image:
            x = fn.normalize(x, axes=[1, 2], epsilon=IMAGE_VARIANCE_FLOOR)
        return x

    pipeline = graph()
    pipeline.build()
    return pipeline

"""NVIDIA DALI back end, CPU (`device_id=None`) or GPU: same work, same images as the native one.

Payloads go in through `external_source` without a copy: npy as bytes, decoded here by DALI; other codecs as pixels,
decoded in the threads that fetch (see `_inputs`). Every random choice comes in as a per-sample
argument, so DALI draws nothing itself. It has to do with the channels that a dataset has; those that are absent stay 0
in the batch. Equal bits for crop, turn, mirror and dataset normalisation; per-image
normalisation sums in another order, and rotation and scale take their places in float32 (see
tests/bie_stream/test_loader.py for the tolerances). What comes out is a torch tensor without a copy; DALI has no
bfloat16, so torch casts.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from bie_stream import affine, codecs, finish
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR
from bie_stream.work import Fetch, Images, Kind, Piece, Settings, Times, Work, ahead

Inputs = dict[str, list[codecs.Pixels]]
Running = tuple[Work, list[Inputs]]
_FLAGS = ("swap", "flip_y", "flip_x")


def images(steps: Sequence[int], fetch: Fetch, settings: Settings, times: Times) -> Images:
    """Each batch of work with its images [B, C, Y, X] on the device, in order.

    While a batch is used, DALI works on the one after it.
    """
    pipelines: dict[int, Pipeline] = {}  # of each dataset

    def prepare(step: int) -> Running:
        work = fetch(step)
        with times.busy("decode"):
            return work, [_inputs(piece, settings) for piece in work.pieces]

    inside: Running | None = None  # DALI reads inputs where they lie: they are kept until it is done
    with contextlib.closing(ahead(prepare, steps, settings)) as prepared:
        for running in prepared:
            done = None if inside is None else (inside[0], _take(inside[0], pipelines, settings))
            for piece, inputs in zip(running[0].pieces, running[1], strict=True):
                if piece.dataset not in pipelines:
                    pipelines[piece.dataset] = _pipeline(settings, settings.kinds[piece.dataset])
                for name, values in inputs.items():
                    pipelines[piece.dataset].feed_input(name, values)
                pipelines[piece.dataset].schedule_run()
            inside = running
            if done is not None:
                yield done
                del done
    if inside is not None:
        yield inside[0], _take(inside[0], pipelines, settings)


def _inputs(piece: Piece, settings: Settings) -> Inputs:
    """What goes into the pipeline: bytes of npy or [C, Y, X] pixels of other codecs, and what is done with them.

    DALI on a CPU has no Blosc2, decodes HTJ2K by the same OpenJPEG with a line on stderr for every image, and
    deflated TIFF no faster than tifffile.
    """
    kind, view = settings.kinds[piece.dataset], piece.view
    if kind.codec == "npy":
        payload, top = piece.by_image([np.frombuffer(each, np.uint8) for each in piece.payloads]), view.top
    else:
        decoded = piece.decoded(kind, settings.crop[0])
        payload, top = decoded.pixels, decoded.top
    inputs: Inputs = {
        "payload": payload,
        "shift": list(piece.shift.compress(kind.present, axis=1)[:, :, None, None]),
        "scale": list(piece.scale.compress(kind.present, axis=1)[:, :, None, None]),
    }
    if view.matrix is None:
        inputs["corner"] = list(np.stack([top, view.left], axis=1).astype(np.int32))
        return inputs | {name: list(getattr(view, name).astype(np.int32)) for name in _FLAGS}
    about = affine.centre(view, settings.crop)
    corner, size = affine.window(view.matrix, about, piece.shapes[:, 1:], settings.crop)
    matrix = affine.dali_matrix(view.matrix, about, corner, settings.crop)
    return inputs | {
        "corner": list(corner.astype(np.int32)),
        "size": list(size.astype(np.int32)),
        "matrix": list(matrix),
    }


def _take(work: Work, pipelines: dict[int, Pipeline], settings: Settings) -> torch.Tensor:
    dtype = torch.float32 if settings.finished else settings.dtype
    kinds = [settings.kinds[piece.dataset] for piece in work.pieces]
    filled = all(kind.present.all() for kind in kinds)
    batch: torch.Tensor | None = None
    for piece, kind in zip(work.pieces, kinds, strict=True):
        pipeline = pipelines[piece.dataset]
        (output,) = pipeline.share_outputs()
        shared = torch.utils.dlpack.from_dlpack(output.as_tensor())  # memory that DALI writes to after the release
        if batch is None:
            shape = (settings.images, len(kind.channels), *settings.crop)
            batch = (torch.empty if filled else torch.zeros)(shape, dtype=dtype, device=shared.device)
        if filled and len(work.pieces) == 1:
            batch.copy_(shared)
        else:
            planes = piece.rows[:, None] * len(kind.channels) + np.flatnonzero(kind.present)
            batch.flatten(0, 1)[torch.from_numpy(planes.ravel()).to(shared.device)] = shared.to(dtype).flatten(0, 1)
        if batch.is_cuda:
            torch.cuda.current_stream().synchronize()
        pipeline.release_outputs()
    assert batch is not None, "a batch is not empty"
    if settings.finished:
        finish.apply_to(batch, [(piece.rows, piece.view) for piece in work.pieces])
    return batch.to(settings.dtype)


def _pipeline(settings: Settings, kind: Kind) -> Pipeline:
    on_gpu, resamples = settings.device.type == "cuda", settings.resampled
    height, width = settings.crop

    def argument(name: str, dtype: Any, ndim: int) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim)

    @pipeline_def(  # type: ignore[untyped-decorator]  # DALI has no types
        batch_size=settings.images,
        num_threads=settings.threads,
        device_id=(settings.device.index or 0) if on_gpu else None,
        exec_pipelined=False,
        enable_conditionals=True,
    )
    def graph() -> Any:
        encoded = kind.codec == "npy"
        x = fn.external_source(name="payload", ndim=1 if encoded else 3, no_copy=True)
        corner = argument("corner", types.INT32, 1)
        if encoded:
            x = fn.decoders.numpy(x)
        x = fn.slice(x, corner, argument("size", types.INT32, 1) if resamples else [height, width], axes=[1, 2])
        stored = kind.channels[kind.present].tolist()
        wanted = range(len(stored)) if kind.in_rows(resamples) else stored
        x = fn.cat(*[x[c : c + 1] for c in wanted], axis=0)
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
        shift, scale = argument("shift", types.FLOAT, 3), argument("scale", types.FLOAT, 3)
        x = (x - (shift.gpu() if on_gpu else shift)) * (scale.gpu() if on_gpu else scale)
        if kind.per_image:
            x = fn.normalize(x, axes=[1, 2], epsilon=IMAGE_VARIANCE_FLOOR)
        return x

    pipeline = graph()
    pipeline.build()
    return pipeline

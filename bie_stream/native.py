"""CPU back end, for any platform: crop, turn, normalise and cast in one compiled pass, one thread a batch.

Batches are written into memory that is used again: new memory would take as long as the pass itself.
"""

import sys
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bie_stream import affine, finish, normalise
from bie_stream.kernels import crop_into
from bie_stream.work import Decoded, Fetch, Images, Kind, Piece, Settings, Times, Work, ahead, on_device


def images(steps: Sequence[int], fetch: Fetch, settings: Settings, times: Times, slabs: "Slabs") -> Images:
    """Each batch of work with its images [B, C, Y, X] on the device, in order."""

    def prepare(step: int) -> tuple[Work, torch.Tensor]:
        work = fetch(step)
        slab = slabs.take(len(settings.kinds[work.pieces[0].dataset].channels))
        for piece in work.pieces:
            kind = settings.kinds[piece.dataset]
            with times.busy("decode"):
                decoded = piece.decoded(kind, settings.crop[0]) if piece.payloads else None
            with times.busy("transform"):
                _write(piece, kind, decoded, slab.numpy())
        with times.busy("transform"):
            batch = _finished(work, slab, settings)
        with times.busy("copy"):
            return work, on_device(batch, settings.device)

    yield from ahead(prepare, steps, settings)


def _write(piece: Piece, kind: Kind, decoded: Decoded | None, slab: npt.NDArray[np.generic]) -> None:
    view = piece.view
    if view.matrix is not None:
        assert decoded is not None, "addresses are of plain crops"
        about = affine.centre(view, (slab.shape[2], slab.shape[3]))
        each = zip(decoded.pixels, piece.rows, view.matrix, about, piece.shift, piece.scale, strict=True)
        for pixels, row, matrix, centre, shift, scale in each:
            affine.sample(pixels, kind.channels, matrix, centre, shift, scale, slab[row])
            if kind.per_image:
                normalise.standardise(slab[row])
        return
    addresses, shapes, channels, top = piece.addresses, piece.shapes, kind.channels, view.top
    if decoded is not None:
        addresses = np.array([pixels.ctypes.data for pixels in decoded.pixels], np.int64)
        shapes, channels, top = decoded.shapes, decoded.channels, decoded.top
    crop_into(
        addresses, shapes, np.empty(0, kind.dtype), channels, top, view.left, view.swap, view.flip_y, view.flip_x,
        piece.shift, piece.scale, kind.per_image, piece.rows, slab,
    )  # fmt: skip


def _finished(work: Work, slab: torch.Tensor, settings: Settings) -> torch.Tensor:
    if slab.dtype != torch.float32:
        return slab.view(torch.bfloat16)
    if settings.finished:
        finish.apply_to(slab, [(piece.rows, piece.view) for piece in work.pieces])
    return slab.to(settings.dtype)


class Slabs:
    """Memory for batches: what nobody holds any more is given out again. It is pinned where it goes to a GPU."""

    def __init__(self, settings: Settings) -> None:
        in_16_bits = settings.dtype == torch.bfloat16 and not (settings.resampled or settings.finished)
        self._dtype = torch.uint16 if in_16_bits else torch.float32  # the bits of bfloat16, which NumPy does not have
        self._images, self._crop = settings.images, settings.crop
        self._pinned = settings.device.type == "cuda"
        self._all: list[npt.NDArray[np.generic]] = []
        self._lock = threading.Lock()

    def take(self, channels: int) -> torch.Tensor:
        """[B, C, Y, X], with what an earlier batch left in it."""
        shape = (self._images, channels, *self._crop)
        with self._lock:
            for number in range(len(self._all)):
                if self._all[number].shape == shape and _holders(self._all, number) == _NOBODY:
                    return torch.from_numpy(self._all[number])
            self._all.append(torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned).numpy())
            return torch.from_numpy(self._all[-1])


def _holders(memories: list[npt.NDArray[np.generic]], number: int) -> int:
    """How many hold this memory: a tensor made of it counts, for as long as it or a part of it lives."""
    return sys.getrefcount(memories[number])


_NOBODY = _holders([np.empty(0)], 0)

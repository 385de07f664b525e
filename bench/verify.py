"""Is a batch what it should be? Each image is found again in the reference pixels, and held against them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.works import Pixels, Work
from bie_stream.compiled import compiled

_IMAGES = 24  # of a batch; with them the chance of no mirrored one among honest ones is 2⁻²⁴
_PROBE = 8  # pixels of a row, enough to know a place by its noise
_TOLERANCE = 1e-4  # of a standard deviation, for another order of operations in float32
_STEPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # along y, along x


class UnequalWork(ValueError):
    """A contender that delivers something else than was asked; nothing may be compared to it."""


def verify(sample: Path, pixels: Pixels, work: Work) -> None:
    """Holds a batch to the reference [N, C, Y, X].

    Raises:
        UnequalWork: another shape or dtype, pixels that are in no sample, or always the same crop or mirror.
    """
    batch = np.load(sample, mmap_mode="r")
    if batch.shape != work.deliverable or batch.dtype != np.float32:
        raise UnequalWork(f"batches {list(batch.shape)} {batch.dtype}, asked for {list(work.deliverable)} float32")
    numbers = np.unique(np.linspace(0, len(batch) - 1, _IMAGES).astype(int))
    places = [_find(batch[number], pixels, work) for number in numbers]
    if len({place[:3] for place in places}) < len(places) / 2:
        raise UnequalWork("the same crops again and again")
    if len(places) == _IMAGES and len({place[3][1] for place in places}) < 2:
        raise UnequalWork("images are never mirrored, or always")


def _find(image: npt.NDArray[np.float32], pixels: Pixels, work: Work) -> tuple[int, int, int, tuple[int, int]]:
    """Sample, top, left and steps of one image; raises UnequalWork."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (work.mean, work.std))
    grey = np.rint(image[0] * std[0] + mean[0]).clip(0, 65535).astype(np.uint16)
    width = min(_PROBE, work.crop)
    probes = np.stack([np.ascontiguousarray(grey[::y, ::x][0, :width]) for y, x in _STEPS])
    number, top, left, which = _search(pixels[:, 0], probes, work.crop)
    if number < 0:
        raise UnequalWork("an image that is in no sample")
    y, x = _STEPS[which]
    crop = pixels[number, :, top : top + work.crop, left : left + work.crop][:, ::y, ::x]
    difference = float(np.abs((crop - mean) / std - image).max())
    if difference > _TOLERANCE:
        raise UnequalWork(f"an image differs from the pixels of sample {number} by {difference:.2g}")
    return number, top, left, (y, x)


@compiled
def _search(planes: Any, probes: Any, size: int) -> Any:
    """Where the first row of a crop begins as one of the probes: sample, top, left, number of the probe; or −1."""
    samples, height, width = planes.shape
    for n in range(samples):
        for y in range(height - size + 1):
            for row in range(probes.shape[0]):
                probe = probes[row]
                for x in range(width - size + 1):
                    if planes[n, y, x] == probe[0] and np.all(planes[n, y, x : x + len(probe)] == probe):
                        return n, y, x, row
    return -1, -1, -1, -1

"""Is a batch what it should be? Each image is found again in the reference pixels, and held against them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.works import Pixels, Work
from bie_stream.compiled import compiled

_IMAGES = 24  # of a batch; with them the chance of no mirrored one among honest ones is 2⁻²⁴
_TOLERANCE = 1e-4  # of a standard deviation, for another order of operations in float32
_STEPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # along y, along x

Images = npt.NDArray[np.float32]  # [B, C, crop, crop], or [C, crop, crop]
Place = tuple[int, int, int, int]  # sample, top, left, and the step along x


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
    images = batch[np.unique(np.linspace(0, len(batch) - 1, _IMAGES).astype(int))]
    places = [
        _hold(image, found, pixels, work) for image, found in zip(images, _search(images, pixels, work), strict=True)
    ]
    if len({place[:3] for place in places}) < len(places) / 2:
        raise UnequalWork("the same crops again and again")
    if len(places) == _IMAGES and len({place[3] for place in places}) < 2:
        raise UnequalWork("images are never mirrored, or always")


def _search(images: Images, pixels: Pixels, work: Work) -> npt.NDArray[np.int64]:
    """Where each image would be, mirrored as each of _STEPS: [images, steps, 3] sample, top, left; or −1."""
    grey = np.rint(images[:, 0] * np.float32(work.std[0]) + np.float32(work.mean[0])).clip(0, 65535).astype(np.uint16)
    # The first row of each: a whole one, because a few pixels may be saturated and then are found in many places.
    probes = np.stack([grey[:, ::y, ::x][:, 0] for y, x in _STEPS], axis=1)
    found: npt.NDArray[np.int64] = np.full((*probes.shape[:2], 3), -1)
    _scan(pixels[:, 0], probes.reshape(-1, probes.shape[2]), work.crop, found.reshape(-1, 3))
    return found


def _hold(image: Images, found: npt.NDArray[np.int64], pixels: Pixels, work: Work) -> Place:
    """Holds one image to the places where its rows were found, of which one is right; raises UnequalWork."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (work.mean, work.std))
    places = []
    for (number, top, left), (y, x) in zip(found.tolist(), _STEPS, strict=True):
        if number >= 0:
            crop = pixels[number, :, top : top + work.crop, left : left + work.crop][:, ::y, ::x]
            places.append((float(np.abs((crop - mean) / std - image).max()), (number, top, left, x)))
    difference, place = min(places, default=(np.inf, (-1, -1, -1, 0)))
    if difference > _TOLERANCE:
        raise UnequalWork(f"an image that is in no sample: the nearest differs by {difference:.2g}")
    return place


@compiled
def _scan(planes: Any, probes: Any, size: int, found: Any) -> None:
    """Notes where the pixels of a row are those of a probe; one pass, in which two pixels rule out most places."""
    likely = np.zeros(2**16, np.bool_)
    for probe in probes:
        likely[_mixed(probe[0], probe[1])] = True
    samples, height, width = planes.shape
    for n in range(samples):
        for y in range(height - size + 1):
            for x in range(width - size + 1):
                if likely[_mixed(planes[n, y, x], planes[n, y, x + 1])]:
                    for i in range(len(probes)):
                        if _same(planes[n, y], x, probes[i]):
                            found[i, 0], found[i, 1], found[i, 2] = n, y, x


@compiled
def _same(row: Any, start: int, probe: Any) -> bool:
    for i in range(len(probe)):  # noqa: SIM110 - compiled
        if row[start + i] != probe[i]:
            return False
    return True


@compiled
def _mixed(a: Any, b: Any) -> Any:
    """A number of 16 bits for two pixels."""
    return np.uint16((np.uint32(a) * np.uint32(251) + np.uint32(b)) & np.uint32(0xFFFF))

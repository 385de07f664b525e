"""What the loaders are measured on: sets of made-up microscopy, and what is to be delivered of each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Codec = Literal["npy", "tif", "jph", "blosc2"]  # as bie_stream's, which a peer's environment does not have
PIXELS = "pixels.npy"  # the reference, in the folder of a work
Pixels = npt.NDArray[np.uint16]  # [C, Y, X], or [N, C, Y, X]

_SCENES, _CELLS, _OFFSET, _FULL = 4, 3e-4, 100, 4095  # cells per pixel; grey values of a 12-bit camera


@dataclass(frozen=True)
class Work:
    """Batches of random crops, mirrored at random, (x − mean) / std per channel, float32.

    Attributes:
        shape: C, Y, X of a sample, uint16.
        crop: side in pixels.
        samples: on disk, all different.
        laps: times that an epoch goes over them, for who cannot go on without an end of the epoch: real epochs are
            long, and what their ends cost is not what is measured.
        codec: of our payloads; of the peers' see `bench.peers.Peer.payloads`.
        mean, std: of each channel; known once the images are made.
    """

    name: str
    shape: tuple[int, int, int]
    crop: int
    samples: int
    laps: int
    codec: Codec = "npy"
    batch: int = 64
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def images(self) -> str:
        """Name of the set of images: works of other codecs have the same."""
        return f"{'x'.join(map(str, self.shape))}-{self.samples}-{self.laps}"

    @property
    def deliverable(self) -> tuple[int, int, int, int]:
        """Shape of a batch."""
        return (self.batch, self.shape[0], self.crop, self.crop)


FIELDS = Work("fields", (4, 512, 512), crop=224, samples=768, laps=4)
WORKS = {
    work.name: work
    for work in (
        FIELDS,
        Work("small", (5, 64, 64), crop=64, samples=8192, laps=1),
        Work("tiles", (5, 256, 256), crop=224, samples=1536, laps=2),
        Work("planes", (1, 2160, 2560), crop=256, samples=96, laps=16),
        *(replace(FIELDS, name=f"fields-{codec}", codec=codec) for codec in ("tif", "jph", "blosc2")),
    )
}


def write_pixels(folder: Path, work: Work) -> None:
    """All samples as one .npy file; beside it their mean and std per channel as JSON, which is written last."""
    path = folder / PIXELS
    sums = np.zeros((2, work.shape[0]))
    pixels = np.lib.format.open_memmap(path, "w+", np.uint16, (work.samples, *work.shape))
    for place, image in zip(pixels, _images(work), strict=True):
        place[:] = image
        sums += [[op(channel, dtype=np.float64) for channel in image] for op in (np.sum, _squares)]
    mean, square = sums / (work.samples * work.shape[1] * work.shape[2])
    path.with_suffix(".json").write_text(json.dumps({"mean": list(mean), "std": list(np.sqrt(square - mean**2))}))


def read_pixels(folder: Path, work: Work) -> tuple[Pixels, Work]:
    """The samples [N, C, Y, X], memory-mapped, and the work with their mean and std."""
    path = folder / PIXELS
    found = json.loads(path.with_suffix(".json").read_text())
    return np.load(path, mmap_mode="r"), replace(work, mean=tuple(found["mean"]), std=tuple(found["std"]))


def _squares(channel: Pixels, dtype: type[np.float64]) -> np.float64:
    return np.square(channel, dtype=dtype).sum()


def _images(work: Work) -> Iterator[Pixels]:
    """Cells over a background with photon noise, which is what decides how well microscopy can be compressed."""
    rng = np.random.default_rng(0)
    scenes = [_scene(rng, work.shape) for _ in range(_SCENES)]
    for sample in range(work.samples):
        light = scenes[sample % _SCENES] * rng.lognormal(0, 0.3, (work.shape[0], 1, 1)).astype(np.float32)
        noise = rng.standard_normal(work.shape, np.float32) * np.sqrt(light)  # Poisson's, at these counts
        yield (light + noise + _OFFSET).clip(0, _FULL).astype(np.uint16)


def _scene(rng: np.random.Generator, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Light without noise: cells as blurred points, each channel with its own."""
    _, height, width = shape
    points = (rng.random(shape) < _CELLS) * rng.lognormal(0, 0.5, shape)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    sigma = 7.0  # pixels
    blurred = np.fft.irfft2(np.fft.rfft2(points) * np.exp(-2 * (np.pi * sigma) ** 2 * (y**2 + x**2)), s=shape[1:])
    return (150 + 900 * blurred.clip(0) * 2 * np.pi * sigma**2).astype(np.float32)

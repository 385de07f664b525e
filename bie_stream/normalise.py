"""From the numbers of the microscope to the numbers of a model, per channel.

`dataset`  (x − mean) / std of the whole dataset
`plate`    the same of the sample's plate: what differs from plate to plate, stain and exposure, goes
`image`    as `dataset`, then each image on its own to mean 0 and variance 1 ("self-standardised",
           Kraus et al., CVPR 2024); IMAGE_VARIANCE_FLOOR, in units of the dataset's variance, keeps an empty
           image from being blown up to pure noise
`none`     x
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bie_stream.errors import DatasetError
from bie_stream.shards import ChannelStatistics, PlateStatistics

Normalise = Literal["dataset", "plate", "image", "none"]
Statistics = ChannelStatistics | PlateStatistics
Floats = npt.NDArray[np.float32]

IMAGE_VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Normalisation:
    """What both back ends apply: y = (x − shift) · scale in float32, then per image where `per_image`.

    Attributes:
        shift, scale: [P, C] float32, of each plate; P = 1 where they are the same for all. Both are 0 for a channel
            that is absent, of which there are no numbers.
    """

    shift: Floats
    scale: Floats
    per_image: bool = False


def normalisation(
    kind: Normalise, channels: tuple[str, ...], statistics: tuple[Statistics | None, ...], plate: str | None = None
) -> Normalisation:
    """The normalisation of these channels by one set of numbers.

    Args:
        statistics: of each; None of one that is absent.
        plate: that they are of; None for the whole dataset.

    Raises:
        DatasetError: a channel is constant, so there is nothing to divide by.
    """
    shift, scale = np.zeros((2, 1, len(channels)), np.float32)
    for i, (name, channel) in enumerate(zip(channels, statistics, strict=True)):
        if channel is None:
            continue
        if kind == "none":
            scale[0, i] = 1
            continue
        if channel.std == 0:
            where, instead = ("everywhere", "none") if plate is None else (f"all over plate {plate}", "dataset")
            leave = "it out of `channels`" if plate is None else "that plate out"
            raise DatasetError(
                f"channel {name!r} has the value {channel.mean:g} {where}: nothing to learn from it; "
                f"leave {leave}, or use normalise={instead!r}"
            )
        shift[0, i], scale[0, i] = channel.mean, 1 / channel.std
    return Normalisation(shift, scale, per_image=kind == "image")


def normalisation_by_plate(
    channels: tuple[str, ...], statistics: dict[str, tuple[PlateStatistics | None, ...]]
) -> Normalisation:  # fmt: skip
    """The normalisation of each plate by its own numbers, in their order; raises as `normalisation`."""
    each = [normalisation("plate", channels, of_plate, plate) for plate, of_plate in statistics.items()]
    return Normalisation(np.concatenate([by.shift for by in each]), np.concatenate([by.scale for by in each]))


def standardise(image: Floats) -> None:
    """Brings each channel of one [C, Y, X] image to mean 0 and variance 1, in place."""
    image -= image.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    image /= np.sqrt(np.square(image).mean(axis=(1, 2), keepdims=True, dtype=np.float64) + IMAGE_VARIANCE_FLOOR)


def apply(pixels: npt.NDArray[np.generic], by: Normalisation, out: Floats, plate: int = 0) -> None:
    """Normalises one [C, Y, X] image into `out`, float32: the definition, which tests hold the back ends against."""
    np.copyto(out, pixels, casting="same_kind" if pixels.dtype.kind == "f" else "safe")
    out -= by.shift[plate][:, None, None]
    out *= by.scale[plate][:, None, None]
    if by.per_image:
        standardise(out)

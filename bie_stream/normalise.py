"""From the numbers of the microscope to the numbers of a model, per channel.

`dataset`  (x − mean) / std of the whole dataset
`image`    the same, then each image on its own to mean 0 and variance 1 ("self-standardised",
           Kraus et al., CVPR 2024); IMAGE_VARIANCE_FLOOR, in units of the dataset's variance, keeps an empty
           image from being blown up to pure noise
`none`     x
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bie_stream.errors import DatasetError
from bie_stream.shards import ChannelStatistics

Normalise = Literal["dataset", "image", "none"]

IMAGE_VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Normalisation:
    """What both back ends apply: y = (x − shift) · scale in float32, then per image where `per_image`.

    Attributes:
        shift, scale: [C, 1, 1] float32.
    """

    shift: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    per_image: bool


def normalisation(
    kind: Normalise, channels: tuple[str, ...], statistics: tuple[ChannelStatistics, ...]
) -> Normalisation:
    """The normalisation of these channels.

    Raises:
        DatasetError: a channel is constant over the dataset, so there is nothing to divide by.
    """
    shift, scale = np.zeros((len(channels), 1, 1), np.float32), np.ones((len(channels), 1, 1), np.float32)
    if kind != "none":
        for i, (name, channel) in enumerate(zip(channels, statistics, strict=True)):
            if channel.std == 0:
                raise DatasetError(
                    f"channel {name!r} has the value {channel.mean:g} everywhere: nothing to learn from it; "
                    "leave it out of `channels`, or use normalise='none'"
                )
            shift[i], scale[i] = channel.mean, 1 / channel.std
    return Normalisation(shift, scale, per_image=kind == "image")


def standardise(image: npt.NDArray[np.float32]) -> None:
    """Brings each channel of one [C, Y, X] image to mean 0 and variance 1, in place."""
    image -= image.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    image /= np.sqrt(np.square(image).mean(axis=(1, 2), keepdims=True, dtype=np.float64) + IMAGE_VARIANCE_FLOOR)


def apply(pixels: npt.NDArray[np.generic], by: Normalisation, out: npt.NDArray[np.float32]) -> None:
    """Normalises one [C, Y, X] image into `out`, float32: the definition, which tests hold the back ends against."""
    np.copyto(out, pixels, casting="same_kind" if pixels.dtype.kind == "f" else "safe")
    out -= by.shift
    out *= by.scale
    if by.per_image:
        standardise(out)

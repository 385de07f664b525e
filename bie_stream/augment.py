"""What may be done to a sample, as a value; and its parameters, as a pure function of (seed, epoch, sample id).

The same sample in the same epoch gets the same view on any back end, rank, number of threads, or after a resume.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bie_stream.philox import key_of, philox

_AUGMENT_STREAM = 2


@dataclass(frozen=True)
class Augment:
    """What may be done to a sample in training.

    Attributes:
        crop_anywhere: take the crop at a random place; otherwise at the centre.
        flip: mirror along y and along x, each with probability 1/2.
        quarter_turn: turn by 0, 90, 180 or 270 degrees. (With `flip`: the eight symmetries of the square.)
    """

    crop_anywhere: bool = True
    flip: bool = True
    quarter_turn: bool = True


NO_AUGMENT = Augment(crop_anywhere=False, flip=False, quarter_turn=False)


@dataclass(frozen=True)
class View:
    """What is done to each sample of one batch, in this order: crop, swap the axes, mirror.

    Attributes:
        top, left: [B] int64, corner of the crop in pixels.
        swap: [B] bool, exchange y and x.
        flip_y, flip_x: [B] bool, mirror along y, along x.
    """

    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    swap: npt.NDArray[np.bool_]
    flip_y: npt.NDArray[np.bool_]
    flip_x: npt.NDArray[np.bool_]


def draw(
    augment: Augment, ids: npt.NDArray[np.int64], shapes: npt.NDArray[np.int64], crop: tuple[int, int],
    *, seed: int, epoch: int,
) -> View:  # fmt: skip
    """The view of each sample.

    Args:
        ids: [B] sample ids.
        shapes: [B, 2] height and width of each sample in pixels, at least `crop`.
        crop: height and width to cut out; square if quarter turns are allowed.
    """
    counter = np.zeros((len(ids), 4), dtype=np.uint64)
    counter[:, 0] = ids.astype(np.uint64) & np.uint64(0xFFFFFFFF)
    counter[:, 1] = ids.astype(np.uint64) >> np.uint64(32)
    counter[:, 2] = epoch
    bits = philox(counter, key_of(seed, _AUGMENT_STREAM))
    room = shapes - np.asarray(crop) + 1
    if augment.crop_anywhere:  # (bits · room) >> 32 maps 32 uniform bits onto 0..room-1 without a division
        corner = ((bits[:, :2] * room.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    else:
        corner = (room - 1) // 2
    # A quarter turn is an axis swap and one mirror, so swap and mirrors drawn together give all eight symmetries;
    # turns alone (no mirror images) are the four with flip_y xor flip_x equal to swap.
    coin = [(bits[:, 2] >> np.uint64(i)) & np.uint64(1) == 1 for i in range(3)]
    never = np.zeros(len(ids), dtype=bool)
    swap = coin[0] if augment.quarter_turn else never
    flip_y = coin[1] if augment.flip or augment.quarter_turn else never
    turned = flip_y ^ swap if augment.quarter_turn else never
    flip_x = coin[2] if augment.flip else turned
    return View(corner[:, 0], corner[:, 1], swap, flip_y, flip_x)

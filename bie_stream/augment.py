"""What may be done to a sample, as a value; and its parameters, as a pure function of (seed, epoch, sample id, view).

The same sample in the same epoch gets the same view on any back end, rank, number of threads, or after a resume.
Each parameter has words of Philox of its own, so none changes when another is switched on, or with the channels read:

    counter 0, 1   sample id, low and high half
    counter 2      epoch
    counter 3      2**16 · view + block
    block 0        corner along y; corner along x; swap, flip_y, flip_x in bits 0 to 2; not used
    block 1        angle; scale; standard deviation of the noise; sigma
    block 2        radius; not used, thrice
    block 8 + c    of channel c of the image: gain; offset; drop; not used

There is no gamma: a camera counts photons linearly above a black level that no dataset holds, so no power of its
counts is what an instrument does.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bie_stream.errors import ConfigError
from bie_stream.philox import key_of, philox

_AUGMENT_STREAM, _NOISE_STREAM = 2, 3
_VIEW = 2**16
_PLACE, _FORM, _LENS, _CHANNEL = 0, 1, 2, 8  # blocks

_MOST = {
    "rotate_deg": 180, "gain": 9, "offset": 10, "drop_channel": 1, "noise": 10, "blur_px": 16, "defocus_px": 16,
}  # fmt: skip

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Augment:
    """What may be done to a sample in training.

    Intensities are in units of the normalised image: 0 is a mean, 1 a standard deviation.

    Attributes:
        crop_anywhere: take the crop at a random place; otherwise at the centre.
        flip: mirror along y and along x, each with probability 1/2.
        quarter_turn: turn by 0, 90, 180 or 270 degrees. (With `flip`: the eight symmetries of the square.)
        rotate_deg: turn by any angle up to this, either way.
        scale: least and greatest magnification, log-uniform. Sampling is bilinear, so below 1 detail finer than a
            pixel of the image aliases; 0.5, where every second pixel counts, is the least.
        gain: multiply each channel by 1 / (1 + gain) to 1 + gain, log-uniform.
        offset: add up to this to each channel, or subtract it.
        drop_channel: probability that a channel is all 0. Where it comes to every channel that a sample has, one is
            kept.
        noise: greatest standard deviation of Gaussian noise, uniform from 0.
        blur_px: greatest sigma of a Gaussian blur in pixels, uniform from 0.
        defocus_px: greatest radius in pixels of the disc that a point out of focus becomes, uniform from 0; half of
            the samples stay in focus.

    Raises:
        ConfigError: a number is out of its range.
    """

    crop_anywhere: bool = True
    flip: bool = True
    quarter_turn: bool = True
    rotate_deg: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    gain: float = 0.0
    offset: float = 0.0
    drop_channel: float = 0.0
    noise: float = 0.0
    blur_px: float = 0.0
    defocus_px: float = 0.0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} {getattr(self, name):g} should be between 0, which is off, and {most}")
        low, high = self.scale
        if not 0.5 <= low <= high <= 2:
            raise ConfigError(f"scale [{low:g}, {high:g}] should be [least, greatest] between 0.5 and 2; [1, 1] is off")

    @property
    def resamples(self) -> bool:
        """Whether an image's pixels come to lie between those of the sample."""
        return self.rotate_deg > 0 or self.scale != (1, 1)

    @property
    def finishes(self) -> bool:
        """Whether `bie_stream.finish` has anything to do."""
        return self.changes_channels or self.noise > 0 or self.blur_px > 0 or self.defocus_px > 0

    @property
    def changes_channels(self) -> bool:
        """Whether a channel is multiplied, added to or dropped."""
        return self.gain > 0 or self.offset > 0 or self.drop_channel > 0


NO_AUGMENT = Augment(crop_anywhere=False, flip=False, quarter_turn=False)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for each sample of one batch, see `bie_stream.noise`.

    Attributes:
        std: [B, C] float32; 0 for a channel that is dropped or absent.
        counter: [B, 3] int64, sample id (low and high half) and epoch: words 1 to 3 of Philox's counter. Word 0 is
            for the pixels.
        key: of Philox.
    """

    std: Floats
    counter: Integers
    key: tuple[int, int]


@dataclass(frozen=True)
class View:
    """What is done to each sample of one batch, in this order: crop, swap the axes, mirror, `bie_stream.finish`.

    Where there is a `matrix`, it stands for swap and mirrors too. Offsets are (y, x) in pixels; the pixel at offset o
    from the image's centre is then taken at offset matrix · o from the crop's centre, (top, left) + (crop − 1) / 2:

        matrix = R / scale · S      R = [[cos a, sin a], [−sin a, cos a]]: what is seen turns anticlockwise by a
                                    S = [[±1, 0], [0, ±1]], or where swapped [[0, ±1], [±1, 0]]; the sign of the first
                                    column is that of flip_y, of the second that of flip_x

    A place outside the sample counts as the nearest one inside.

    Attributes:
        top, left: [B] int64, corner of the crop in pixels. The crop lies inside the sample; so does the frame turned
            and scaled about its centre, if the sample has room for that.
        swap: [B] bool, exchange y and x.
        flip_y, flip_x: [B] bool, mirror along y, along x.
        matrix: [B, 2, 2] float64; None where neither rotation nor scale is on.
        gain, offset: [B, C] float32, for gain · x + offset, both 0 for a channel that is dropped or absent; None where
            off.
        sigma: [B] float32, of a Gaussian, in pixels; None where off.
        radius: [B] float32, of a disc, in pixels; None where off.
        noise: None where off.
    """

    top: Integers
    left: Integers
    swap: Bools
    flip_y: Bools
    flip_x: Bools
    matrix: Doubles | None = None
    gain: Floats | None = None
    offset: Floats | None = None
    sigma: Floats | None = None
    radius: Floats | None = None
    noise: Noise | None = None


_NO_CHANNELS: Bools = np.zeros(0, bool)


def draw(
    augment: Augment, ids: Integers, shapes: Integers, crop: tuple[int, int],
    *, seed: int, epoch: int | Integers, view: int = 0, present: Bools = _NO_CHANNELS,
) -> View:  # fmt: skip
    """The view of each sample.

    Args:
        ids: [B] sample ids.
        shapes: [B, 2] height and width of each sample in pixels, at least `crop`.
        crop: height and width to cut out; square if quarter turns are allowed.
        view: which one, below 2**16, where a sample is seen several times in an epoch.
        present: [C] which channels of the images the samples have; none will do where gain, offset, drop_channel and
            noise are off.
    """
    random = _Random(ids, seed, epoch, view)
    symmetry = _symmetry(augment, random)
    matrix = _matrix(augment, random, *symmetry) if augment.resamples else None
    top, left = _corner(augment, random, shapes - np.asarray(crop), _overhang(matrix, crop))
    gain, offset = _intensity(augment, random, present) if augment.changes_channels else (None, None)
    return View(
        top, left, *symmetry, matrix, gain, offset,
        sigma=_sigma(augment, random) if augment.blur_px else None,
        radius=_radius(augment, random) if augment.defocus_px else None,
        noise=_noise(augment, random, present) if augment.noise else None,
    )  # fmt: skip


def reach(matrix: Doubles, crop: tuple[int, int]) -> Doubles:
    """How far [B, 2] pixels are taken from the crop's centre along y and x, in pixels."""
    return np.abs(matrix) @ ((np.asarray(crop) - 1) / 2)


class _Random:
    """The random numbers of one view of each of B samples."""

    def __init__(self, ids: Integers, seed: int, epoch: int | Integers, view: int) -> None:
        self.counter = np.stack([ids & 0xFFFFFFFF, ids >> 32, np.full_like(ids, epoch)], axis=1)
        self.seed, self.view = seed, view

    def words(self, *blocks: int) -> npt.NDArray[np.uint64]:
        """[B, blocks, 4], each below 2**32."""
        each = [np.insert(self.counter, 3, self.view * _VIEW + block, axis=1) for block in blocks]
        counter = np.stack(each, axis=1).reshape(-1, 4).astype(np.uint64)
        return philox(counter, key_of(self.seed, _AUGMENT_STREAM)).reshape(-1, len(blocks), 4)

    def uniform(self, *blocks: int) -> Doubles:
        """[B, blocks, 4], between 0 and 1, neither of which occurs."""
        return (self.words(*blocks) + 0.5) / 2**32


def _symmetry(augment: Augment, random: _Random) -> tuple[Bools, Bools, Bools]:
    """Swap, flip_y, flip_x.

    A quarter turn is an axis swap and one mirror, so swap and mirrors drawn together give all eight symmetries;
    turns alone (no mirror images) are the four with flip_y xor flip_x equal to swap.
    """
    bits = random.words(_PLACE)[:, 0, 2]
    coin = [(bits >> np.uint64(i)) & np.uint64(1) == 1 for i in range(3)]
    never = np.zeros(len(bits), dtype=bool)
    swap = coin[0] if augment.quarter_turn else never
    flip_y = coin[1] if augment.flip or augment.quarter_turn else never
    turned = flip_y ^ swap if augment.quarter_turn else never
    flip_x = coin[2] if augment.flip else turned
    return swap, flip_y, flip_x


def _matrix(augment: Augment, random: _Random, swap: Bools, flip_y: Bools, flip_x: Bools) -> Doubles:
    """R / scale · S of `View`."""
    angle, zoom = random.uniform(_FORM)[:, 0, :2].T
    angle = np.radians(augment.rotate_deg * (2 * angle - 1))
    low, high = augment.scale
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / (low * (high / low) ** zoom)
    y, x = 1 - 2 * flip_y.astype(np.float64), 1 - 2 * flip_x.astype(np.float64)
    symmetry = np.where(swap, [[0 * x, x], [y, 0 * y]], [[y, 0 * x], [0 * y, x]])
    return np.einsum("ijb,jkb->bik", turn, symmetry)


def _overhang(matrix: Doubles | None, crop: tuple[int, int]) -> Integers | int:
    """By how many pixels [B, 2] a turned and scaled frame sticks out of the crop on either side."""
    if matrix is None:
        return 0
    beyond = reach(matrix, crop) - (np.asarray(crop) - 1) / 2
    return np.ceil(beyond - 1e-6).clip(0).astype(np.int64)  # rounding is not sticking out


def _corner(augment: Augment, random: _Random, room: Integers, overhang: Integers | int) -> tuple[Integers, Integers]:
    """Top and left: at least `overhang` from each edge of the `room` [B, 2], or as near to its middle as can be."""
    if not augment.crop_anywhere:
        return room[:, 0] // 2, room[:, 1] // 2
    least = np.minimum(overhang, room // 2)
    places = (room - 2 * least + 1).astype(np.uint64)
    bits = random.words(_PLACE)[:, 0, :2]  # (bits · n) >> 32 maps 32 uniform bits onto 0..n-1 without a division
    corner = least + ((bits * places) >> np.uint64(32)).astype(np.int64)
    return corner[:, 0], corner[:, 1]


def _intensity(augment: Augment, random: _Random, present: Bools) -> tuple[Floats, Floats]:
    """Gain and offset [B, C]."""
    uniform = random.uniform(*_blocks(present))
    kept = _kept(augment, uniform, present)
    gain = (1 + augment.gain) ** (2 * uniform[..., 0] - 1) * kept
    offset = augment.offset * (2 * uniform[..., 1] - 1) * kept
    return gain.astype(np.float32), offset.astype(np.float32)


def _noise(augment: Augment, random: _Random, present: Bools) -> Noise:
    kept = _kept(augment, random.uniform(*_blocks(present)), present)
    std = augment.noise * random.uniform(_FORM)[:, :, 2] * kept
    return Noise(std.astype(np.float32), random.counter, key_of(random.seed, _NOISE_STREAM + random.view * _VIEW))


def _kept(augment: Augment, uniform: Doubles, present: Bools) -> Bools:
    """Which channels [B, C] are there and not dropped: those whose number reaches the probability, and the one of the
    greatest number in any case."""
    drop = np.where(present, uniform[..., 2], -1)
    return present & ((drop >= augment.drop_channel) | (drop == drop.max(axis=1, keepdims=True)))


def _blocks(present: Bools) -> range:
    return range(_CHANNEL, _CHANNEL + len(present))


def _sigma(augment: Augment, random: _Random) -> Floats:
    return (augment.blur_px * random.uniform(_FORM)[:, 0, 3]).astype(np.float32)


def _radius(augment: Augment, random: _Random) -> Floats:
    """Uniform from 0 for half of the samples, and 0 for the other half."""
    return (augment.defocus_px * (2 * random.uniform(_LENS)[:, 0, 0] - 1).clip(0)).astype(np.float32)

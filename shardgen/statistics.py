"""Statistics of each channel, exact over the dataset and over each plate: counted per shard, merged from shards.

Every value of an 8- or 16-bit pixel has its own bin, so nothing is lost. A float32 falls into the bin of its upper
16 bits (order kept, bins at most 1/128 of the value wide), for percentiles only; its mean and variance come from
sums in float64.
"""

import base64
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bie_stream.codecs import Pixels
from bie_stream.compiled import compiled
from bie_stream.shards import ChannelStatistics, PlateStatistics

PERCENTILES = (0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9)
_BINS = 1 << 16
_MOST_RECENT = 2**32 - 1
_VALUES = np.arange(_BINS)
_SQUARES = _VALUES**2 >> 16, _VALUES**2 & 0xFFFF  # in halves, so that sums over 2**46 pixels do not overflow


class Sums(NamedTuple):
    """Of pixels: how many, the sum of their values, and of their squares; whole numbers for integer pixels."""

    pixels: int
    values: float
    squares: float

    def without(self, earlier: "Sums") -> "Sums":
        """Of those that came later."""
        return Sums(self.pixels - earlier.pixels, self.values - earlier.values, self.squares - earlier.squares)

    @property
    def mean(self) -> float:
        return self.values / self.pixels

    @property
    def std(self) -> float:
        """Standard deviation of the population."""
        n, first, second = self
        if isinstance(first, int) and isinstance(second, int):  # Python's do not overflow, and nothing cancels
            return float(((n * second - first * first) / (n * n)) ** 0.5)
        return float(max(second / n - (first / n) ** 2, 0.0) ** 0.5)


class ChannelCounts:
    """Counts of one channel's pixel values."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._counts = np.zeros(_BINS, np.int64)
        self._recent = np.zeros(_BINS, np.uint32)  # half as large, so that more of it stays near the processor
        self._room = _MOST_RECENT
        self._sums: list[float] = []  # of float32 pixels, and of their squares; added up exactly, so in any order
        self._squares: list[float] = []
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, pixels: Pixels) -> None:
        """Counts these pixels [Y, X]."""
        if self.dtype == "float32":
            exact = pixels.astype(np.float64)
            self._sums.append(float(exact.sum()))
            self._squares.append(float(np.square(exact).sum()))
            self.minimum, self.maximum = min(self.minimum, float(exact.min())), max(self.maximum, float(exact.max()))
            pixels = _bin_of_float32(np.ascontiguousarray(pixels, np.float32))
        if pixels.size > self._room:
            self._settle()
        _count(pixels, self._recent)
        self._room -= pixels.size

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """[65536] how often each value, or bin of float32, was there."""
        self._settle()
        return self._counts

    def sums(self) -> Sums:
        """Of all pixels so far."""
        counts = self.counts
        pixels = int(counts.sum())
        if self.dtype == "float32":
            return Sums(pixels, *self._totals())
        high, low = (int(part @ counts) for part in _SQUARES)
        return Sums(pixels, int(_VALUES @ counts), (high << 16) + low)

    def _totals(self) -> tuple[float, float]:
        return math.fsum(self._sums), math.fsum(self._squares)

    def _settle(self) -> None:
        self._counts += self._recent
        self._recent[:] = 0
        self._room = _MOST_RECENT

    def dump(self) -> dict[str, Any]:
        """For the table's metadata."""
        packed = base64.b64encode(zlib.compress(self.counts.astype("<i8").tobytes(), 1)).decode()
        return {"counts": packed, "sums": [*self._totals(), self.minimum, self.maximum]}

    def merge(self, dumped: dict[str, Any]) -> None:
        """Adds what another shard counted."""
        self._counts += np.frombuffer(zlib.decompress(base64.b64decode(dumped["counts"])), "<i8")
        total, squares, minimum, maximum = dumped["sums"]
        self._sums.append(total)
        self._squares.append(squares)
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)

    def statistics(self) -> ChannelStatistics:
        """Mean, standard deviation (of the population), range and percentiles (inverted empirical distribution)."""
        counts = self.counts
        n = int(counts.sum())
        filled = np.flatnonzero(counts)
        running = np.cumsum(counts[filled])
        at = [filled[np.searchsorted(running, p / 100 * n - 1e-9)] for p in PERCENTILES]
        values = _float32_of_bin(np.array(at)) if self.dtype == "float32" else np.array(at)
        integers = self.dtype != "float32"
        sums = self.sums()
        return ChannelStatistics(
            mean=sums.mean,
            std=sums.std,
            minimum=int(filled[0]) if integers else self.minimum,
            maximum=int(filled[-1]) if integers else self.maximum,
            percentiles={f"{p:g}": float(value) for p, value in zip(PERCENTILES, values, strict=True)},
        )


class PlateSums:
    """What each plate's pixels add to the counts of a shard, which go on over all of its plates.

    Args:
        counts: of each channel.
    """

    def __init__(self, counts: Sequence[ChannelCounts]) -> None:
        self._counts, self._plate = counts, ""
        self._before: list[Sums] | None = None  # what was counted before this plate
        self._of: dict[str, list[list[Sums]]] = defaultdict(list)

    def turn_to(self, plate: str) -> None:
        """What is counted from here on is of this plate."""
        if self._before is None or plate != self._plate:
            self._settle()
            self._plate, self._before = plate, [count.sums() for count in self._counts]

    def dump(self) -> dict[str, list[list[Sums]]]:
        """For the table's metadata: of each plate, for each time that it was turned to, the sums of each channel."""
        self._settle()
        self._before = None
        return dict(self._of)

    def _settle(self) -> None:
        if self._before is not None:
            pairs = zip(self._counts, self._before, strict=True)
            self._of[self._plate].append([count.sums().without(before) for count, before in pairs])


def plate_statistics(dumped: Sequence[Mapping[str, Any]]) -> dict[str, tuple[PlateStatistics, ...]]:
    """Of each plate's channels, from what `PlateSums` of all shards dumped, in any order."""
    parts: dict[str, list[list[list[float]]]] = defaultdict(list)
    for shard in dumped:
        for plate, turns in shard.items():
            parts[plate] += turns
    return {plate: tuple(map(_of_plate, zip(*parts[plate], strict=True))) for plate in sorted(parts)}


def _of_plate(channel: Sequence[Sequence[float]]) -> PlateStatistics:
    pixels, values, squares = ([part[i] for part in channel] for i in range(3))
    exact = all(isinstance(value, int) for value in values)
    add = sum if exact else math.fsum  # of floats, too, the sum does not depend on their order
    sums = Sums(int(sum(pixels)), add(values), add(squares))
    return PlateStatistics(mean=sums.mean, std=sums.std)


@compiled
def _count(pixels: npt.NDArray[np.unsignedinteger[Any]], counts: npt.NDArray[np.uint32]) -> None:
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            counts[pixels[y, x]] += np.uint32(1)


def _bin_of_float32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # as IEEE 754 total order
    return (ordered >> np.uint32(16)).astype(np.uint16)


def _float32_of_bin(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    ordered = (bins.astype(np.uint32) << np.uint32(16)) | np.uint32(0x8000)  # the middle of the bin
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32)

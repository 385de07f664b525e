"""Statistics of each channel, exact over the dataset: counted per shard, merged from shards.

Every value of an 8- or 16-bit pixel has its own bin, so nothing is lost. A float32 falls into the bin of its upper
16 bits (order kept, bins at most 1/128 of the value wide), for percentiles only; its mean and variance come from
sums in float64.
"""

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from bie_stream.codecs import Pixels
from bie_stream.shards import ChannelStatistics

PERCENTILES = (0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9)
_BINS = 1 << 16


class ChannelCounts:
    """Counts of one channel's pixel values."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.counts = np.zeros(_BINS, np.int64)
        self.sum, self.sum_of_squares = 0.0, 0.0
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, pixels: Pixels) -> None:
        """Counts these pixels, of any shape."""
        flat = pixels.ravel()
        if self.dtype == "float32":
            exact = flat.astype(np.float64)
            self.sum += float(exact.sum())
            self.sum_of_squares += float(np.square(exact).sum())
            self.minimum, self.maximum = min(self.minimum, float(exact.min())), max(self.maximum, float(exact.max()))
            flat = _bin_of_float32(flat.astype(np.float32))
        self.counts += np.bincount(flat, minlength=_BINS)

    def dump(self) -> dict[str, Any]:
        """For the table's metadata."""
        packed = base64.b64encode(zlib.compress(self.counts.astype("<i8").tobytes(), 1)).decode()
        return {"counts": packed, "sums": [self.sum, self.sum_of_squares, self.minimum, self.maximum]}

    def merge(self, dumped: dict[str, Any]) -> None:
        """Adds what another shard counted."""
        self.counts += np.frombuffer(zlib.decompress(base64.b64decode(dumped["counts"])), "<i8")
        total, squares, minimum, maximum = dumped["sums"]
        self.sum, self.sum_of_squares = self.sum + total, self.sum_of_squares + squares
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)

    def statistics(self) -> ChannelStatistics:
        """Mean, standard deviation (of the population), range and percentiles (inverted empirical distribution)."""
        n = int(self.counts.sum())
        filled = np.flatnonzero(self.counts)
        running = np.cumsum(self.counts[filled])
        at = [filled[np.searchsorted(running, p / 100 * n - 1e-9)] for p in PERCENTILES]
        values = _float32_of_bin(np.array(at)) if self.dtype == "float32" else np.array(at)
        if self.dtype == "float32":
            total, squares, minimum, maximum = self.sum, self.sum_of_squares, self.minimum, self.maximum
            mean, variance = total / n, max(squares / n - (total / n) ** 2, 0.0)
        else:  # Python's integers do not overflow
            pairs = [(int(value), int(self.counts[value])) for value in filled]
            first, second = sum(v * c for v, c in pairs), sum(v * v * c for v, c in pairs)
            mean, variance = first / n, (n * second - first * first) / (n * n)
            minimum, maximum = pairs[0][0], pairs[-1][0]
        return ChannelStatistics(
            mean=mean,
            std=variance**0.5,
            minimum=minimum,
            maximum=maximum,
            percentiles={f"{p:g}": float(value) for p, value in zip(PERCENTILES, values, strict=True)},
        )


def merged(shards: Iterable[list[dict[str, Any]]], dtype: str, channels: int) -> tuple[ChannelStatistics, ...]:
    """Statistics of the dataset from what each shard counted, in order."""
    totals = [ChannelCounts(dtype) for _ in range(channels)]
    for shard in shards:
        for total, counted in zip(totals, shard, strict=True):
            total.merge(counted)
    return tuple(total.statistics() for total in totals)


def _bin_of_float32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    bits = values.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # as IEEE 754 total order
    return (ordered >> np.uint32(16)).astype(np.int64)


def _float32_of_bin(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    ordered = (bins.astype(np.uint32) << np.uint32(16)) | np.uint32(0x8000)  # the middle of the bin
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32)

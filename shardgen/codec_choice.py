"""Which codec for these pixels? Measured on the pixels themselves, on one core.

The rule: the smallest codec that decodes at least MIN_DECODE_MB_S on one core and saves at least MIN_SAVING of the
bytes; else npy.

- A whole node must not wait for its pixels: the loader uses up to 8 threads, and 8 × 500 MB/s = 4 GB/s is half as
  much again as the 2.7 GB/s at which 50 machines read one public screen together. Half of those threads' time is
  then left for crop, cast and copy.
- Less than a fifth saved is not worth what only npy gives: reading no more than the rows of a crop, no decoding, and
  readers everywhere.
"""

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bie_stream import codecs
from bie_stream.codecs import Codec, Form, Pixels
from bie_stream.errors import DatasetError, SourceError

MIN_DECODE_MB_S = 500
MIN_SAVING = 0.2
MAX_SAMPLES = 300


@dataclass(frozen=True)
class Measured:
    """One codec on some samples; MB (10⁶ bytes) of pixels per second of CPU time of one thread.

    Attributes:
        ratio: bytes of pixels per byte of payload.
        decode_mb_s: with one copy of the pixels, so that npy, whose decoding is a view, is comparable.
    """

    codec: Codec
    ratio: float
    encode_mb_s: float
    decode_mb_s: float


@dataclass(frozen=True)
class Choice:
    """A codec, one sentence of why, and what was measured of each codec that can be used here."""

    codec: Codec
    why: str
    table: tuple[Measured, ...]


@dataclass
class _Tally:
    pixels: int = 0
    payload: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0


def choose(samples: Iterable[Pixels]) -> Choice:
    """The codec for samples like these ([C, Y, X] each); at most MAX_SAMPLES of them are looked at.

    Raises:
        SourceError: there are no samples.
    """
    return decide(measure(itertools.islice(samples, MAX_SAMPLES)))


def decide(table: tuple[Measured, ...]) -> Choice:
    """The rule at the top of this file, on measurements that are there."""
    fit = [m for m in table if m.decode_mb_s >= MIN_DECODE_MB_S and m.ratio * (1 - MIN_SAVING) >= 1]
    best = max(fit, key=lambda m: m.ratio, default=None)
    if best is None:
        why = f"npy: no other codec here decodes {MIN_DECODE_MB_S} MB/s on one core and saves {MIN_SAVING:.0%}"
        return Choice("npy", why, table)
    why = (
        f"{best.codec}: {best.ratio:.2f} times smaller than the pixels, the most among the codecs that decode "
        f"{MIN_DECODE_MB_S} MB/s on one core; it decodes {best.decode_mb_s:.0f} MB/s"
    )
    return Choice(best.codec, why, table)


def measure(samples: Iterable[Pixels]) -> tuple[Measured, ...]:
    """Every codec that is installed and takes these pixels, on all samples, which are held one at a time.

    Raises:
        SourceError: there are no samples.
    """
    tallies: dict[Codec, _Tally] = {}
    for number, pixels in enumerate(samples):
        pixels = np.ascontiguousarray(pixels)
        if number == 0:
            tallies = {codec: _Tally() for codec in codecs.CODECS if _usable(codec, pixels)}
        for codec, tally in tallies.items():
            _add(tally, codec, pixels)
    if not tallies:
        raise SourceError("no samples to choose a codec by")
    return tuple(
        Measured(codec, t.pixels / t.payload, t.pixels / t.encode_s / 1e6, t.pixels / t.decode_s / 1e6)
        for codec, t in tallies.items()
    )


def _usable(codec: Codec, pixels: Pixels) -> bool:
    """Also imports what the codec needs, so that no measurement counts it."""
    try:
        codecs.decode(memoryview(codecs.encode(pixels, codec)), codec)
    except (DatasetError, SourceError):
        return False
    return True


def _add(tally: _Tally, codec: Codec, pixels: Pixels) -> None:
    start = time.thread_time()
    payload = memoryview(codecs.encode(pixels, codec))
    tally.encode_s += time.thread_time() - start
    out, form = np.zeros_like(pixels), Form(pixels.shape, pixels.dtype.name)
    times = []
    for _ in range(3):  # the best of three: on a shared machine the others measure their neighbours
        start = time.thread_time()
        np.copyto(out, codecs.decode(payload, codec, form))
        times.append(time.thread_time() - start)
    tally.decode_s += min(times)
    tally.pixels += pixels.nbytes
    tally.payload += len(payload)

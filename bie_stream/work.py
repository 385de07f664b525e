"""What passes between the loader and a back end, and how it is run ahead in threads.

loader                        back end
ids, views ── fetch(step) ──▶ Work ── decode, crop, turn, normalise, cast ──▶ images
                 (in threads)         (native: same threads; DALI: its own)
"""

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bie_stream import codecs
from bie_stream.augment import View
from bie_stream.codecs import Codec, Dtype
from bie_stream.errors import DatasetError

Stage = Literal["read", "decode", "transform", "copy"]


@dataclass(frozen=True)
class Kind:
    """What all samples of one dataset have in common.

    Attributes:
        channels: [C] int64, indices into the stored channels, in the order wanted; -1 for one that is absent, whose
            images are zeros.
        per_image: whether each image is brought to mean 0 and variance 1 in the end.
    """

    codec: Codec
    dtype: Dtype
    channels: npt.NDArray[np.int64]
    per_image: bool

    @functools.cached_property
    def present(self) -> npt.NDArray[np.bool_]:
        """[C] whether the dataset has each channel."""
        return self.channels >= 0

    def in_rows(self, resampled: bool) -> bool:
        """Whether of a sample just the channels and rows that are wanted are decoded: not where it is resampled, which
        takes pixels from all over it."""
        return self.codec == "blosc2" and not resampled


@dataclass(frozen=True)
class Settings:
    """What is the same for every batch.

    Attributes:
        kinds: of each dataset.
        images: of this rank in one batch.
        crop: height and width of the images, in pixels.
        resampled, finished: whether `bie_stream.affine`, `bie_stream.finish` have anything to do, in float32.
        prefetch_batches: prepared ahead of the one in use, besides the one in each thread.
        timeout_s: for a batch to come; longer, and waiting for it ends.
    """

    kinds: tuple[Kind, ...]
    images: int
    crop: tuple[int, int]
    resampled: bool
    finished: bool
    dtype: torch.dtype
    device: torch.device
    threads: int
    prefetch_batches: int
    timeout_s: float


@dataclass(frozen=True)
class Piece:
    """The samples of one dataset in a batch: N images.

    Attributes:
        dataset: its number.
        rows: [N] int64, where the images stand in the batch.
        shapes: [N, 3] int64, C, Y, X of each sample as it is stored.
        payloads: N encoded samples; empty where there are addresses.
        addresses: [N] int64, where in memory the pixels lie as they are.
        view: what is made of each.
        shift, scale: [N, C] float32, see `bie_stream.normalise`.
    """

    dataset: int
    rows: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int64]
    payloads: list[memoryview]
    addresses: npt.NDArray[np.int64] | None
    view: View
    shift: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    @property
    def views(self) -> int:
        """Images of each payload, which follow each other."""
        return len(self.rows) // len(self.payloads)

    def decoded(self, kind: Kind, rows: int) -> "Decoded":
        """The pixels of each payload, as much of them as must be for crops of so many rows.

        Raises:
            SampleError, DatasetError: as `codecs.decode`.
        """
        forms = [codecs.Form(tuple(shape), kind.dtype) for shape in self.shapes[:: self.views].tolist()]
        each = zip(self.payloads, forms, strict=True)
        if not kind.in_rows(resampled=self.view.matrix is not None):
            pixels = [np.ascontiguousarray(codecs.decode(payload, kind.codec, form)) for payload, form in each]
            return Decoded(self.by_image(pixels), self.view.top, kind.channels)
        tops = self.view.top.reshape(-1, self.views)
        spans = zip(each, tops.min(axis=1).tolist(), (tops.max(axis=1) + rows).tolist(), strict=True)
        stored = kind.channels[kind.present]
        parts = [codecs.decode_rows(*one, stored, first, last) for one, first, last in spans]
        begins = np.repeat(np.array([first for _, first in parts], np.int64), self.views)
        decoded = np.where(kind.present, np.cumsum(kind.present) - 1, -1)
        return Decoded(self.by_image([part for part, _ in parts]), self.view.top - begins, decoded)

    def by_image(self, by_payload: Sequence[codecs.Pixels]) -> list[codecs.Pixels]:
        """What is of each payload, for each of its images."""
        return [each for each in by_payload for _ in range(self.views)]


@dataclass(frozen=True)
class Decoded:
    """Pixels of N images.

    Attributes:
        pixels: N arrays [D, R, X] in C order, whole samples or some of their channels and rows.
        top: [N] int64, of each crop in them.
        channels: [C] int64, where in them the channels are that are wanted; -1 for one that is absent.
    """

    pixels: list[codecs.Pixels]
    top: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]

    @property
    def shapes(self) -> npt.NDArray[np.int64]:
        """[N, 3] of the arrays."""
        return np.array([pixels.shape for pixels in self.pixels], np.int64)


@dataclass(frozen=True)
class Work:
    """One rank's part of a batch, before its pixels: B images.

    Attributes:
        ids: [B] int64, rows of the dataset.
        valid: [B] bool, False where a row only fills up the batch.
        dataset: [B] int64, which dataset each is of.
        pieces: for each dataset that is in it.
        read_bytes: that are read for it.
    """

    ids: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    dataset: npt.NDArray[np.int64]
    pieces: tuple[Piece, ...]
    read_bytes: int


class Times:
    """Seconds that threads were busy, by stage. Of DALI's own threads nothing is known."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {"read": 0.0, "decode": 0.0, "transform": 0.0, "copy": 0.0}
        self._lock = threading.Lock()

    @contextmanager
    def busy(self, stage: Stage) -> Iterator[None]:
        """Counts the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - start


Item = TypeVar("Item")
Result = TypeVar("Result")
Fetch = Callable[[int], Work]
Images = Iterator[tuple[Work, torch.Tensor]]


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], settings: Settings
) -> Generator[Result, None, None]:
    """`map(function, items)` in order, run ahead in threads, which are stopped when it is closed.

    Raises:
        DatasetError: a result did not come in time.
    """
    waiting = iter(items)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="bie_stream")
    late = False
    try:
        pending: deque[Future[Result]] = deque(
            pool.submit(function, item)
            for item in itertools.islice(waiting, settings.threads + settings.prefetch_batches)
        )
        while pending:
            try:
                result = pending.popleft().result(settings.timeout_s)
            except NotInTime as error:
                late = True
                raise DatasetError(
                    f"no batch came for {settings.timeout_s:g} s: the dataset's disk or server does not answer; "
                    "see whether it can be read, or give a longer timeout_s"
                ) from error
            pending.extend(pool.submit(function, item) for item in itertools.islice(waiting, 1))
            yield result
    finally:
        pool.shutdown(wait=not late, cancel_futures=True)


def on_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The batch on a device, arrived; beside what the device computes meanwhile."""
    if device.type != "cuda":
        return batch.to(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no type for it
    with torch.cuda.stream(stream):
        there = batch.to(device, non_blocking=True)
    stream.synchronize()
    there.record_stream(torch.cuda.default_stream(device))  # where it is used: its memory is kept until that is done
    return there

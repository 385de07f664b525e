"""What passes between the loader and a back end, and how it is run ahead in threads.

loader                    back end
ids, view ── fetch(step) ──▶ Work ── decode, crop, turn, normalise, cast ──▶ images
             (in threads)            (native: same threads; DALI: its own)
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bie_stream.augment import View
from bie_stream.codecs import Codec, Form
from bie_stream.normalise import Normalisation


@dataclass(frozen=True)
class Settings:
    """What is the same for every batch.

    Attributes:
        batch_size: samples of this rank in one batch.
        codec: of the payloads.
        channels: indices into the stored channels, in the order wanted.
        crop: height and width of the images, in pixels.
    """

    batch_size: int
    codec: Codec
    channels: tuple[int, ...]
    crop: tuple[int, int]
    normalisation: Normalisation
    dtype: torch.dtype
    device: torch.device
    threads: int
    prefetch_batches: int


@dataclass(frozen=True)
class Work:
    """One rank's part of a batch, before its pixels: B samples.

    Attributes:
        ids: [B] int64.
        valid: [B] bool, False where a row only fills up the batch.
        payloads: B encoded images.
        forms: what each of them must hold.
        view: what is cut out of each.
    """

    ids: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    payloads: list[memoryview]
    forms: list[Form]
    view: View


Item = TypeVar("Item")
Result = TypeVar("Result")
Fetch = Callable[[int], Work]
Images = Iterator[tuple[Work, torch.Tensor]]


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int, depth: int) -> Iterator[Result]:
    """`map(function, items)` in order, `depth` results ahead. Stops its threads when it is closed."""
    waiting = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="bie_stream")
    try:
        pending: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in itertools.islice(waiting, depth + 1)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(waiting, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

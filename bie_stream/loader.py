"""Shards in, device batches out: order → fetch → back end → batch.

Its whole state is three integers: seed, epoch, and how many samples of the epoch's order have been handed out.
Threads, not processes; no shared memory, no barrier: rank and world size are arguments.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from bie_stream import native, order
from bie_stream.augment import NO_AUGMENT, Augment, draw
from bie_stream.dataset import Dataset
from bie_stream.errors import DatasetError, SampleError
from bie_stream.normalise import Normalisation, Normalise, normalisation
from bie_stream.work import Fetch, Images, Settings, Work

Backend = Literal["auto", "native", "dali"]

_log = logging.getLogger("bie_stream")


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch: B = batch_size / world_size samples.

    Attributes:
        images: [B, C, Y, X] on the device, normalised.
        ids: [B] int64 on the CPU, rows of `dataset.table`.
        valid: [B] bool on the CPU, False where a row only fills up the last batch of an evaluation.
    """

    images: torch.Tensor
    ids: torch.Tensor
    valid: torch.Tensor


class Loader:
    """Batches of a dataset, for one rank.

    Each `for batch in loader` is the rest of the current epoch; then the epoch number goes up by one.
    In training every sample is seen once an epoch in an order of that epoch, and a last partial batch is left out;
    with `training=False` samples come in order, unaugmented, and the last batch is filled up with `valid=False` rows.
    Either way every rank has the same number of steps.

    Args:
        dataset: from `bie_stream.open`.
        batch_size: samples in one global batch, over all ranks.
        crop: side of the square images in pixels; None for whole samples.
        normalise: see `bie_stream.normalise`; a `Normalisation` brings its own numbers, those of a training set say.
        augment: what is done in training; None for the defaults of `Augment`.
        device, dtype: of the images; dtype None is bfloat16 on a GPU and float32 elsewhere.
        backend: `auto` is DALI for a GPU if it is installed, and native otherwise.
        threads: for reading and preparing; None for one per core, at most 8.
        prefetch_batches: how many batches are prepared ahead.
        max_bad_fraction: share of the samples that may turn out unreadable in training. Each is reported and
            replaced by the next readable one; one more and the loader raises. Evaluation tolerates none.

    Raises:
        DatasetError: the dataset cannot give such batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        crop: int | None = None,
        normalise: Normalise | Normalisation = "dataset",
        augment: Augment | None = None,
        training: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        threads: int | None = None,
        prefetch_batches: int = 2,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self.dataset, self.batch_size, self.training = dataset, batch_size, training
        if batch_size % world_size or not 0 <= rank < world_size:
            raise DatasetError(
                f"batch_size {batch_size} is over all ranks and must be a multiple of world_size {world_size}, "
                f"with rank {rank} below it"
            )
        if len(dataset) < (batch_size if training else 1):
            raise DatasetError(
                f"{len(dataset)} samples do not fill one batch of {batch_size}; use a smaller batch_size"
            )
        self._rank, self._world_size = rank, world_size
        self._augment = (augment or Augment()) if training else NO_AUGMENT
        self._max_bad = min(int(max_bad_fraction * len(dataset)), len(dataset) - 1) if training else 0
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()
        device = torch.device(device)
        self._settings = Settings(
            batch_size=batch_size // world_size,
            codec=dataset.manifest.codec,
            channels=dataset.channel_indices,
            crop=_crop(dataset, crop, self._augment.quarter_turn),
            normalisation=(
                normalise
                if isinstance(normalise, Normalisation)
                else normalisation(normalise, dataset.channels, dataset.statistics)
            ),
            dtype=dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32),
            device=device,
            threads=threads or min(8, os.cpu_count() or 1),
            prefetch_batches=prefetch_batches,
        )
        self.backend = _choose(backend, device)
        self._seed, self._epoch, self._consumed = seed, 0, 0
        self._batches, self._payload_bytes, self._wait_s = 0, 0, 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return order.steps_per_epoch(len(self.dataset), self.batch_size, drop_last=self.training)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, Y, X of one image."""
        return (len(self._settings.channels), *self._settings.crop)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self._consumed // self.batch_size, self.steps_per_epoch)
        stream = self._images(steps, self._fetch(self._seed, self._epoch), self._settings)
        for _ in steps:
            start = time.perf_counter()
            work, images = next(stream)
            self._wait_s += time.perf_counter() - start
            self._consumed += self.batch_size
            self._batches += 1
            self._payload_bytes += sum(len(payload) for payload in work.payloads)
            yield Batch(images, torch.from_numpy(work.ids), torch.from_numpy(work.valid))
        self._epoch, self._consumed = self._epoch + 1, 0

    def _images(self, steps: range, fetch: Fetch, settings: Settings) -> Images:
        if self.backend == "native":
            return native.images(steps, fetch, settings)
        from bie_stream import dali  # here, because the wheel of DALI exists for Linux only

        return dali.images(steps, fetch, settings)

    def _fetch(self, seed: int, epoch: int) -> Fetch:
        def fetch(step: int) -> Work:
            ids, valid = order.batch_ids(
                len(self.dataset), self.batch_size, step,
                seed=seed, epoch=epoch, shuffle=self.training, rank=self._rank, world_size=self._world_size,
            )  # fmt: skip
            found = [self._readable(int(sample)) for sample in ids]
            ids = np.array([sample for sample, _ in found], dtype=np.int64)
            view = draw(self._augment, ids, self.dataset.shapes[ids], self._settings.crop, seed=seed, epoch=epoch)
            forms = [self.dataset.form(sample) for sample, _ in found]
            return Work(ids, valid, [payload for _, payload in found], forms, view)

        return fetch

    def _readable(self, sample: int) -> tuple[int, memoryview]:
        """The sample, or in training the next one that can be read: the same one whenever and wherever it is asked."""
        while True:
            try:
                return sample, self.dataset.payload(sample)
            except SampleError as error:
                self._quarantine(sample, error)
                sample = (sample + 1) % len(self.dataset)

    def _quarantine(self, sample: int, error: SampleError) -> None:
        with self._lock:
            if sample not in self._bad:
                self._bad[sample] = str(error)
                _log.warning("sample left out: %s", error)
            if len(self._bad) > self._max_bad:
                limit = f"at most {self._max_bad} of {len(self.dataset)} may be unreadable here"
                raise DatasetError(f"{len(self._bad)} unreadable samples, {limit}; the last: {error}") from error

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: seed, epoch, and samples of the epoch handed out over all ranks."""
        return {"seed": self._seed, "epoch": self._epoch, "consumed": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a place that `state_dict` gave, under any world size, back end or number of threads."""
        seed, epoch, consumed = state["seed"], state["epoch"], state["consumed"]
        if consumed % self.batch_size:
            raise DatasetError(
                f"the state has {consumed} samples consumed, no multiple of batch_size {self.batch_size}; "
                "resume with the batch_size it was saved with"
            )
        if consumed >= self.steps_per_epoch * self.batch_size:
            epoch, consumed = epoch + 1, 0
        self._seed, self._epoch, self._consumed = seed, epoch, consumed

    def report(self) -> dict[str, Any]:
        """What happened so far: batches, payload bytes, seconds that the consumer waited, unreadable samples."""
        return {
            "batches": self._batches,
            "payload_bytes": self._payload_bytes,
            "wait_s": self._wait_s,
            "bad_samples": dict(self._bad),
        }


def _crop(dataset: Dataset, crop: int | None, quarter_turn: bool) -> tuple[int, int]:
    smallest, largest = dataset.shapes.min(axis=0), dataset.shapes.max(axis=0)
    if crop is not None:
        if crop < 1 or (smallest < crop).any():
            raise DatasetError(f"crop {crop} does not fit samples of {smallest[0]} x {smallest[1]} pixels")
        return crop, crop
    if (smallest != largest).any():
        raise DatasetError(f"samples have from {smallest} to {largest} pixels (y, x); give one crop for all")
    if quarter_turn and smallest[0] != smallest[1]:
        raise DatasetError(f"quarter turns need square images, samples have {smallest[0]} x {smallest[1]}; give a crop")
    return int(smallest[0]), int(smallest[1])


def _choose(backend: Backend, device: torch.device) -> Literal["native", "dali"]:
    if backend == "native" or (backend == "auto" and device.type != "cuda"):
        return "native"
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        if backend == "auto":
            return "native"
        raise DatasetError(
            "back end 'dali' needs NVIDIA DALI (Linux): pip install 'bie-stream[dali]', or use backend='native'"
        ) from error
    return "dali"

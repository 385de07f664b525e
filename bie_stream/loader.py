"""Shards in, device batches out: order → fetch → back end → batch.

Its whole state is three integers: seed, epoch, and how many samples of the epoch's order have been handed out.
Threads, not processes; no shared memory, no barrier: rank and world size are arguments.
"""

import dataclasses
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from bie_stream import native
from bie_stream.augment import NO_AUGMENT, Augment, View, draw
from bie_stream.dataset import Dataset
from bie_stream.errors import DatasetError, SampleError, nearest
from bie_stream.mixture import Mixture
from bie_stream.normalise import Normalisation, Normalise, normalisation, normalisation_by_plate
from bie_stream.order import Balanced, Blocked, Order, Part, Sequential, Shuffled, cut
from bie_stream.shuffle_quality import ShuffleQuality, measure
from bie_stream.store import Counts
from bie_stream.work import Fetch, Images, Kind, Piece, Settings, Stage, Times, Work

Backend = Literal["auto", "native", "dali"]
Shuffle = Literal["auto", "everywhere", "blocked", "balanced"]

_PIECE_BYTES = 32 * 2**20  # of a dataset, fetched together
_PIECES = 128  # open at a time: with these two, a cache of 4 GiB fetches each once
_log = logging.getLogger("bie_stream")


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch: B = views · batch_size / world_size images.

    Attributes:
        images: [B, C, Y, X] on the device, normalised. The views of a sample follow each other.
        ids: [B] int64 on the CPU, rows of `dataset.table`.
        valid: [B] bool on the CPU, False where a row only fills up the last batch of an evaluation.
        dataset: [B] int64 on the CPU, which dataset of several each image is of.
        channels: their names, C.
        present: [B, C] bool on the CPU, False where the dataset of an image does not have that channel, so that it is
            all 0 (see `absent_ok` of `bie_stream.open`). A channel that augmentation dropped is there.
    """

    images: torch.Tensor
    ids: torch.Tensor
    valid: torch.Tensor
    dataset: torch.Tensor
    channels: tuple[str, ...]
    present: torch.Tensor

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> "Batch":
        """With its images on a device: what Lightning and accelerate call. They are there already if the loader was
        given the device."""
        return dataclasses.replace(self, images=self.images.to(device, non_blocking=non_blocking))


class Loader:
    """Batches of a dataset, or of several, for one rank.

    Each `for batch in loader` is the rest of the current epoch; then the epoch number goes up by one.
    In training every sample is seen once an epoch in an order of that epoch, and a last partial batch is left out;
    with `training=False` samples come in order, unaugmented, and the last batch is filled up with `valid=False` rows.
    Either way every rank has the same number of steps.

    Of several datasets each batch holds those that were opened with the same channels, by their weights; a sample then
    comes once in each pass through its dataset (see `bie_stream.mixture`).

    Args:
        dataset: from `bie_stream.open`, or a sequence of such.
        batch_size: samples in one global batch, over all ranks.
        crop: side of the square images in pixels; None for whole samples.
        views: images of each sample in a batch, each with a crop and augmentation of its own.
        normalise: see `bie_stream.normalise`; a `Normalisation` brings its own numbers, those of a training set say.
        augment: what is done in training; None for the defaults of `Augment`.
        shuffle: `everywhere`; `blocked`, from a few pieces of the dataset at a time, for data in an object store;
            `balanced`, every plate as often as any other (see `bie_stream.order`); `auto` is `blocked` for an object
            store and `everywhere` for a disk.
        weights: of several datasets; None for their numbers of samples.
        device, dtype: of the images; dtype None is bfloat16 on a GPU and float32 elsewhere.
        backend: `auto` is DALI for a GPU if it is installed, and native otherwise.
        threads: for reading and preparing; None for one per core, at most 8.
        prefetch_batches: how many batches are prepared ahead, besides the one in each thread.
        max_bad_fraction: share of the samples that may turn out unreadable in training. Each is reported and
            replaced by the next readable one; one more and the loader raises. Evaluation tolerates none.
        timeout_s: for a batch to come; longer, and the loader raises.

    Raises:
        DatasetError: the dataset cannot give such batches.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Dataset],
        batch_size: int,
        *,
        crop: int | None = None,
        views: int = 1,
        normalise: Normalise | Normalisation = "dataset",
        augment: Augment | None = None,
        training: bool = True,
        shuffle: Shuffle = "auto",
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        threads: int | None = None,
        prefetch_batches: int = 2,
        max_bad_fraction: float = 0.01,
        timeout_s: float = 600.0,
    ) -> None:
        self.datasets = (dataset,) if isinstance(dataset, Dataset) else tuple(dataset)
        _refuse_unknown_channels(self.datasets)
        self.batch_size, self.training, self.views = batch_size, training, views
        samples = sum(map(len, self.datasets))
        if batch_size % world_size or not 0 <= rank < world_size:
            raise DatasetError(
                f"batch_size {batch_size} is over all ranks and must be a multiple of world_size {world_size}, "
                f"with rank {rank} below it"
            )
        if samples < (batch_size if training else 1):
            raise DatasetError(f"{samples} samples do not fill one batch of {batch_size}; use a smaller batch_size")
        if views < 1:
            raise DatasetError(f"views {views}: each sample is seen at least once")
        self._rank, self._world_size = rank, world_size
        self._augment = (augment or Augment()) if training else NO_AUGMENT
        self._max_bad = min(int(max_bad_fraction * samples), samples - 1) if training else 0
        self._bad: dict[tuple[int, int], str] = {}
        self._lock = threading.Lock()
        device = torch.device(device)
        self.backend = _choose(backend, device)
        self._levels = [_levels(each, normalise) for each in self.datasets]
        self._settings = Settings(
            kinds=tuple(map(_kind, self.datasets, self._levels)),
            images=views * batch_size // world_size,
            crop=_crop(self.datasets, crop, self._augment.quarter_turn),
            resampled=self._augment.resamples,
            finished=self._augment.finishes,
            dtype=dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32),
            device=device,
            threads=threads or min(8, os.cpu_count() or 1),
            prefetch_batches=prefetch_batches,
            timeout_s=timeout_s,
        )
        self.order = _order(self.datasets, shuffle if training else None, weights)
        self._seed, self._epoch, self._consumed = seed, 0, 0
        self._times, self._slabs = Times(), native.Slabs(self._settings)
        self._batches, self._images, self._read_bytes, self._wait_s, self._consumer_s = 0, 0, 0, 0.0, 0.0

    @property
    def dataset(self) -> Dataset:
        """The only dataset, or the first of several."""
        return self.datasets[0]

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return self.order.steps(self.batch_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, Y, X of one image; of several datasets, of the first one's."""
        return (len(self.dataset.channels), *self._settings.crop)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self._consumed // self.batch_size, self.steps_per_epoch)
        stream = self._stream(steps, self._fetch(self._seed, self._epoch), self._settings)
        for _ in steps:
            start = time.perf_counter()
            work, images = next(stream)
            there = time.perf_counter()
            self._wait_s += there - start
            self._consumed += self.batch_size
            self._batches += 1
            self._images += len(images)
            self._read_bytes += work.read_bytes
            channels = self.datasets[work.pieces[0].dataset].channels
            present = np.empty((len(work.ids), len(channels)), bool)
            for piece in work.pieces:
                present[piece.rows] = self._settings.kinds[piece.dataset].present
            ids, valid, dataset = map(torch.from_numpy, (work.ids, work.valid, work.dataset))
            yield Batch(images, ids, valid, dataset, channels, torch.from_numpy(present))
            del images
            self._consumer_s += time.perf_counter() - there
        self._epoch, self._consumed = self._epoch + 1, 0

    def _stream(self, steps: range, fetch: Fetch, settings: Settings) -> Images:
        if self.backend == "native":
            return native.images(steps, fetch, settings, self._times, self._slabs)
        from bie_stream import dali  # here, because the wheel of DALI exists for Linux only

        return dali.images(steps, fetch, settings, self._times)

    def _fetch(self, seed: int, epoch: int) -> Fetch:
        def fetch(step: int) -> Work:
            part = self._part(step, seed, epoch)
            self._read_ahead(step + self._settings.threads, seed, epoch)
            with self._times.busy("read"):
                pieces, ids = self._pieces(part, seed)
            views, read_bytes = self.views, sum(map(self._bytes_read, pieces))
            valid, dataset = np.repeat(part.valid, views), np.repeat(part.dataset, views)
            return Work(np.repeat(ids, views), valid, dataset, pieces, read_bytes)

        return fetch

    def _part(self, step: int, seed: int, epoch: int) -> Part:
        return self.order.batch(
            step, batch_size=self.batch_size, seed=seed, epoch=epoch, rank=self._rank, world_size=self._world_size
        )

    def _read_ahead(self, step: int, seed: int, epoch: int) -> None:
        """Tells object stores what a step will need that no thread has begun with yet."""
        if step >= self.steps_per_epoch or all(dataset.on_disk for dataset in self.datasets):
            return
        part = self._part(step, seed, epoch)
        for number in np.unique(part.dataset).tolist():
            self.datasets[number].prefetch(part.ids[part.dataset == number])

    def _pieces(self, part: Part, seed: int) -> tuple[tuple[Piece, ...], npt.NDArray[np.int64]]:
        """What is to be read of each dataset, and the ids [B] that it really is."""
        pieces, all_ids = [], part.ids.copy()
        for number in np.unique(part.dataset).tolist():
            rows = np.flatnonzero(part.dataset == number)
            ids, payloads, addresses = self._found(number, part.ids[rows])
            all_ids[rows] = ids
            shapes = self.datasets[number].stored_shapes(ids)
            view = self._view(number, ids, shapes[:, 1:], part.visit[rows], seed ^ (number << 40))
            images = (rows[:, None] * self.views + np.arange(self.views)).ravel()
            repeated = None if addresses is None else np.repeat(addresses, self.views)
            shift, scale = self._levels[number].of(np.repeat(ids, self.views))
            shapes = np.repeat(shapes, self.views, axis=0)
            pieces.append(Piece(number, images, shapes, payloads, repeated, view, shift, scale))
        return tuple(pieces), all_ids

    def _found(
        self, number: int, ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], list[memoryview], npt.NDArray[np.int64] | None]:
        """The samples, or what takes the place of those that cannot be read; their payloads, or where they lie."""
        dataset = self.datasets[number]
        in_place = dataset.in_place and self.backend == "native" and not self._augment.resamples
        new = np.flatnonzero(dataset.unverified(ids)) if in_place else np.arange(len(ids))
        found = [self._readable(number, sample) for sample in ids[new].tolist()]
        if found:
            ids = ids.copy()
            ids[new] = [sample for sample, _ in found]
        if in_place:
            return ids, [], dataset.addresses(ids)
        return ids, [payload for _, payload in found], None

    def _view(
        self, number: int, ids: npt.NDArray[np.int64], shapes: npt.NDArray[np.int64], visit: npt.NDArray[np.int64],
        seed: int,
    ) -> View:  # fmt: skip
        present, crop = self._settings.kinds[number].present, self._settings.crop
        views = [
            draw(self._augment, ids, shapes, crop, seed=seed, epoch=visit, view=view, present=present)
            for view in range(self.views)
        ]
        return views[0] if self.views == 1 else _side_by_side(views)

    def _bytes_read(self, piece: Piece) -> int:
        if piece.addresses is None:
            return sum(map(len, piece.payloads))
        kind, (height, width) = self._settings.kinds[piece.dataset], self._settings.crop
        return len(piece.rows) * int(np.count_nonzero(kind.present)) * height * width * np.dtype(kind.dtype).itemsize

    def _readable(self, number: int, sample: int) -> tuple[int, memoryview]:
        """The sample, or in training the next one that can be read: the same one whenever and wherever it is asked."""
        while True:
            try:
                return sample, self.datasets[number].payload(sample)
            except SampleError as error:
                self._quarantine(number, sample, error)
                sample = (sample + 1) % len(self.datasets[number])

    def _quarantine(self, number: int, sample: int, error: SampleError) -> None:
        with self._lock:
            if (number, sample) not in self._bad:
                self._bad[number, sample] = str(error)
                _log.warning("sample left out: %s", error)
            if len(self._bad) > self._max_bad:
                samples = sum(map(len, self.datasets))
                limit = f"at most {self._max_bad} of {samples} may be unreadable here"
                raise DatasetError(f"{len(self._bad)} unreadable samples, {limit}; the last: {error}") from error

    def shuffle_quality(self) -> ShuffleQuality:
        """How well this epoch's order mixes plates and places, beside an ideal one; reads the whole table."""
        plates = _apart(_plates(each).indices.to_numpy() for each in self.datasets)
        shards = _apart(each.shards for each in self.datasets)
        return measure(self.order, self.batch_size, plates, shards, seed=self._seed, epoch=self._epoch)

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
        """What happened so far: how much, how fast, where the time went, and what was left out.

        `busy_share` is of the time of all threads, `wait_share` of the consumer's: how long it stood still for a batch.
        `store` is what reading from object stores took, see `bie_stream.store.Counts`; all are 0 of a disk.
        """
        with self._lock:
            bad = list(self._bad.items())
        seconds = self._wait_s + self._consumer_s
        threads = self._settings.threads * max(seconds, 1e-9)
        busy = {stage: spent / threads for stage, spent in self._times.seconds.items()}
        wait = self._wait_s / max(seconds, 1e-9)
        return {
            "batches": self._batches,
            "images": self._images,
            "seconds": seconds,
            "images_per_s": self._images / max(seconds, 1e-9),
            "read_bytes": self._read_bytes,
            "wait_s": self._wait_s,
            "wait_share": wait,
            "busy_share": busy,
            "bottleneck": bottleneck(wait, busy),
            "store": self._store_counts(),
            "bad_samples": [{"dataset": number, "id": sample, "why": why} for (number, sample), why in bad],
        }

    def _store_counts(self) -> dict[str, int]:
        stores = {id(each.store): each.store for each in self.datasets if not each.on_disk}
        counted = Counter({field.name: 0 for field in dataclasses.fields(Counts)})
        for store in stores.values():
            counted.update(dataclasses.asdict(store.counts))
        return dict(counted)


def _refuse_unknown_channels(datasets: tuple[Dataset, ...]) -> None:
    """Of several datasets a name that none of them has is misspelt; of one alone it may be another's."""
    known = list(dict.fromkeys(channel.name for each in datasets for channel in each.manifest.channels))
    for name in (name for each in datasets for name in each.channels):
        if len(datasets) > 1 and name not in known:
            raise DatasetError(f"none of {len(datasets)} datasets has a channel {name!r}; {nearest(name, known)}")


def bottleneck(wait_share: float, busy_share: dict[Stage, float]) -> str:
    """Where the limit is, in a sentence, and what moves it.

    Args:
        wait_share, busy_share: as `Loader.report` has them.
    """
    if wait_share < 0.05:
        return f"the consumer is the limit: it waited for {wait_share:.0%} of its time"
    stage = max(busy_share, key=lambda each: busy_share[each])
    advice = {
        "read": "more threads or prefetch_batches, a faster disk, or shuffle='blocked' for an object store",
        "decode": "more threads, or a dataset built with a faster codec (npy, blosc2)",
        "transform": "more threads, smaller crops or fewer augmentations",
        "copy": "bfloat16 instead of float32, or more threads",
    }[stage]
    if sum(busy_share.values()) < 0.5:
        return f"the consumer waited for {wait_share:.0%} of its time and threads were idle; raise prefetch_batches"
    return f"{stage} is the limit, {busy_share[stage]:.0%} of the threads' time: {advice}"


def _side_by_side(views: list[View]) -> View:
    """Views of the same N samples as one of N · K images, those of a sample after each other."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], np.ndarray):
            return np.stack(values, axis=1).reshape(-1, *values[0].shape[1:])
        if not dataclasses.is_dataclass(values[0]):  # what is off, or the same for all
            return values[0]
        names = [field.name for field in dataclasses.fields(values[0])]
        changed = {name: joined([getattr(value, name) for value in values]) for name in names}
        return dataclasses.replace(cast(Any, values[0]), **changed)

    return cast(View, joined(views))


@dataclass(frozen=True)
class _Levels:
    """What the pixels of each sample are normalised by.

    Attributes:
        plates: [N] the row of `by` that is a sample's.
    """

    by: Normalisation
    plates: npt.NDArray[np.int32]

    def of(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Shift and scale [B, C] of samples."""
        rows = self.plates[ids]
        return self.by.shift[rows], self.by.scale[rows]


def _levels(dataset: Dataset, normalise: Normalise | Normalisation) -> _Levels:
    if normalise == "plate":
        return _levels_by_plate(dataset)
    by = normalise
    if not isinstance(by, Normalisation):
        by = normalisation(by, dataset.channels, dataset.statistics)
    if by.shift.shape != (1, len(dataset.channels)):
        raise DatasetError(f"a normalisation of {by.shift.shape} (plates, channels) is for no other dataset")
    for name, present, scale in zip(dataset.channels, dataset.present, by.scale[0], strict=True):
        if present and scale == 0:
            raise DatasetError(f"the normalisation has no numbers of channel {name!r}, which {dataset.folder} has")
    return _Levels(by, np.broadcast_to(np.int32(0), (len(dataset),)))


def _levels_by_plate(dataset: Dataset) -> _Levels:
    plates, known = _plates(dataset), dataset.plates
    names = plates.dictionary.to_pylist()
    if missing := set(names) - set(known):
        raise DatasetError(
            f"{dataset.folder} has no statistics of plate {min(missing)!r}: build it with this version of shardgen, "
            "or use normalise='dataset'"
        )
    by = normalisation_by_plate(dataset.channels, {name: known[name] for name in names})
    return _Levels(by, plates.indices.to_numpy())


def _kind(dataset: Dataset, levels: _Levels) -> Kind:
    return Kind(
        codec=dataset.manifest.codec,
        dtype=dataset.manifest.dtype,
        channels=np.array(dataset.channel_indices, np.int64),
        per_image=levels.by.per_image,
    )


def _order(datasets: tuple[Dataset, ...], shuffle: Shuffle | None, weights: Sequence[float] | None) -> Order:
    if len(datasets) == 1 and shuffle == "balanced":
        return Balanced(_plates(datasets[0]).indices.to_numpy())
    if shuffle == "balanced":
        raise DatasetError("shuffle 'balanced' is for one dataset; give several their weights instead")
    if len(datasets) == 1:
        return Sequential(len(datasets[0])) if shuffle is None else _exact(datasets[0], shuffle)
    if shuffle is None:
        raise DatasetError(f"{len(datasets)} datasets are for training; evaluate each one on its own")
    buckets = ["+".join(each.channels) for each in datasets]
    return Mixture([_exact(each, shuffle) for each in datasets], weights, buckets)


def _plates(dataset: Dataset) -> pa.DictionaryArray:
    """[N] each sample's plate: its number, and the names by number."""
    return dataset.table["plate"].combine_chunks().dictionary_encode()


def _apart(numbers: Iterable[npt.NDArray[np.int32]]) -> npt.NDArray[np.int64]:
    """Numbers of several datasets one after the other, none in two."""
    joined: npt.NDArray[np.int64] = np.empty(0, np.int64)
    for own in numbers:
        joined = np.concatenate([joined, own + joined.max(initial=-1) + 1])
    return joined


def _exact(dataset: Dataset, shuffle: Shuffle) -> Shuffled | Blocked:
    if shuffle == "everywhere" or (shuffle == "auto" and dataset.on_disk):
        return Shuffled(len(dataset))
    stored = sum(shard.bytes for shard in dataset.manifest.shards) // max(1, dataset.manifest.samples)
    sizes = np.bincount(dataset.shards)  # rows are in the order of the shards
    return Blocked(cut(sizes[sizes > 0], max(1, _PIECE_BYTES // max(1, stored))), _PIECES)


def _crop(datasets: tuple[Dataset, ...], crop: int | None, quarter_turn: bool) -> tuple[int, int]:
    smallest = np.min([each.shapes.min(axis=0) for each in datasets], axis=0)
    largest = np.max([each.shapes.max(axis=0) for each in datasets], axis=0)
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

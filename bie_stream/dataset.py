"""A dataset of shards: its table, its channels by name, any sample by number."""

import functools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bie_stream import codecs
from bie_stream.errors import DatasetError, SampleError, nearest
from bie_stream.folder import Folder, Location, folder_at
from bie_stream.shards import (
    TABLES_AT_ONCE,
    ChannelStatistics,
    Manifest,
    PlateStatistics,
    crc32c,
    read_manifest,
    read_rows,
    read_shard_table,
    read_table,
)  # fmt: skip
from bie_stream.store import LocalStore, Store, open_store

_Statistics = TypeVar("_Statistics", ChannelStatistics, PlateStatistics)

_FIRST = ("offset", "size", "crc32c", "shape", "split")  # what is needed before anyone asks for more


def open(  # noqa: A001 - the public name is bie_stream.open, as in zarr.open
    path: Location, *, split: str | None = None, channels: Sequence[str] | None = None, absent_ok: bool = False,
    cache_bytes: int | None = None,
) -> "Dataset":  # fmt: skip
    """Opens a dataset.

    Args:
        path: the folder that holds `dataset.json`, or its URL (`s3://bucket/plates`, `https://host/plates`).
        split: only this split; None for all samples.
        channels: names, in the order wanted; None for all, in the order of the manifest.
        absent_ok: take names that the dataset does not have, as long as it has one of them: such a channel is all 0,
            and `Batch.present` says so. Then datasets of unlike channels, opened with one list, stand in one batch.
            A misspelt name cannot be told from one of another dataset here, unless it differs from one of this dataset
            only in case, spaces or punctuation; a `Loader` of several datasets refuses a name that none of them has.
        cache_bytes: how much this machine keeps of what it reads over the network, in `$BIE_STREAM_CACHE` or the
            user's cache folder; 0 for nothing. None for `$BIE_STREAM_CACHE_GB`, else 64 GiB and at most half of the
            space that is free.

    Raises:
        DatasetNotFound: there is no dataset at `path`.
        DatasetError: it is damaged, or has no such split or channel; with `absent_ok`, none of the channels.
    """
    folder = folder_at(path)
    manifest = read_manifest(folder)
    known = [channel.name for channel in manifest.channels]
    wanted = known if channels is None else list(channels)
    absent = [name for name in wanted if name not in known]
    if absent and (not absent_ok or len(absent) == len(wanted)):
        raise DatasetError(f"{folder} has no channel {absent[0]!r}; {nearest(absent[0], known)}")
    for name in absent:
        _refuse_respelt(name, [other for other in known if other not in wanted], folder)
    if len(set(wanted)) != len(wanted) or not wanted:
        raise DatasetError(f"channels {wanted} must name each channel once, and at least one")
    if split is not None and split not in manifest.splits:
        raise DatasetError(f"{folder} has no split {split!r}; {nearest(split, list(manifest.splits))}")
    samples = _Samples(folder, manifest)
    store = open_store(folder, manifest.shards, cache_bytes)
    rows = None if split is None else np.flatnonzero(samples.split == list(manifest.splits).index(split))
    return Dataset(folder, manifest, samples, rows, tuple(wanted), store)


def _refuse_respelt(absent: str, others: list[str], folder: Folder) -> None:
    """Holds an absent channel against those of the dataset that are not asked for: the same one, spelt otherwise?"""
    letters = [re.sub(r"[\W_]", "", name).casefold() for name in (absent, *others)]
    if letters[0] and letters[0] in letters[1:]:
        other = others[letters.index(letters[0], 1) - 1]
        raise DatasetError(
            f"{folder} has no channel {absent!r} but {other!r}; ask for it by that name, or name it "
            "when it is built (`shardgen build --channels`)"
        )


class _Samples:
    """All samples of a dataset, in 30 bytes each: of ten million, no more is kept than a loader needs.

    Attributes:
        shard, offset, size, crc32c: [N] where the bytes of each lie, and their checksum.
        split: [N] its number among the manifest's splits.
        shapes: [N, 3]; where all are alike they take no memory.
        begins: [N] where in its bytes the pixels of an npy begin; 0 while its checksum has not been verified.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        ends = np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)
        count = int(ends[-1]) if len(ends) else 0
        self.shard, self.split = np.empty(count, np.int32), np.empty(count, np.int8)
        self.offset = np.empty(count, np.int64)
        self.size, self.crc32c = np.empty(count, np.uint32), np.empty(count, np.uint32)
        self.begins = np.zeros(count, np.uint16)
        shapes: list[npt.NDArray[np.int32]] = [np.empty((0, 3), np.int32)] * len(ends)
        splits = pa.array(list(manifest.splits), pa.string())

        def read(number: int) -> None:
            rows = read_rows(folder, number, manifest, _FIRST)
            own = slice(ends[number] - len(rows), ends[number])
            self.shard[own] = number
            for name in ("offset", "size", "crc32c"):
                getattr(self, name)[own] = rows[name].to_numpy()
            self.split[own] = pc.fill_null(pc.index_in(rows["split"], splits), -1).to_numpy()
            found = pc.list_flatten(rows["shape"]).to_numpy().reshape(-1, 3)
            shapes[number] = found[:1] if (found == found[:1]).all() else found

        with ThreadPoolExecutor(TABLES_AT_ONCE) as pool:  # of a store each one is a request
            for _ in pool.map(read, range(len(ends))):
                pass
        self.shapes = self._joined(shapes, manifest)
        if (self.shapes[:, 0] != len(manifest.channels)).any():
            raise DatasetError(
                f"{folder} has samples of another number of channels than the {len(manifest.channels)} named"
            )

    def _joined(self, shapes: list[npt.NDArray[np.int32]], manifest: Manifest) -> npt.NDArray[np.int32]:
        """[N, 3] of shards that have a shape for each sample, or one for all of theirs."""
        some = np.concatenate([np.empty((0, 3), np.int32), *shapes])
        if len(some) and (some == some[0]).all():
            return np.broadcast_to(some[0], (len(self.begins), 3))
        each = ((own, of.samples) for own, of in zip(shapes, manifest.shards, strict=True) if len(own))
        return np.concatenate([np.empty((0, 3), np.int32), *(np.broadcast_to(own, (n, 3)) for own, n in each)])


class Dataset:
    """Samples with their metadata. `dataset[i]` is [C, Y, X] in the dtype of the microscope.

    Attributes:
        folder: where it lies.
        manifest: what the whole dataset is.
        channels: names of the channels of `dataset[i]`, in order.
        channel_indices: where among the stored channels each of them is; -1 for one that is absent, all 0.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, samples: _Samples, rows: npt.NDArray[np.int64] | None,
        channels: tuple[str, ...], store: Store,
    ) -> None:  # fmt: skip
        self.folder, self.manifest, self.channels = folder, manifest, channels
        stored = {channel.name: i for i, channel in enumerate(manifest.channels)}
        self.channel_indices = tuple(stored.get(name, -1) for name in channels)
        self.store, self._samples, self._rows = store, samples, rows

    @property
    def present(self) -> tuple[bool, ...]:
        """Whether the dataset has each of `channels`."""
        return tuple(i >= 0 for i in self.channel_indices)

    @property
    def statistics(self) -> tuple[ChannelStatistics | None, ...]:
        """Of each channel of `dataset[i]`, over the whole dataset (all splits); None of one that is absent."""
        return self._of_channels(self.manifest.statistics)

    @property
    def plates(self) -> dict[str, tuple[PlateStatistics | None, ...]]:
        """Of each plate, the statistics of each channel of `dataset[i]`, over all splits; None of an absent one."""
        return {name: self._of_channels(of) for name, of in self.manifest.plates.items()}

    @functools.cached_property
    def table(self) -> pa.Table:
        """One row per sample, in order: columns of `bie_stream.shards.SAMPLE_COLUMNS`, the labels, `shard`."""
        table = read_table(self.folder, self.manifest)
        return table if self._rows is None else table.take(pa.array(self._rows))

    @functools.cached_property
    def shapes(self) -> npt.NDArray[np.int32]:
        """[N, 2] height and width of each sample, in pixels."""
        shapes = self._samples.shapes[:, 1:]
        return np.broadcast_to(shapes[0], (len(self), 2)) if shapes.strides[0] == 0 else self._of_own(shapes)

    def stored_shapes(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[B, 3] C, Y, X of these samples, with all stored channels."""
        return self._samples.shapes[self._in(samples)].astype(np.int64)

    @property
    def shards(self) -> npt.NDArray[np.int32]:
        """[N] which shard each sample is in."""
        return self._of_own(self._samples.shard)

    def select(self, rows: pc.Expression | npt.NDArray[np.bool_]) -> "Dataset":
        """The samples for which a pyarrow expression on the table, or a mask over its rows, is true."""
        if isinstance(rows, pc.Expression):
            numbered = self.table.append_column("\0row", pa.array(np.arange(len(self))))
            taken = numbered.filter(rows)["\0row"].to_numpy()
        else:
            taken = np.flatnonzero(np.asarray(rows))
        own = taken if self._rows is None else self._rows[taken]
        return Dataset(self.folder, self.manifest, self._samples, own, self.channels, self.store)

    def __len__(self) -> int:
        return len(self._samples.begins) if self._rows is None else len(self._rows)

    def __getitem__(self, sample: int) -> codecs.Pixels:
        sample = range(len(self))[sample]
        pixels = codecs.decode(self.payload(sample), self.manifest.codec, self.form(sample))
        taken: codecs.Pixels = pixels[list(self.channel_indices)]
        taken[~np.array(self.present)] = 0
        return taken

    def form(self, sample: int) -> codecs.Form:
        """Shape and dtype that the payload of one sample must hold: all stored channels."""
        return codecs.Form(tuple(self._samples.shapes[self._row(sample)].tolist()), self.manifest.dtype)

    def payload(self, sample: int) -> memoryview:
        """The encoded bytes of one sample; their checksum is verified the first time they are read.

        Raises:
            SampleError: they cannot be read, or are not those that were written.
            DatasetError: their store does not answer.
        """
        row = self._row(sample)
        of = self._samples
        shard, offset, size, expected = (int(column[row]) for column in (of.shard, of.offset, of.size, of.crc32c))
        data = self.store.read(shard, offset, size)
        if not self._samples.begins[row]:
            if (found := crc32c(data)) != expected:
                self.store.forget(shard, offset, size)  # they may have been spoilt on their way
                data = self.store.read(shard, offset, size)
                found = crc32c(data)
            if found != expected:
                raise SampleError(
                    f"sample {self._key(shard, offset)} in shard {self.manifest.shards[shard].name} of {self.folder} "
                    f"has changed: crc32c {found:08x}, the table says {expected:08x}; see `shardgen verify`"
                )
            in_place = self.manifest.codec == "npy" and codecs.npy_begin(data, self.form(sample))
            self._samples.begins[row] = in_place or 1
        return data

    def prefetch(self, samples: npt.NDArray[np.int64]) -> None:
        """Says that these [B] will be read; returns at once. Files on disk the system reads ahead itself."""
        of, rows = self._samples, self._in(samples)
        for shard, offset, size in zip(*(each[rows].tolist() for each in (of.shard, of.offset, of.size)), strict=True):
            self.store.prefetch(shard, offset, size)

    @property
    def on_disk(self) -> bool:
        """Whether it lies on a disk of this machine, or one that looks so."""
        return isinstance(self.store, LocalStore)

    @property
    def in_place(self) -> bool:
        """Whether pixels lie in memory as they are, so that a part of a sample can be read without the rest."""
        return self.manifest.codec == "npy" and self.on_disk

    def unverified(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[B] which of these have not been read yet."""
        return self._samples.begins[self._in(samples)] == 0

    def addresses(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[B] where in memory the pixels [C, Y, X] of samples begin that are verified; only of a dataset `in_place`."""
        assert isinstance(self.store, LocalStore), "asked for only where in_place"
        rows = self._in(samples)
        of = self._samples
        return self.store.addresses(of.shard[rows]) + of.offset[rows] + of.begins[rows]

    def _of_channels(self, stored: tuple[_Statistics, ...]) -> tuple[_Statistics | None, ...]:
        return tuple(stored[i] if i >= 0 else None for i in self.channel_indices)

    def _key(self, shard: int, offset: int) -> str:
        table = read_shard_table(self.folder, self.manifest.shards[shard].name, self.manifest, ["key", "offset"])
        keys: list[str] = table.filter(pc.field("offset") == offset)["key"].to_pylist()
        return keys[0]

    def _row(self, sample: int) -> int:
        return sample if self._rows is None else int(self._rows[sample])

    def _in(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return samples if self._rows is None else self._rows[samples]

    def _of_own(self, column: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return column if self._rows is None else column[self._rows]

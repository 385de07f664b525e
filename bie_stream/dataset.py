"""A dataset of shards: its table, its channels by name, any sample by number."""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bie_stream import codecs
from bie_stream.errors import DatasetError, SampleError, nearest
from bie_stream.folder import Folder, Location, folder_at
from bie_stream.shards import ChannelStatistics, Manifest, crc32c, read_manifest, read_shard_table, read_table
from bie_stream.store import LocalStore, Store, open_store

_PLACE = ("shard", "offset", "size", "crc32c")
_FIRST = ("offset", "size", "crc32c", "shape", "split")  # what is needed before anyone asks for more


def open(  # noqa: A001 - the public name is bie_stream.open, as in zarr.open
    path: Location, *, split: str | None = None, channels: Sequence[str] | None = None, cache_bytes: int | None = None
) -> "Dataset":
    """Opens a dataset.

    Args:
        path: the folder that holds `dataset.json`, or its URL (`s3://bucket/plates`, `https://host/plates`).
        split: only this split; None for all samples.
        channels: names, in the order wanted; None for all, in the order of the manifest.
        cache_bytes: how much this machine keeps of what it reads over the network, in `$BIE_STREAM_CACHE` or the
            user's cache folder; 0 for nothing. None for `$BIE_STREAM_CACHE_GB`, else 64 GiB and at most half of the
            space that is free.

    Raises:
        DatasetNotFound: there is no dataset at `path`.
        DatasetError: it is damaged, or has no such split or channel.
    """
    folder = folder_at(path)
    manifest = read_manifest(folder)
    known = [channel.name for channel in manifest.channels]
    wanted = known if channels is None else list(channels)
    for name in wanted:
        if name not in known:
            raise DatasetError(f"{folder} has no channel {name!r}; {nearest(name, known)}")
    if len(set(wanted)) != len(wanted) or not wanted:
        raise DatasetError(f"channels {wanted} must name each channel once, and at least one")
    if split is not None and split not in manifest.splits:
        raise DatasetError(f"{folder} has no split {split!r}; {nearest(split, list(manifest.splits))}")
    first = read_table(folder, manifest, _FIRST)
    store = open_store(folder, manifest.shards, cache_bytes)
    rows = None if split is None else np.flatnonzero(pc.equal(first["split"], split).to_numpy())
    return Dataset(folder, manifest, _Samples(first, folder, manifest), rows, tuple(map(known.index, wanted)), store)


class _Samples:
    """All samples of a dataset: where each one's bytes lie, its shape, and whether its checksum has been verified."""

    def __init__(self, first: pa.Table, folder: Folder, manifest: Manifest) -> None:
        self.place = [first[name].to_numpy() for name in _PLACE]
        shapes = pc.list_flatten(first["shape"]).to_numpy().reshape(-1, 3)
        alike = len(shapes) > 0 and bool((shapes == shapes[0]).all())
        self.shapes = np.broadcast_to(shapes[0], shapes.shape) if alike else shapes  # which takes no memory
        self.begins = np.zeros(len(first), np.uint16)  # of the pixels of an npy in its bytes; 0: not verified yet
        if (self.shapes[:, 0] != len(manifest.channels)).any():
            raise DatasetError(
                f"{folder} has samples of another number of channels than the {len(manifest.channels)} named"
            )


class Dataset:
    """Samples with their metadata. `dataset[i]` is [C, Y, X] in the dtype of the microscope.

    Attributes:
        folder: where it lies.
        manifest: what the whole dataset is.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, samples: _Samples, rows: npt.NDArray[np.int64] | None,
        channels: tuple[int, ...], store: Store,
    ) -> None:  # fmt: skip
        self.folder, self.manifest, self.channel_indices = folder, manifest, channels
        self.store, self._samples, self._rows = store, samples, rows

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of `dataset[i]`, in order."""
        return tuple(self.manifest.channels[i].name for i in self.channel_indices)

    @property
    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Of each channel of `dataset[i]`, over the whole dataset (all splits)."""
        return tuple(self.manifest.statistics[i] for i in self.channel_indices)

    @functools.cached_property
    def table(self) -> pa.Table:
        """One row per sample, in order: columns of `bie_stream.shards.SAMPLE_COLUMNS`, the labels, `shard`."""
        table = read_table(self.folder, self.manifest)
        return table if self._rows is None else table.take(pa.array(self._rows))

    @functools.cached_property
    def shapes(self) -> npt.NDArray[np.int32]:
        """[N, 2] height and width of each sample, in pixels."""
        return self._of_own(self._samples.shapes)[:, 1:]

    def stored_shapes(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[B, 3] C, Y, X of these samples, with all stored channels."""
        return self._samples.shapes[self._row(samples)].astype(np.int64)

    @property
    def shards(self) -> npt.NDArray[np.int32]:
        """[N] which shard each sample is in."""
        return self._of_own(self._samples.place[0])

    def select(self, rows: pc.Expression | npt.NDArray[np.bool_]) -> "Dataset":
        """The samples for which a pyarrow expression on the table, or a mask over its rows, is true."""
        if isinstance(rows, pc.Expression):
            numbered = self.table.append_column("\0row", pa.array(np.arange(len(self))))
            taken = numbered.filter(rows)["\0row"].to_numpy()
        else:
            taken = np.flatnonzero(np.asarray(rows))
        own = taken if self._rows is None else self._rows[taken]
        return Dataset(self.folder, self.manifest, self._samples, own, self.channel_indices, self.store)

    def __len__(self) -> int:
        return len(self._samples.begins) if self._rows is None else len(self._rows)

    def __getitem__(self, sample: int) -> codecs.Pixels:
        sample = range(len(self))[sample]
        pixels = codecs.decode(self.payload(sample), self.manifest.codec, self.form(sample))
        return pixels[list(self.channel_indices)]

    def form(self, sample: int) -> codecs.Form:
        """Shape and dtype that the payload of one sample must hold: all stored channels."""
        return codecs.Form(tuple(self._samples.shapes[self._row(sample)].tolist()), self.manifest.dtype)

    def payload(self, sample: int) -> memoryview:
        """The encoded bytes of one sample; their checksum is verified the first time they are read.

        Raises:
            SampleError: they cannot be read, or are not those that were written.
        """
        row = self._row(sample)
        shard, offset, size, expected = (int(column[row]) for column in self._samples.place)
        data = self.store.read(shard, offset, size)
        if not self._samples.begins[row]:
            if (found := crc32c(data)) != expected:
                raise SampleError(
                    f"sample {self._key(shard, offset)} in shard {self.manifest.shards[shard].name} of {self.folder} "
                    f"has changed: crc32c {found:08x}, the table says {expected:08x}; see `shardgen verify`"
                )
            in_place = self.manifest.codec == "npy" and codecs.npy_begin(data, self.form(sample))
            self._samples.begins[row] = in_place or 1
        return data

    @property
    def in_place(self) -> bool:
        """Whether pixels lie in memory as they are, so that a part of a sample can be read without the rest."""
        return self.manifest.codec == "npy" and isinstance(self.store, LocalStore)

    def unverified(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[B] which of these have not been read yet."""
        return self._samples.begins[self._row(samples)] == 0

    def addresses(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[B] where in memory the pixels [C, Y, X] of samples begin that are verified; only of a dataset `in_place`."""
        assert isinstance(self.store, LocalStore), "asked for only where in_place"
        rows = self._row(samples)
        shard, offset, _, _ = (column[rows] for column in self._samples.place)
        return self.store.addresses(shard) + offset + self._samples.begins[rows]

    def _key(self, shard: int, offset: int) -> str:
        table = read_shard_table(self.folder, self.manifest.shards[shard].name, self.manifest, ["key", "offset"])
        keys: list[str] = table.filter(pc.field("offset") == offset)["key"].to_pylist()
        return keys[0]

    def _row(self, samples: "int | npt.NDArray[np.int64]") -> "int | npt.NDArray[np.int64]":
        return samples if self._rows is None else self._rows[samples]

    def _of_own(self, column: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return column if self._rows is None else column[self._rows]

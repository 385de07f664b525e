"""A dataset of shards: its table, its channels by name, any sample by number."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bie_stream import codecs
from bie_stream.errors import DatasetError, SampleError, nearest
from bie_stream.folder import Folder, Location, folder_at
from bie_stream.shards import ChannelStatistics, Manifest, crc32c, read_manifest, read_table, shard_file
from bie_stream.store import Store, open_store


def open(  # noqa: A001 - the public name is bie_stream.open, as in zarr.open
    path: Location, *, split: str | None = None, channels: Sequence[str] | None = None
) -> "Dataset":
    """Opens a dataset.

    Args:
        path: the folder that holds `dataset.json`, or its URL (`s3://bucket/plates`).
        split: only this split; None for all samples.
        channels: names, in the order wanted; None for all, in the order of the manifest.

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
    table = read_table(folder, manifest)
    store = open_store(folder, [shard_file(shard.name) for shard in manifest.shards])
    dataset = Dataset(folder, manifest, table, tuple(known.index(name) for name in wanted), store)
    return dataset if split is None else dataset.select(pc.field("split") == split)


class Dataset:
    """Samples with their metadata. `dataset[i]` is [C, Y, X] in the dtype of the microscope.

    Attributes:
        folder: where it lies.
        manifest: what the whole dataset is.
        table: one row per sample, in order: columns of `bie_stream.shards.SAMPLE_COLUMNS`, then the labels.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, table: pa.Table, channels: tuple[int, ...], store: Store
    ) -> None:
        self.folder, self.manifest, self.table = folder, manifest, table
        self.channel_indices = channels
        self._store = store
        self._place = [table[name].to_numpy() for name in ("shard", "offset", "size", "crc32c")]
        self._checked = np.zeros(len(table), dtype=bool)
        shapes = pc.list_flatten(table["shape"].combine_chunks()).to_numpy()
        self._shapes: npt.NDArray[np.int64] = shapes.reshape(-1, 3).astype(np.int64)
        self.shapes = self._shapes[:, 1:]
        if (self._shapes[:, 0] != len(manifest.channels)).any():
            raise DatasetError(
                f"{folder} has samples of another number of channels than the {len(manifest.channels)} named"
            )

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of `dataset[i]`, in order."""
        return tuple(self.manifest.channels[i].name for i in self.channel_indices)

    @property
    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Of each channel of `dataset[i]`, over the whole dataset (all splits)."""
        return tuple(self.manifest.statistics[i] for i in self.channel_indices)

    def select(self, rows: pc.Expression | npt.NDArray[np.bool_]) -> "Dataset":
        """The samples for which a pyarrow expression on the table, or a mask over its rows, is true."""
        mask = rows if isinstance(rows, pc.Expression) else pa.array(rows)
        return Dataset(self.folder, self.manifest, self.table.filter(mask), self.channel_indices, self._store)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, sample: int) -> codecs.Pixels:
        sample = range(len(self))[sample]
        pixels = codecs.decode(self.payload(sample), self.manifest.codec, self.form(sample))
        return pixels[list(self.channel_indices)]

    def form(self, sample: int) -> codecs.Form:
        """Shape and dtype that the payload of one sample must hold: all stored channels."""
        return codecs.Form(tuple(self._shapes[sample].tolist()), self.manifest.dtype)

    def payload(self, sample: int) -> memoryview:
        """The encoded bytes of one sample; their checksum is verified the first time they are read.

        Raises:
            SampleError: they cannot be read, or are not those that were written.
        """
        shard, offset, size, expected = (int(column[sample]) for column in self._place)
        data = self._store.read(shard, offset, size)
        if not self._checked[sample]:
            if (found := crc32c(data)) != expected:
                name = self.manifest.shards[shard].name
                raise SampleError(
                    f"sample {self.table['key'][sample]} in shard {name} of {self.folder} has changed: "
                    f"crc32c {found:08x}, the table says {expected:08x}; see `shardgen verify`"
                )
            self._checked[sample] = True
        return data

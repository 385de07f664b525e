"""Is a dataset what its manifest says? Every byte is read; each fault is one line."""

import hashlib
import itertools
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from bie_stream import codecs
from bie_stream.errors import DatasetError, SampleError
from bie_stream.folder import Folder, Location, folder_at
from bie_stream.shards import (
    REJECTS,
    Manifest,
    ShardEntry,
    crc32c,
    describe_sample,
    index_head,
    index_line,
    read_manifest,
    read_shard_table,
    read_table,
    shard_file,
)
from bie_stream.store import LocalStore


def verify(dataset: Location) -> Iterator[str]:
    """Each fault of a dataset, for a person; nothing if it is sound.

    Checked: sizes and sha256 of the shards; that tar, table and index name the same bytes; crc32c, shape and dtype
    of every sample; counts; that keys are unique and that no well stands in two splits unless the build asked for it.

    Raises:
        DatasetNotFound: there is no dataset to check.
    """
    folder = folder_at(dataset)
    manifest = read_manifest(folder)
    total = sum(shard.bytes for shard in manifest.shards)
    with tqdm(total=total, unit="B", unit_scale=True, desc="verify", dynamic_ncols=True, disable=None) as bar:
        for shard in manifest.shards:
            yield from _shard(folder, shard, manifest)
            bar.update(shard.bytes)
    try:
        table = read_table(folder, manifest)
    except DatasetError as error:
        yield str(error)
        return
    if len(table) != manifest.samples:
        yield f"the tables have {len(table)} samples, the manifest says {manifest.samples}"
    doubled = [key for key, times in Counter(table["key"].to_pylist()).items() if times > 1]
    if doubled:
        yield f"{len(doubled)} keys are there twice, the first: {doubled[0]}"
    splits = Counter(table["split"].to_pylist())
    if {name: splits[name] for name in manifest.splits} != manifest.splits or set(splits) - set(manifest.splits):
        yield f"the tables have splits {dict(splits)}, the manifest says {manifest.splits}"
    yield from _leaks(table.select(["plate", "well", "split"]).to_pylist(), manifest)
    yield from _rejects(folder, manifest)


def _rejects(folder: Folder, manifest: Manifest) -> Iterator[str]:
    try:
        # Not pq.read_table: threads of its own would let go of these bytes when Python has ended, and abort.
        listed = len(pq.ParquetFile(pa.BufferReader(folder.read(REJECTS))).read(use_threads=False))
    except (OSError, pa.ArrowException, ValueError) as error:
        yield f"{folder}/{REJECTS} cannot be read: {error}"
        return
    if listed != manifest.rejected:
        yield f"{folder}/{REJECTS} lists {listed} rejected fields, the manifest counts {manifest.rejected}"


def _leaks(rows: list[dict[str, str]], manifest: Manifest) -> Iterator[str]:
    by_plate = manifest.options.get("split_by") == "plate"
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["plate"] if by_plate else f"{row['plate']}/{row['well']}", set()).add(row["split"])
    for group, names in sides.items():
        if len(names) > 1:
            yield f"{group} stands in splits {', '.join(sorted(names))}: what is learned in one leaks into the other"


def _shard(folder: Folder, shard: ShardEntry, manifest: Manifest) -> Iterator[str]:
    where = f"{folder}/{shard_file(shard.name)}"
    try:
        table = read_shard_table(folder, shard.name, manifest)
        with folder.local(shard_file(shard.name)) as tar:
            yield from _tar(tar, where, folder, shard, table, manifest)
    except (OSError, DatasetError) as error:
        yield f"shard {where}: {error}"


def _tar(
    path: Path, where: str, folder: Folder, shard: ShardEntry, table: pa.Table, manifest: Manifest
) -> Iterator[str]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_size != shard.bytes:
        yield f"shard {where} has {path.stat().st_size} bytes, the manifest says {shard.bytes}"
    if sha256 != shard.sha256:
        yield f"shard {where} has changed: sha256 {sha256[:16]}…, the manifest says {shard.sha256[:16]}…"
    try:
        members = _members(path)
    except Exception as error:  # tarfile raises whatever the bytes lead it to
        yield f"shard {where} is not a whole tar: {error}"
        members = None
    index = shard_file(shard.name, ".idx")
    there = folder.size(index) is not None
    lines = folder.read(index).decode(errors="replace").splitlines() if there else []
    if lines[:1] != [index_head(len(table))] or len(lines) != len(table) + 1:
        yield f"index {folder}/{index} does not list the {len(table)} samples of its table"
        lines = []
    store = LocalStore([path])
    for row, line in itertools.zip_longest(table.to_pylist(), lines[1:]):
        yield from _sample(store, row, manifest, members, where)
        about = (members or {}).get(f"{row['key']}.json")
        if line and about and line != index_line(manifest.codec, row["key"], (row["offset"], row["size"]), about):
            yield f"index {folder}/{index}: {line!r} is not what the table says of sample {row['key']}"


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each member of a tar."""
    members, last = {}, -1
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.offset <= last:  # a size below zero leads tarfile back, and it would go round for ever
                raise tarfile.ReadError(f"after the member at byte {last} it goes back to byte {member.offset}")
            members[member.name], last = (member.offset_data, member.size), member.offset
    return members


def _sample(
    store: LocalStore, row: dict[str, Any], manifest: Manifest, members: dict[str, tuple[int, int]] | None, tar: str
) -> Iterator[str]:
    key, offset, size = row["key"], row["offset"], row["size"]
    where = f"sample {key} in {tar}"
    name = f"{key}.{codecs.SUFFIX[manifest.codec]}"
    if members is not None and members.get(name) != (offset, size):
        yield f"{where}: the table says {size} bytes at {offset}, the tar has {members.get(name)}"
    try:
        about = (members or {}).get(f"{key}.json")
        if about and bytes(store.read(0, *about)) != describe_sample(row):
            yield f"{where}: the table's row is not what the tar says of it"
        payload = store.read(0, offset, size)
        if crc32c(payload) != row["crc32c"]:
            yield f"{where}: its bytes have changed (crc32c)"
            return
        codecs.decode(payload, manifest.codec, codecs.Form(tuple(row["shape"] or ()), manifest.dtype))
    except SampleError as error:
        yield f"{where}: {error}"

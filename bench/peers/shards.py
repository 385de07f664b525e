"""Our shards, which most peers read too: plain WebDataset tars with DALI's index beside each."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.works import Codec, Pixels, Work
from bie_stream import codecs
from bie_stream.shards import (
    SAMPLE_COLUMNS,
    Channel,
    ChannelStatistics,
    Manifest,
    ShardEntry,
    ShardWriter,
    shard_facts,
    shard_file,
    write_manifest,
)

_SHARDS = 8  # of a lap: some for each worker
_THREADS = 4

Parts = Sequence[bytes | memoryview]


def prepare(pixels: Pixels, folder: Path, work: Work) -> None:
    """In the work's codec."""
    write(pixels, folder, work, work.codec, lambda image: codecs.encoded_parts(image, work.codec))


def write(pixels: Pixels, folder: Path, work: Work, codec: Codec, encode: Callable[[Pixels], Parts]) -> None:
    """A dataset of `laps` times the samples: the same files under more names."""
    numbers = np.array_split(np.arange(len(pixels)), min(_SHARDS, len(pixels)))
    names = [f"{shard:06d}" for shard in range(len(numbers))]
    for name, part in zip(names, numbers, strict=True):
        _write_shard(pixels, part.tolist(), folder, name, codec, encode)
    entries = [entry_of(folder, name) for name in names]
    for lap in range(1, work.laps):
        entries += [_link(folder, entry, f"{lap:02d}{entry.name}") for entry in entries[: len(names)]]
    write_manifest(folder, manifest(codec, work.mean, work.std, entries))


def _write_shard(
    pixels: Pixels, numbers: Sequence[int], folder: Path, name: str, codec: Codec, encode: Callable[[Pixels], Parts]
) -> None:
    with ShardWriter(folder, name, SAMPLE_COLUMNS, codec) as writer, ThreadPoolExecutor(_THREADS) as pool:
        for number, parts in zip(numbers, pool.map(encode, [pixels[n] for n in numbers]), strict=True):
            writer.add(parts, _row(number, pixels[number].shape))


def _row(number: int, shape: tuple[int, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"key": f"s{number}", "shape": list(shape), "plate": "p", "well": f"A{number % 24 + 1}"}
    return row | {"field": str(number // 24), "z": 0, "t": 0, "top": 0, "left": 0, "split": "train"}


def entry_of(folder: Path, name: str) -> ShardEntry:
    """A shard that was written, as a manifest lists it."""
    facts = shard_facts(folder, name)
    if facts is None:
        raise RuntimeError(f"shard {name} was not written")
    return ShardEntry(name=name, **{key: facts[key] for key in ("samples", "bytes", "sha256")})


def _link(folder: Path, entry: ShardEntry, name: str) -> ShardEntry:
    for suffix in (".tar", ".idx", ".parquet"):
        os.link(folder / shard_file(entry.name, suffix), folder / shard_file(name, suffix))
    return entry.model_copy(update={"name": name})


def manifest(codec: Codec, mean: Sequence[float], std: Sequence[float], entries: Sequence[ShardEntry]) -> Manifest:
    """Of a dataset of uint16 samples, all for training; mean and std of each channel."""
    numbers = zip(mean, std, strict=True)
    statistics = [ChannelStatistics(mean=m, std=s, minimum=0, maximum=4095, percentiles={}) for m, s in numbers]
    samples = sum(entry.samples for entry in entries)
    return Manifest(
        study="bench", source="made up by bench", licence=None, citation=None,
        channels=tuple(Channel(name=f"c{c}") for c in range(len(statistics))), dtype="uint16", pixel_size_um=None,
        codec=codec, samples=samples, splits={"train": samples}, labels=(), rejected=0,
        statistics=tuple(statistics), shards=tuple(entries), options={}, plan_sha256="0" * 64,
    )  # fmt: skip

"""How long a loader takes to its first batch on a table of ten million samples, and in how much memory.

The tables are real: one Parquet file a shard, every key, plate and field its own. The tars are one file under many
names, so the payloads of the first batch are real too, and their checksums are verified.

    python -m bench.start_up FOLDER      opens it, prints seconds and memory as JSON
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.peers.shards import entry_of, manifest
from bench.turn import memory_mb
from bie_stream.codecs import encode
from bie_stream.dataset import open as open_dataset
from bie_stream.shards import SAMPLE_COLUMNS, ShardWriter, shard_file, write_manifest

OF_SHARD = 10_000  # samples
_SHAPE, _BATCH, _FIELDS = (1, 32, 32), 64, 9
_RUNS = 3
_MARKER = "complete"


@dataclass(frozen=True)
class StartUp:
    """Medians of a few runs in fresh processes; seconds are without imports, memory is with them.

    Attributes:
        peak_mb: resident memory at its highest.
        imported_mb: before the dataset is opened.
    """

    samples: int
    open_s: float
    first_batch_s: float
    peak_mb: float
    imported_mb: float


def measure(folder: Path, samples: int) -> StartUp:
    """Writes the dataset unless it is there, then opens it a few times."""
    folder = folder / f"start-up-{samples}"
    if not (folder / _MARKER).exists():
        _write(folder, samples // OF_SHARD)
        (folder / _MARKER).touch()
    runs = [_run(folder) for _ in range(_RUNS)]
    return StartUp(samples, **{name: statistics.median(run[name] for run in runs) for name in runs[0]})


def _write(folder: Path, shards: int) -> None:
    pixels = np.random.default_rng(0).integers(100, 4000, (OF_SHARD, *_SHAPE), dtype=np.uint16)
    with ShardWriter(folder, _name(0), SAMPLE_COLUMNS, "npy") as writer:
        for row, image in zip(_rows(0).to_pylist(), pixels, strict=True):
            writer.add([encode(image, "npy")], row)
    first = pq.read_table(folder / shard_file(_name(0), ".parquet"))
    for shard in range(1, shards):
        for suffix in (".tar", ".idx"):
            os.link(folder / shard_file(_name(0), suffix), folder / shard_file(_name(shard), suffix))
        own = _rows(shard)
        columns = [own[name] if name in own.column_names else first[name] for name in first.column_names]
        table = pa.Table.from_arrays(columns, schema=first.schema)
        pq.write_table(table, folder / shard_file(_name(shard), ".parquet"), compression="zstd")
    entry = entry_of(folder, _name(0))
    entries = [entry.model_copy(update={"name": _name(shard)}) for shard in range(shards)]
    write_manifest(folder, manifest("npy", [float(pixels.mean())], [float(pixels.std())], entries))


def _name(shard: int) -> str:
    return f"{shard:06d}"


def _rows(shard: int) -> pa.Table:
    """What the writer does not add: a plate of 384 wells after the other."""
    numbers = np.arange(shard * OF_SHARD, (shard + 1) * OF_SHARD)
    well, field = numbers // _FIELDS, numbers % _FIELDS + 1
    plates = [f"plate{plate:05d}" for plate in well // 384]
    wells = [f"{chr(65 + n // 24)}{n % 24 + 1}" for n in well % 384]
    keys = [f"{plate}_{name}_f{number}" for plate, name, number in zip(plates, wells, field, strict=True)]
    zeros = np.zeros(OF_SHARD, np.int32)
    columns = {
        "key": keys, "shape": [list(_SHAPE)] * OF_SHARD, "plate": plates, "well": wells, "field": list(map(str, field)),
        "z": zeros, "t": zeros, "top": zeros, "left": zeros, "split": ["train"] * OF_SHARD,
    }  # fmt: skip
    return pa.table({name: pa.array(values, SAMPLE_COLUMNS.field(name).type) for name, values in columns.items()})


def _run(folder: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "bench.start_up", str(folder)]
    root = Path(__file__).parents[1]
    said = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said)
    return found


def main(folder: Path) -> None:
    """One opening."""
    from bie_stream.loader import Loader  # brings in torch, which who measures need not hold

    imported, start = memory_mb(os.getpid())["VmHWM"], time.perf_counter()
    dataset = open_dataset(folder)
    opened = time.perf_counter()
    batch = next(iter(Loader(dataset, _BATCH)))
    first = time.perf_counter()
    assert tuple(batch.images.shape) == (_BATCH, *_SHAPE)
    assert abs(float(batch.images.mean())) < 0.1, "these are not the pixels that were written"
    peak = memory_mb(os.getpid())["VmHWM"]
    print(
        json.dumps({"open_s": opened - start, "first_batch_s": first - start, "peak_mb": peak, "imported_mb": imported})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

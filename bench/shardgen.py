"""`shardgen build` against `cp` and against a plain loop, on the same uncompressed TIFFs in one run.

    python -m bench.shardgen FOLDER

FOLDER is scratch space on the disk that is to be measured; 12.8 GB are written below it and removed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

FIELDS, CHANNELS, SHAPE = 96, 4, (2160, 2560)  # as idr0093's
PATTERN = "{well}_w{channel}.tif"


def write_plate(folder: Path) -> int:
    """Uncompressed uint16 TIFFs, one plane each, noise over a gradient; their bytes of pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    slope = np.linspace(100, 4000, SHAPE[1], dtype=np.uint16)
    for field in range(FIELDS):
        for channel in range(1, CHANNELS + 1):
            plane = slope + rng.integers(0, 500, SHAPE, dtype=np.uint16)
            tifffile.imwrite(folder / f"A{field + 1}_w{channel}.tif", plane, metadata=None)
    return FIELDS * CHANNELS * SHAPE[0] * SHAPE[1] * 2


def copy(raw: Path, out: Path) -> None:
    """What a disk can do."""
    subprocess.run(["cp", "-r", raw, out], check=True)
    os.sync()


def plain_loop(raw: Path, out: Path) -> None:
    """tifffile + webdataset.ShardWriter: no checksums, no statistics, no table."""
    import webdataset

    out.mkdir()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=256 * 2**20, verbose=0) as writer:
        for field in range(FIELDS):
            planes = [tifffile.imread(raw / f"A{field + 1}_w{c}.tif") for c in range(1, CHANNELS + 1)]
            writer.write({"__key__": f"A{field + 1}", "npy": np.stack(planes), "json": {"well": f"A{field + 1}"}})
    os.sync()


def build(raw: Path, out: Path, workers: int) -> float:
    """Seconds by the build's own report, without the start of Python."""
    report = out.with_suffix(".json")
    words = ["build", raw, "--pattern", PATTERN, "--shard-mb", "128", "--workers", workers, "--report", report]
    subprocess.run([sys.executable, "-m", "shardgen", *map(str, words), "--out", str(out)], check=True)
    return float(json.loads(report.read_text())["seconds"])


def main(folder: Path) -> None:
    """Prints a table; every row the best of three, taken in turn."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        size = write_plate(root / "raw")
        best: dict[str, float] = {}
        for _ in range(3):
            for name, run in {
                "cp -r, sync": copy,
                "tifffile + webdataset.ShardWriter, sync": plain_loop,
                "shardgen build, 1 worker": lambda raw, out: build(raw, out, 1),
                "shardgen build, 2 workers": lambda raw, out: build(raw, out, 2),
            }.items():
                start = time.monotonic()
                told = run(root / "raw", root / "out")
                seconds = told or time.monotonic() - start
                best[name] = min(best.get(name, seconds), seconds)
                shutil.rmtree(root / "out")
        for name, seconds in best.items():
            print(f"| {name} | {size / seconds / 1e6:.0f} MB/s | {best['cp -r, sync'] / seconds:.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

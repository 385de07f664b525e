"""`shardgen build` against `cp` and against a plain loop, on the same uncompressed TIFFs in one run.

    python -m bench.shardgen FOLDER

FOLDER is scratch space on the disk that is to be measured; 26 GB are written below it and removed.
"""

import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

FIELDS, CHANNELS, SHAPE = 192, 4, (2160, 2560)  # planes as idr0093's
PATTERN = "{well}_w{channel}.tif"
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds from the raw folder to the output on disk; CPU seconds and memory with Python's start."""

    seconds: float
    cpu_s: float
    peak_mb: float


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


def copy(raw: Path, out: Path) -> Cost:
    """What a disk and one core can do."""
    start = time.monotonic()
    _, cost = run("cp", "-r", raw, out)
    os.sync()
    return replace(cost, seconds=time.monotonic() - start)


def plain_loop(raw: Path, out: Path) -> Cost:
    """tifffile + webdataset.ShardWriter: no checksums, no statistics, no table."""
    said, cost = run(sys.executable, "-m", "bench.shardgen", "--loop", raw, out)
    return replace(cost, seconds=float(said))


def loop(raw: Path, out: Path) -> None:
    """The plain loop itself, in a process of its own; prints its seconds without the start of Python."""
    import webdataset

    out.mkdir()
    start = time.monotonic()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=256 * 2**20, verbose=0) as writer:
        for field in range(FIELDS):
            planes = [tifffile.imread(raw / f"A{field + 1}_w{c}.tif") for c in range(1, CHANNELS + 1)]
            writer.write({"__key__": f"A{field + 1}", "npy": np.stack(planes), "json": {"well": f"A{field + 1}"}})
    os.sync()
    print(time.monotonic() - start)


def build(raw: Path, out: Path, workers: int) -> Cost:
    """Seconds by the build's own report: with the start of its workers, without that of Python."""
    report = out.with_suffix(".json")
    words = ["build", raw, "--pattern", PATTERN, "--workers", workers, "--report", report, "--out", out]
    _, cost = run(sys.executable, "-m", "shardgen", *words, cores=workers)
    return replace(cost, seconds=float(json.loads(report.read_text())["seconds"]))


def run(*command: object, cores: int = 1) -> tuple[str, Cost]:
    """What a command prints and costs; it and all that it starts are kept on so many cores."""
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(
            list(map(str, command)), stdout=said, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, range(cores)),
        )  # fmt: skip
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            raise SystemExit(f"{command} ended with {started.returncode}")
        said.seek(0)
        return said.read(), Cost(0.0, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def main(folder: Path) -> None:
    """Prints a table: medians over repeats that are taken in turn, with the least and the most."""
    rows: dict[str, Callable[[Path, Path], Cost]] = {
        "`cp -r`, `sync`; one core": copy,
        "`tifffile` + `webdataset.ShardWriter`, `sync`; one core": plain_loop,
        "`shardgen build --workers 1`; one core": functools.partial(build, workers=1),
        "`shardgen build --workers 2`; two cores": functools.partial(build, workers=2),
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        raw, out = Path(scratch, "raw"), Path(scratch, "out")
        size = write_plate(raw)
        costs: dict[str, list[Cost]] = {name: [] for name in rows}
        for _ in range(REPEATS):
            for name, measure in rows.items():
                costs[name].append(measure(raw, out))
                shutil.rmtree(out)
    copies = next(iter(costs.values()))
    print("| | MB/s of pixels (range) | of `cp` (range) | CPU s/GB | peak MB of a process |\n|---|---|---|---|---|")
    for name, found in costs.items():
        rates = [size / cost.seconds / 1e6 for cost in found]
        ratios = [copied.seconds / cost.seconds for copied, cost in zip(copies, found, strict=True)]  # turn by turn
        cpu = statistics.median(cost.cpu_s for cost in found) / (size / 1e9)
        memory = max(cost.peak_mb for cost in found)
        print(f"| {name} | {spread(rates, '.0f')} | {spread(ratios, '.2f')} | {cpu:.2f} | {memory:.0f} |")


def spread(values: list[float], form: str) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    if sys.argv[1] == "--loop":
        loop(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))

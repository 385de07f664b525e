"""Small archives whose pixels are known, and the command as a user runs it."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from shardgen.find import find
from shardgen.pixels import probe
from shardgen.plan import Options, Plan, make_plan
from shardgen.request import Request
from shardgen.select import Selection

PATTERN = "{well}_s{field}_w{channel}.tif"
REPOSITORY = Path(__file__).parents[2]

Pixels = dict[tuple[str, int, int], np.ndarray[Any, Any]]


def _write(
    folder: Path, wells: Sequence[str] = ("A01", "A02", "B01", "B02", "C01"), fields: int = 2, channels: int = 2,
    shape: tuple[int, int] = (12, 16), dtype: str = "uint16", seed: int = 0,
) -> Pixels:  # fmt: skip
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    written: Pixels = {}
    for well in wells:
        for field in range(1, fields + 1):
            for channel in range(1, channels + 1):
                if dtype == "float32":
                    pixels = rng.normal(50, 20, shape).astype(dtype)
                else:
                    pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
                tifffile.imwrite(folder / f"{well}_s{field}_w{channel}.tif", pixels, metadata=None)
                written[well, field, channel] = pixels
    return written


@pytest.fixture
def write_archive() -> Callable[..., Pixels]:
    """Writes TIFFs of random pixels under PATTERN; their pixels by (well, field, channel) as in the names."""
    return _write


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sound archive of 5 wells x 2 fields x 2 channels, 12 x 16 uint16, with `wells.csv` beside it."""
    _write(tmp_path / "raw")
    (tmp_path / "wells.csv").write_text("well,drug,dose\nA1,dmso,0\nA2,taxol,1\nB1,dmso,0\nB2,taxol,3\nC1,taxol,10\n")
    return tmp_path / "raw"


def _plan(raw: Path, labels: Path | None = None, channels: dict[str, str] | None = None, **options: Any) -> Plan:
    archive = find(str(raw), Request(pattern=PATTERN, labels=labels, selection=Selection(channels=channels)))
    return make_plan(archive, Options(**options), *probe(archive))


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """The plan of a folder under PATTERN; keywords are those of Options."""
    return _plan


def _tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def tree() -> Callable[[Path], dict[str, str]]:
    """sha256 of every file under a folder."""
    return _tree


def _shardgen(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shardgen", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def shardgen() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in a process of its own."""
    return _shardgen

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bie_stream.direct import DirectFile

MIB = 2**20


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """On a disk, and on a file system that may know no direct writing."""
    if request.param == "disk":
        yield tmp_path
        return
    memory = Path("/dev/shm")
    if not (sys.platform == "linux" and os.access(memory, os.W_OK)):
        pytest.skip("no file system in memory here")
    path = memory / tmp_path.name
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def _random(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [4096], [10240], [511, 1, 7], [4 * MIB], [4 * MIB + 1], [3 * MIB, 3 * MIB, 5000], [9 * MIB]]
)
def test_a_file_holds_just_what_it_was_given(folder: Path, sizes: list[int]) -> None:
    parts = [_random(size) for size in sizes]
    path = folder / "a"
    path.write_bytes(b"what was there before" * MIB)
    file = DirectFile(path)
    for part in parts:
        file.write(part)
    file.finish()
    file.close()
    file.close()
    assert path.read_bytes() == b"".join(parts)


def test_a_full_disk_is_an_error() -> None:
    file = DirectFile(Path("/dev/full"))
    file.write(b"some")
    with pytest.raises(OSError, match="No space left"):
        file.finish()
    file.close()

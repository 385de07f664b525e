"""Payloads in tars by (file, offset, size), from the indices that `bench.peers.shards` wrote beside them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Place(NamedTuple):
    """Where a payload lies: number of the tar, bytes."""

    tar: int
    offset: int
    size: int


def tars(folder: Path) -> list[Path]:
    """In order."""
    return sorted((folder / "shards").glob("*.tar"))


def places(folder: Path) -> list[Place]:
    """Of all samples, in order; tars as `tars` lists them."""
    lines = ((n, line.split()) for n, tar in enumerate(tars(folder)) for line in _index(tar))
    return [Place(n, int(words[1]), int(words[2])) for n, words in lines]


def maps(folder: Path) -> list[npt.NDArray[np.uint8]]:
    """Every tar, memory-mapped."""
    return [np.memmap(tar, np.uint8, "r") for tar in tars(folder)]


def _index(tar: Path) -> list[str]:
    return tar.with_suffix(".idx").read_text().splitlines()[1:]

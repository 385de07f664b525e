"""What a plan says that will be fetched, against what there is."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from archive_server import ArchiveServer

from bie_stream.shards import Channel
from shardgen.archive import Archive, Field, Plane
from shardgen.files import Transfer, open_files
from shardgen.find import find
from shardgen.pixels import probe, read_field
from shardgen.plan import Options, make_plan
from shardgen.request import Request
from shardgen.transfer_size import TransferSize, to_fetch, transfer_size

FAST = Transfer(timeout_s=0.3, pause_s=0.01, longest_pause_s=0.05)
SHAPE = (8, 10)
PLANE_BYTES = 160


def archive(root: str | Path, planes: list[Plane], channels: int = 1, layout: str = "tiff") -> Archive:
    """One field for each so many planes."""
    fields = tuple(
        Field("p", f"A{number + 1}", "1", 0, 0, tuple((plane,) for plane in planes[first : first + channels]))
        for number, first in enumerate(range(0, len(planes), channels))
    )
    names = tuple(Channel(name=str(number)) for number in range(channels))
    return Archive(
        files=open_files(root, FAST), study="s", source="s", channels=names, fields=fields,
        format="zarr" if layout == "zarr" else "tiff",
    )  # fmt: skip


def test_listed_sizes_are_added_up_and_nothing_is_asked() -> None:
    planes = [Plane(f"{number}.tif", (), 1000 + number) for number in range(50)]
    with ArchiveServer({}) as server:
        found = transfer_size(archive(server.url, planes), "uint16", SHAPE)
        assert not server.requests
    assert found == TransferSize(sum(range(1000, 1050)), 50)
    assert str(found) == "51.2 kB in 50 files"


@pytest.mark.parametrize("files", [1, 8, 9, 1000])
def test_other_sizes_are_guessed_from_eight_files_or_all_without_reading_them(files: int) -> None:
    tree = {f"/{number}.tif": bytes(1000 + 10 * (number % 5)) for number in range(files)}
    with ArchiveServer(tree) as server:
        planes = [Plane(path[1:]) for path in tree]
        found = transfer_size(archive(server.url, planes, channels=5), "uint16", SHAPE)
        assert {request.method for request in server.requests} == {"HEAD"}
        assert len(server.requests) == min(files, 8)
    truth = sum(map(len, tree.values()))
    assert found.pieces == files
    assert found.exactness == ("about" if files > 8 else "")
    assert found.bytes == (pytest.approx(truth, rel=0.02) if files > 8 else truth)


def test_the_files_that_are_asked_for_lie_all_over_the_plan_and_are_not_of_one_channel() -> None:
    tree = {f"/{number}.tif": b"1" for number in range(8 * 5 * 100)}
    with ArchiveServer(tree) as server:
        transfer_size(archive(server.url, [Plane(path[1:]) for path in tree], channels=5), "uint16", SHAPE)
        numbers = sorted(int(path[1:-4]) for path in server.asked)
    assert len({number % 5 for number in numbers}) >= 3
    assert max(np.diff([*numbers, len(tree)])) < len(tree) / 4


def test_files_that_are_not_there_or_do_not_answer_are_passed_over() -> None:
    tree = {f"/{number}.tif": bytes(1000) for number in range(4)}
    with ArchiveServer(tree) as server:
        server.fail("/3.tif", *(["503"] * FAST.tries))
        found = transfer_size(archive(server.url, [Plane(f"{number}.tif") for number in range(8)]), "uint16", SHAPE)
    assert (found.bytes, found.pieces, found.exactness) == (8000, 8, "about")


def test_without_any_size_the_pixels_are_the_guess(tmp_path: Path) -> None:
    found = transfer_size(archive(tmp_path, [Plane("a.tif"), Plane("b.tif")]), "uint16", SHAPE)
    assert found == TransferSize(2 * PLANE_BYTES, 2, exactness="about")


def test_a_file_of_many_pages_counts_once_and_only_for_the_pages_that_are_wanted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, *SHAPE), np.uint16), photometric="minisblack", metadata=None)
    size = (tmp_path / "a.tif").stat().st_size
    every = transfer_size(archive(tmp_path, [Plane("a.tif", (page,)) for page in range(6)], 3), "uint16", SHAPE)
    assert (every.pieces, every.exactness) == (1, "about")
    assert 6 * PLANE_BYTES <= every.bytes <= size
    one = transfer_size(archive(tmp_path, [Plane("a.tif", (5,), size)]), "uint16", SHAPE)
    assert one == TransferSize(PLANE_BYTES, 1, exactness="about")


@pytest.mark.parametrize("compressors", ["auto", None])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("chunks", "pieces", "together", "padded"),
    [((1, 80, 100), 1, 1, (80, 100)), ((1, 50, 40), 6, 1, (100, 120)), ((3, 80, 100), 1, 3, (80, 100))],
)
def test_chunks_of_zarr_are_at_most_their_pixels(
    tmp_path: Path, chunks: tuple[int, ...], pieces: int, together: int, padded: tuple[int, int], version: Any,
    compressors: Any,
) -> None:  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 2**10, (4, 80, 100), np.uint16)
    zarr.create_array(tmp_path / "a", data=pixels, chunks=chunks, zarr_format=version, compressors=compressors)
    tree = {f"/{path.relative_to(tmp_path)}": path for path in tmp_path.rglob("*") if path.is_file()}
    planes = [Plane("a", (number,)) for number in range(3)]
    with ArchiveServer(tree) as server:
        there = archive(server.url, planes, layout="zarr")
        found = transfer_size(there, "uint16", (80, 100))
        before = server.bytes_sent
        for field in there.fields:
            np.testing.assert_array_equal(
                read_field(there, field, "uint16", (80, 100))[0], pixels[field.planes[0][0].index]
            )
        sent = server.bytes_sent - before
        absent = archive(server.url, [Plane("absent", (0,)), *planes], layout="zarr")
        assert transfer_size(absent, "uint16", (80, 100)).bytes == found.bytes // 3 * 4
    height, width = padded if compressors is None else (80, 100)
    assert found == TransferSize(3 * together * height * width * 2, 3 * pieces, "chunks", "at most")
    assert sent == found.bytes if compressors is None else sent < found.bytes


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (TransferSize(0, 0), "0 bytes in 0 files"), (TransferSize(999, 1), "999 bytes in 1 file"),
        (TransferSize(24_912_345_678, 34_560, exactness="about"), "about 24.9 GB in 34,560 files"),
        (TransferSize(3_100_000_000_000, 7, "chunks", "at most"), "at most 3.1 TB in 7 chunks"),
    ],
)  # fmt: skip
def test_a_size_is_said_for_a_person(size: TransferSize, said: str) -> None:
    assert str(size) == said


def test_of_a_plan_only_its_own_fields_count_and_their_masks_too(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "masks").mkdir()
    for field in (1, 2):
        tifffile.imwrite(tmp_path / f"masks/A1_s{field}.tif", np.ones((12, 16), np.uint16), metadata=None)
    (tmp_path / "cells.csv").write_text("well,field,y,x\nA1,1,5,5\nB1,2,5,5\n")
    one = (raw / "A01_s1_w1.tif").stat().st_size
    said = []
    for ask in ({"objects": tmp_path / "cells.csv"}, {"masks": f"{tmp_path}/masks/{{well}}_s{{field}}.tif"}):
        found = find(str(raw), Request(pattern="{well}_s{field}_w{channel}.tif", **ask))  # type: ignore[arg-type]
        said.append(to_fetch(make_plan(found, Options(tile=4), *probe(found))))
    assert said[0] == f"{4 * one / 1e3:.1f} kB in 4 files"
    assert said[1] == f"about {20 * one / 1e3:.1f} kB in 20 files; of masks {2 * one / 1e3:.1f} kB in 2 files"


def test_a_plan_says_what_will_be_fetched(raw: Path, shardgen: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = shardgen("plan", raw, "--pattern", "{well}_s{field}_w{channel}.tif")
    truth = sum(path.stat().st_size for path in raw.iterdir())
    assert f"bytes to fetch               about {truth / 1e3:.1f} kB in 20 files\n" in result.stdout

"""From fields to samples, through whole builds: what is cut out, and what is left out and counted."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import bie_stream
from bie_stream.errors import SourceError
from bie_stream.shards import read_manifest
from shardgen.build import build
from shardgen.find import find
from shardgen.pixels import probe
from shardgen.plan import Options, Plan, describe, make_plan
from shardgen.request import Request
from shardgen.verify import verify

PATTERN = "{well}_s{field}_w{channel}.tif"
FIELDS = [(well, field) for well in ("A1", "A2", "B1") for field in (1, 2)]
SHAPE = (40, 50)


@pytest.fixture
def cells(tmp_path: Path, write_archive: Callable[..., Any]) -> dict[tuple[str, int], np.ndarray]:
    """Fields of 2 channels under `raw`, and under `masks` label images of five squares that are known."""
    written = write_archive(tmp_path / "raw", wells=("A01", "A02", "B01"), fields=2, shape=SHAPE)
    masks = {}
    (tmp_path / "masks").mkdir()
    for number, (well, field) in enumerate(FIELDS):
        mask = np.zeros(SHAPE, np.uint16)
        rng = np.random.default_rng(number)
        for label in (1, 2, 3, 5, 9):
            top, left = rng.integers(0, (36, 46))
            mask[top : top + 4, left : left + 4] = label
        masks[well, field] = mask
        tifffile.imwrite(tmp_path / "masks" / f"{well}_s{field}.tif", mask)
    pixels = {}
    for well, field in FIELDS:
        name = f"{well[0]}0{well[1]}"
        pixels[well, field] = np.stack([written[name, field, channel] for channel in (1, 2)])
    (tmp_path / "wells.csv").write_text("well,drug\nA1,x\nA2,y\nB1,z\n")
    with (tmp_path / "cells.csv").open("w") as table:
        print("well,field,object,y,x,phase,area", file=table)
        for (well, field), mask in masks.items():
            for label in np.unique(mask[mask > 0]):
                ys, xs = np.nonzero(mask == label)
                print(f"{well},{field},{label},{ys.mean()},{xs.mean()},{'GS'[label % 2]},{len(ys)}", file=table)
    return pixels


def _planned(tmp_path: Path, objects: str | None = None, masks: str | None = None, **options: Any) -> Plan:
    request = Request(
        pattern=PATTERN, labels=tmp_path / "wells.csv", objects=objects and tmp_path / objects,
        masks=masks and f"{tmp_path}/{masks}",
    )  # fmt: skip
    archive = find(str(tmp_path / "raw"), request)
    return make_plan(archive, Options(objects=objects, masks=masks, **options), *probe(archive))


def _expected(tmp_path: Path, size: int) -> Iterator[tuple[str, int, int, int, int, bool]]:
    """well, field, object, top, left, whether the crop lies in the field: by loops over the label images."""
    for well, field in FIELDS:
        mask = tifffile.imread(tmp_path / "masks" / f"{well}_s{field}.tif")
        for label in sorted(set(mask.ravel().tolist()) - {0}):
            ys, xs = np.nonzero(mask == label)
            top, left = (int(np.floor(c.mean() - (size - 1) / 2 + 0.5)) for c in (ys, xs))
            yield well, field, label, top, left, 0 <= top <= SHAPE[0] - size and 0 <= left <= SHAPE[1] - size


@pytest.mark.parametrize("by", ["objects", "masks"])
@pytest.mark.parametrize("workers", [1, 2])
def test_crops_around_objects_are_those_of_the_field_and_what_leaves_it_is_counted(
    tmp_path: Path, cells: dict[tuple[str, int], np.ndarray], by: str, workers: int
) -> None:
    size = 12
    source = {"objects": "cells.csv"} if by == "objects" else {"masks": "masks/{well}_s{field}.tif"}
    plan = _planned(tmp_path, **source, tile=size, shard_bytes=2000)
    assert len(plan.shards) > 1
    build(plan, tmp_path / "out", workers=workers)
    dataset, expected = bie_stream.open(tmp_path / "out"), list(_expected(tmp_path, size))
    inside = [row[:5] for row in expected if row[5]]
    rows = dataset.table.to_pylist()
    assert [(r["well"], int(r["field"]), r["object"], r["top"], r["left"]) for r in rows] == inside
    for number, (well, field, label, top, left) in enumerate(inside):
        crop = cells[well, field][:, top : top + size, left : left + size]
        np.testing.assert_array_equal(dataset[number], crop)
        assert rows[number]["drug"] == {"A1": "x", "A2": "y", "B1": "z"}[well]
        if by == "objects":
            area = np.count_nonzero(tifffile.imread(tmp_path / "masks" / f"{well}_s{field}.tif") == label)
            assert (rows[number]["phase"], rows[number]["area"]) == ("GS"[label % 2], area)
    assert dataset.manifest.left_out == {"edge": len(expected) - len(inside)}
    assert 0 < len(inside) < len(expected)
    assert list(verify(tmp_path / "out")) == []
    if by == "objects":
        assert plan.samples == len(inside)
        assert describe(plan, "")["objects at the edge"] == len(expected) - len(inside)
    else:
        assert plan.samples is None
        assert describe(plan, "")["samples"] == "not known before the masks are read"


def test_a_table_and_masks_of_the_same_objects_give_the_same_samples(
    tmp_path: Path, cells: dict[tuple[str, int], np.ndarray]
) -> None:
    build(_planned(tmp_path, objects="cells.csv", tile=8), tmp_path / "a", workers=1)
    build(_planned(tmp_path, masks="masks/{well}_s{field}.tif", tile=8), tmp_path / "b", workers=1)
    a, b = bie_stream.open(tmp_path / "a"), bie_stream.open(tmp_path / "b")
    assert a.table["key"].to_pylist() == b.table["key"].to_pylist()
    assert a.table["crc32c"].to_pylist() == b.table["crc32c"].to_pylist()


def test_a_field_without_a_mask_is_rejected_and_one_without_objects_has_no_samples(
    tmp_path: Path, cells: dict[tuple[str, int], np.ndarray]
) -> None:
    (tmp_path / "masks/A1_s1.tif").unlink()
    plan = _planned(tmp_path, masks="masks/{well}_s{field}.tif", tile=8)
    assert describe(plan, "")["fields without a mask"] == 1
    with pytest.raises(SourceError, match=r"well A1 field 1 .* has no mask"):
        build(plan, tmp_path / "out", workers=1)
    assert build(plan, tmp_path / "out", workers=1, max_rejects=1).rejected == 1
    lines = (tmp_path / "cells.csv").read_text().splitlines(keepends=True)
    (tmp_path / "cells.csv").write_text("".join(line for line in lines if not line.startswith("A1,1,")))
    plan = _planned(tmp_path, objects="cells.csv", tile=8)
    assert (plan.fields, describe(plan, "")["fields without objects"]) == (5, 1)


def test_objects_are_part_of_the_name_of_a_build(tmp_path: Path, cells: dict[tuple[str, int], np.ndarray]) -> None:
    first = _planned(tmp_path, objects="cells.csv", tile=8)
    assert _planned(tmp_path, objects="cells.csv", tile=8).sha256 == first.sha256
    table = (tmp_path / "cells.csv").read_text()
    for old, new in ((",G,", ",M,"), ("A1,1,1,", "A1,1,4,")):
        (tmp_path / "cells.csv").write_text(table.replace(old, new, 1))
        assert _planned(tmp_path, objects="cells.csv", tile=8).sha256 != first.sha256
    assert _planned(tmp_path, masks="masks/{well}_s{field}.tif", tile=8).sha256 != first.sha256


def test_objects_that_cannot_be_used_are_refused(tmp_path: Path, cells: dict[tuple[str, int], np.ndarray]) -> None:
    with pytest.raises(SourceError, match="give --tile"):
        _planned(tmp_path, objects="cells.csv")
    with pytest.raises(SourceError, match="--objects or --masks"):
        _planned(tmp_path, objects="cells.csv", masks="masks/{well}_s{field}.tif", tile=8)
    (tmp_path / "wells.csv").write_text("well,phase\nA1,x\nA2,y\nB1,z\n")
    with pytest.raises(SourceError, match="label 'phase' is in the table of wells and in that of objects"):
        _planned(tmp_path, objects="cells.csv", tile=8)


def test_background_is_left_out_by_the_stated_rule_and_counted(
    tmp_path: Path, write_archive: Callable[..., Any]
) -> None:
    written = write_archive(tmp_path / "raw", wells=("A01",), fields=2, channels=2, shape=(24, 36))
    for field in (1, 2):
        dim = written["A01", field, 1] // 100
        dim[:12, :12] += 2000 * (field == 1)
        tifffile.imwrite(tmp_path / "raw" / f"A01_s{field}_w1.tif", dim, metadata=None)
    archive = find(str(tmp_path / "raw"), Request(pattern=PATTERN))
    plan = make_plan(archive, Options(tile=12, min_signal={"1": 1500.0}), *probe(archive))
    manifest = build(plan, tmp_path / "out", workers=1)
    rows = bie_stream.open(tmp_path / "out").table.to_pylist()
    assert [(row["field"], row["top"], row["left"]) for row in rows] == [("1", 0, 0)]
    assert (manifest.samples, manifest.left_out) == (1, {"background": 11})
    assert sum(manifest.splits.values()) == 1
    with pytest.raises(SourceError, match=r"there is no sample; left out: 12 background"):
        build(replace(plan, levels={0: 60_000.0}, sha256="0" * 64), tmp_path / "none", workers=1)
    with pytest.raises(SourceError, match="no channel 'DNA'"):
        make_plan(archive, Options(min_signal={"DNA": 1.0}), *probe(archive))


def test_binned_fields_are_means_and_what_was_done_is_recorded(tmp_path: Path, raw: Path) -> None:
    archive = replace(find(str(raw), Request(pattern=PATTERN)), pixel_size_um=0.5)
    build(make_plan(archive, Options(), *probe(archive)), tmp_path / "whole", workers=1)
    build(make_plan(archive, Options(bin=2, tile=3), *probe(archive)), tmp_path / "half", workers=1)
    whole, half = bie_stream.open(tmp_path / "whole"), bie_stream.open(tmp_path / "half")
    assert (half.manifest.pixel_size_um, half.manifest.options["bin"]) == (1.0, 2)
    places = {(row["well"], row["field"]): number for number, row in enumerate(whole.table.to_pylist())}
    for number, row in enumerate(half.table.to_pylist()):
        field = whole[places[row["well"], row["field"]]].astype(np.float64)
        means = np.floor(field.reshape(2, 6, 2, 8, 2).mean(axis=(2, 4)) + 0.5)
        top, left = row["top"], row["left"]
        np.testing.assert_array_equal(half[number], means[:, top : top + 3, left : left + 3])


def test_objects_stay_where_they_are_when_fields_are_binned(
    tmp_path: Path, cells: dict[tuple[str, int], np.ndarray]
) -> None:
    for field in FIELDS:
        spot = np.zeros(SHAPE, np.uint16)
        mask = tifffile.imread(tmp_path / "masks" / f"{field[0]}_s{field[1]}.tif")
        spot[mask == 1] = 1000
        tifffile.imwrite(tmp_path / "raw" / f"{field[0][0]}0{field[0][1]}_s{field[1]}_w1.tif", spot, metadata=None)
    build(_planned(tmp_path, objects="cells.csv", tile=5, bin=2), tmp_path / "out", workers=1)
    dataset = bie_stream.open(tmp_path / "out")
    ones = [n for n, number in enumerate(dataset.table["object"].to_pylist()) if number == 1]
    assert ones
    for number in ones:
        image = dataset[number][0].astype(np.float64)
        if image.sum() == 4000:  # not covered by another object
            y, x = (float((image.sum(axis=1 - axis) * np.arange(5)).sum() / image.sum()) for axis in (0, 1))
            assert max(abs(y - 2), abs(x - 2)) <= 0.5


def test_the_commands_say_what_was_cut_and_left_out(
    tmp_path: Path, cells: dict[tuple[str, int], np.ndarray], shardgen: Callable[..., Any]
) -> None:
    said = ["--pattern", PATTERN, "--objects", tmp_path / "cells.csv", "--tile", "12"]
    planned = shardgen("plan", tmp_path / "raw", *said)
    assert planned.returncode == 0, planned.stderr
    built = shardgen("build", tmp_path / "raw", *said, "--out", tmp_path / "out", "--min-signal", "1=0")
    assert built.returncode == 0, built.stderr
    manifest = read_manifest(tmp_path / "out")
    assert f"samples                      {manifest.samples}" in planned.stdout
    assert f", {manifest.left_out['edge']} left out (edge), " in built.stdout
    assert f"{manifest.left_out['edge']} edge" in shardgen("info", tmp_path / "out").stdout
    assert manifest.options["objects"] == "cells.csv"
    failed = shardgen("plan", tmp_path / "raw", *said[:2], "--objects", tmp_path / "none.csv", "--tile", "12")
    assert failed.returncode == 1
    assert failed.stderr == f"error: --objects {tmp_path / 'none.csv'} is not there\n"

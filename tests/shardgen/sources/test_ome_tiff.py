from pathlib import Path

import numpy as np
import pytest
import tifffile

from bie_stream.errors import SourceError
from shardgen.archive import Archive
from shardgen.files import open_files
from shardgen.pixels import probe, read_field
from shardgen.sources import ome_tiff, tiff_folder

GREY = {"photometric": "minisblack"}
PIXELS = np.random.default_rng(0).integers(0, 60000, (2, 3, 4, 20, 24), dtype=np.uint16)


def archive(root: Path, pattern: str = "{well}.ome.tif") -> Archive:
    files = open_files(root)
    layout = ome_tiff.expand(files, tiff_folder.find(files, pattern, plate="p"))
    return Archive(files=files, study="s", source="s", channels=layout.channels, fields=layout.fields)


@pytest.mark.parametrize("axes", ["TCZYX", "ZTCYX", "CTZYX"])
def test_every_plane_of_an_ome_tiff_is_found_whatever_the_order_of_its_axes(tmp_path: Path, axes: str) -> None:
    order = ["TCZYX".index(axis) for axis in axes]
    names = {"axes": axes, "Channel": {"Name": ["DNA", "Actin", "Mito"]}}
    for well, offset in (("A1", 0), ("B2", 1)):
        tifffile.imwrite(tmp_path / f"{well}.ome.tif", (PIXELS + offset).transpose(order), **GREY, metadata=names)
    found = archive(tmp_path)
    assert [channel.name for channel in found.channels] == ["DNA", "Actin", "Mito"]
    assert [(f.well, f.t, f.z) for f in found.fields] == [
        (w, t, z) for w in ("A1", "B2") for t in range(2) for z in range(4)
    ]
    assert probe(found) == ("uint16", (20, 24))
    for field in found.fields:
        pixels = read_field(found, field, "uint16", (20, 24))
        np.testing.assert_array_equal(pixels, PIXELS[field.t, :, field.z] + (field.well == "B2"))


def test_an_imagej_stack_says_its_axes_too(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "A1.tif", PIXELS[0].transpose(1, 0, 2, 3), imagej=True, metadata={"axes": "ZCYX"})
    found = archive(tmp_path, "{well}.tif")
    assert [channel.name for channel in found.channels] == ["c0", "c1", "c2"]
    np.testing.assert_array_equal(read_field(found, found.fields[2], "uint16", (20, 24)), PIXELS[0, :, 2])


def test_files_of_one_page_stay_as_they_are(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "A1_w1.tif", PIXELS[0, 0, 0])
    files = open_files(tmp_path)
    layout = tiff_folder.find(files, "{well}_w{channel}.tif")
    assert ome_tiff.expand(files, layout) == layout


def test_every_page_knows_the_size_of_its_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "A1.ome.tif", PIXELS[0, :, 0], **GREY, metadata={"axes": "CYX"})
    files = open_files(tmp_path)
    layout = ome_tiff.expand(files, tiff_folder.find(files, "{well}.ome.tif", listed={"A1.ome.tif": 7}))
    assert [(plane.index, plane.file_bytes) for (plane,) in layout.fields[0].planes] == [((c,), 7) for c in range(3)]


def test_pages_that_nothing_explains_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "A1.tif", PIXELS[0, 0], **GREY, metadata=None)
    with pytest.raises(SourceError, match=r"4 pages as I 4; expected all of C, Z or T"):
        archive(tmp_path, "{well}.tif")


def test_a_pattern_and_a_file_that_both_name_channels_are_refused(tmp_path: Path) -> None:
    for channel in (1, 2):
        tifffile.imwrite(tmp_path / f"A1_w{channel}.ome.tif", PIXELS[0, :, 0], **GREY, metadata={"axes": "CYX"})
    with pytest.raises(SourceError, match="one or the other should"):
        archive(tmp_path, "{well}_w{channel}.ome.tif")


def test_a_file_with_fewer_pages_than_the_first_is_an_error_that_names_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "A1.ome.tif", PIXELS[0, :, 0], **GREY, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "A2.ome.tif", PIXELS[0, :2, 0], **GREY, metadata={"axes": "CYX"})
    found = archive(tmp_path)
    with pytest.raises(SourceError, match=r"A2.ome.tif has 2 pages, no page 2"):
        read_field(found, found.fields[1], "uint16", (20, 24))

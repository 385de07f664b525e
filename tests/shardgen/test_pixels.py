from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from bie_stream.errors import SourceError
from shardgen.archive import Plane
from shardgen.files import open_files
from shardgen.pixels import read_plane


@pytest.mark.parametrize(
    "how",
    [
        {}, {"rowsperstrip": 7}, {"byteorder": ">"}, {"bigtiff": True}, {"software": "odd number of bytes"},
        {"tile": (16, 16)}, {"tile": (32, 48), "byteorder": ">"},
        {"compression": "zlib"}, {"compression": "zlib", "predictor": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_way_to_store_a_plane_gives_what_tifffile_reads(tmp_path: Path, how: dict[str, Any], dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (40, 50)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **how)
    out = np.zeros_like(pixels)
    read_plane(open_files(tmp_path), Plane("a.tif"), "tiff", out)
    np.testing.assert_array_equal(out, tifffile.imread(tmp_path / "a.tif"))
    np.testing.assert_array_equal(out, pixels)


def test_strips_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (40, 50), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=20, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        offsets = tif.pages[0].tags["StripOffsets"]
        offsets.overwrite(offsets.value[::-1])
    out = np.zeros_like(pixels)
    read_plane(open_files(tmp_path), Plane("a.tif"), "tiff", out)
    np.testing.assert_array_equal(out, np.concatenate([pixels[20:], pixels[:20]]))


@pytest.mark.parametrize("counts", [1000, 8000])
def test_a_strip_of_another_size_than_its_pixels_is_never_half_a_plane(tmp_path: Path, counts: int) -> None:
    pixels = np.random.default_rng(0).integers(1, 60000, (40, 50), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None)
    with (tmp_path / "a.tif").open("ab") as file:
        file.write(b"\1" * 10_000)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        tif.pages[0].tags["StripByteCounts"].overwrite(counts)
    out = np.zeros_like(pixels)
    if counts < pixels.nbytes:
        with pytest.raises(SourceError, match="damaged"):
            read_plane(open_files(tmp_path), Plane("a.tif"), "tiff", out)
    else:
        read_plane(open_files(tmp_path), Plane("a.tif"), "tiff", out)
        np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint16)])
def test_a_plane_of_another_form_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None)
    with pytest.raises(SourceError, match=r"a.tif is uint.* the archive's first plane is uint16 \(4, 5\)"):
        read_plane(open_files(tmp_path), Plane("a.tif"), "tiff", np.zeros((4, 5), np.uint16))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    pixels = np.ones((4, 5), np.float32)
    pixels[1, 2] = value
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None)
    with pytest.raises(SourceError, match=r"a\.tif has 1 pixels that are NaN or infinite"):
        read_plane(open_files(tmp_path), Plane("a.tif"), "tiff", np.zeros((4, 5), np.float32))

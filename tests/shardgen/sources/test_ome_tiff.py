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
    with pytest.raises(SourceError, match=r"A2.ome.tif has no page 2"):
        read_field(found, found.fields[1], "uint16", (20, 24))


def described(path: Path, text: str, pages: int = 3) -> None:
    """A TIFF of plain pages whose first one says this of all."""
    with tifffile.TiffWriter(path) as writer:
        for number in range(pages):
            writer.write(PIXELS[0, 0, number], **GREY, metadata=None, description=None if number else text)


def ome(z: object = 3, channel: str = "DNA", head: str = "", data: str = "<TiffData/>", **more: object) -> str:
    sizes = " ".join(
        f'Size{axis}="{size}"' for axis, size in {"X": 24, "Y": 20, "Z": z, "C": 1, "T": 1, **more}.items()
    )
    return (
        f'<?xml version="1.0"?>{head}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {sizes}>'
        f'<Channel ID="Channel:0" Name="{channel}"/>{data}</Pixels></Image></OME>'
    )


def test_a_description_that_others_wrote_is_read(tmp_path: Path) -> None:
    described(tmp_path / "A1.ome.tif", ome())
    found = archive(tmp_path)
    assert [channel.name for channel in found.channels] == ["DNA"]
    assert [field.z for field in found.fields] == [0, 1, 2]


@pytest.mark.parametrize(
    "data",
    [
        '<TiffData IFD="0" FirstZ="2"/><TiffData IFD="1" FirstZ="0"/><TiffData IFD="2" FirstZ="1"/>',
        '<TiffData IFD="1" PlaneCount="2"/><TiffData FirstZ="2" IFD="0"/>',
        '<TiffData IFD="1" PlaneCount="2"><UUID FileName="A1.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstZ="2" IFD="0"><UUID FileName="old.tif">urn:uuid:2</UUID></TiffData>',
    ],
)
def test_pages_may_be_in_another_order_than_planes(tmp_path: Path, data: str) -> None:
    described(tmp_path / "A1.ome.tif", ome(data=data).replace("<OME ", '<OME UUID="urn:uuid:2" '))
    found = archive(tmp_path)
    assert [field.planes[0][0].index for field in found.fields] == [(1,), (2,), (0,)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ome(T=10**6, C=10**6), "3 pages as T 1000000, C 1000000, Z 3; expected all of C, Z or T in this file"),
        (ome(z=10**10), "SizeZ is '10000000000'; expected a whole number"),
        (ome(z="9" * 5000), "SizeZ is"),
        (ome(z="-3"), "SizeZ is '-3'"),
        (ome(z=7), "3 pages as T 1, C 1, Z 7; expected all of C, Z or T in this file"),
        (ome(data='<TiffData IFD="0" PlaneCount="1"/>'), "3 pages as T 1, C 1, Z 3; expected all"),
        (ome(data='<TiffData IFD="0" PlaneCount="9999999999"/>'), "PlaneCount is '9999999999'"),
        (ome(data='<TiffData FirstZ="3"/>'), "FirstZ is '3'; expected a whole number, 0 to 2"),
        (ome(data="<TiffData/><TiffData/>"), "names plane 0 twice"),
        (ome(data='<TiffData><UUID FileName="other.tif">urn:uuid:1</UUID></TiffData>'), "3 pages as .* in this file"),
        (ome().replace("XYZCT", "XYZCZ"), "OME-XML without Image/Pixels and their DimensionOrder"),
        (ome(channel="&a;", head='<!DOCTYPE x [<!ENTITY a "DNA">]>'), "has a DOCTYPE"),
        (ome().replace("<TiffData/>", "<TiffData>"), "is not whole XML"),
    ],
)
def test_a_description_of_other_pages_is_refused(tmp_path: Path, text: str, said: str) -> None:
    described(tmp_path / "A1.ome.tif", text)
    with pytest.raises(SourceError, match=said):
        archive(tmp_path)


def test_many_planes_in_one_page_are_not_taken_for_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "A1.tif", PIXELS[0, 0], imagej=True, metadata={"axes": "ZYX"})
    data = bytearray((tmp_path / "A1.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "A1.tif") as tif:
        at, order = tif.pages.first.offset, "little" if tif.byteorder == "<" else "big"
    at += 2 + 12 * int.from_bytes(data[at : at + 2], order)  # type: ignore[arg-type]
    data[at : at + 4] = bytes(4)  # no next page, as ImageJ writes what is beyond 4 GiB
    (tmp_path / "A1.tif").write_bytes(data)
    with pytest.raises(SourceError, match=r"has 1 pages as Z 4; expected all of C, Z or T"):
        archive(tmp_path, "{well}.tif")

from pathlib import Path

import pytest
import tifffile
from archive_server import ArchiveServer
from command_line import ROOT

from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Field, Layout, Plane
from shardgen.files import Local, open_files
from shardgen.sources.imagexpress import find, there

REAL = ROOT.parent / "shared" / "data" / "hcs_layouts" / "ImageXpress_exported"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real layouts are not beside this checkout")

# Real names of idr0036: the wave is one digit, and then the GUID may begin with digits.
HOECHST = "IXMtest_A01_s1_w164FBEEF7-F77C-4892-86F5-72D0160D4FB2.tif"
ERSYTO = "IXMtest_A01_s1_w22CA7BDF3-1425-4AE6-8E57-9C004D6F7FF2.tif"
MITO = "IXMtest_A01_s1_w58DA6AF62-1799-4B85-BE17-744E12ADC245.tif"
# Real names of faim-ipa: one wave, and so none in the name; a projection; a thumbnail.
ONE_WAVE = "Projection-Mix_E08_s117654C10-92F1-4DFD-98AA-6A01BBD77557.tif"
THUMBNAIL = "Projection-Mix_E07_s1_w1_thumb187DE64B-038A-4671-BF6B-683721723769.tif"
BARE_THUMBNAIL = "exp126-d0_C03_thumbA6B0784C-19ED-4F35-9E6A-0A306794BB11.tif"

TABLE = (
    '"HTSInfoFile", Version 1.0\r\n"Description", "two\x81 lines"\r\n"WaveName1", "DAPI"\r\n"WaveName2", "TRITC"\r\n'
)


def touch(root: Path, *names: str) -> Local:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TABLE.encode("latin-1") if name.endswith(".HTD") else b"")
    return Local(str(root.resolve()))


def paths(field: Field) -> list[str | None]:
    return [planes[0].path if planes else None for planes in field.planes]


def on_disk(plate: str, *folders: str) -> set[str]:
    """What the folders hold, below the data's root."""
    return {str(p.relative_to(REAL)) for folder in folders for p in (REAL / plate / folder).glob("*.TIF")}


def planes(layout: Layout) -> set[str]:
    return {plane.path for field in layout.fields for planes in field.planes for plane in planes}


@real
def test_a_real_plate_of_one_site_and_one_wave_has_one_field() -> None:
    layout = find(open_files(REAL), "9987_Plate_3420", "3420")
    plane = Plane("9987_Plate_3420/TimePoint_1/9987_B02.TIF")
    assert layout.fields == (Field("3420", "B2", "1", 0, 0, ((plane,),)),)
    assert [c.name for c in layout.channels] == ["DAPI"]


@real
def test_a_real_stack_has_its_steps_and_not_their_maximum() -> None:
    layout = find(open_files(REAL), "9987_Plate_3434", "3434")
    assert planes(layout) == on_disk("9987_Plate_3434", "TimePoint_1/ZStep_1", "TimePoint_1/ZStep_2")
    assert [(f.well, f.field, f.z, f.t) for f in layout.fields] == [
        (well, site, z, 0) for well in ("B2", "B3") for site in ("1", "2") for z in (0, 1)
    ]
    assert [c.name for c in layout.channels] == ["DAPI", "FITC", "Texas Red"]  # no file is of its fourth, Cy5


@real
def test_the_real_step_zero_is_the_maximum_of_the_others() -> None:
    steps = [REAL / f"9987_Plate_3434/TimePoint_1/ZStep_{z}/9987_B02_s1_w1.TIF" for z in (0, 1, 2)]
    maximum, first, second = (tifffile.imread(path) for path in steps)
    assert (maximum >= first).all()  # not equal: the archive holds two of its three steps
    assert (maximum >= second).all()


@real
def test_real_time_points_are_counted_from_zero() -> None:
    layout = find(open_files(REAL), "9987_Plate_3435", "3435")
    assert planes(layout) == on_disk("9987_Plate_3435", "TimePoint_1", "TimePoint_2")
    assert [(f.well, f.field, f.t) for f in layout.fields] == [
        (well, site, t) for well in ("B2", "B3") for site in ("1", "2") for t in (0, 1)
    ]
    last = "9987_Plate_3435/TimePoint_2/9987_B03_s2_w"
    assert paths(layout.fields[-1]) == [f"{last}1.TIF", f"{last}2.TIF"]


@real
def test_the_folder_of_one_real_time_point_is_a_plate_too() -> None:
    layout = find(open_files(REAL), "9987_Plate_3435/TimePoint_2", "3435")
    assert planes(layout) == on_disk("9987_Plate_3435", "TimePoint_2")
    assert {f.t for f in layout.fields} == {1}
    assert [c.name for c in layout.channels] == ["DAPI", "FITC"]


def test_a_plate_as_idr0006_has_it_is_found(tmp_path: Path) -> None:
    folder = "11001-11089/plate 11001_Plate_136/TimePoint_1"
    names = [f"plate 11001_{well}_s{s}_w{w}.TIF" for well in ("H12", "B02") for s in (10, 9) for w in (2, 1)]
    thumbs = [name.replace(".TIF", "_thumb.TIF") for name in names]
    files = touch(tmp_path, *(f"{folder}/{name}" for name in [*names, *thumbs, "plate 11001.HTD"]))
    layout = find(files, folder, "11001")
    assert [c.name for c in layout.channels] == ["DAPI", "TRITC"]
    assert [(f.plate, f.well, f.field) for f in layout.fields] == [
        ("11001", "B2", "9"), ("11001", "B2", "10"), ("11001", "H12", "9"), ("11001", "H12", "10"),
    ]  # fmt: skip
    assert planes(layout) == {f"{folder}/{name}" for name in names}


def test_one_digit_before_the_guid_is_the_wave(tmp_path: Path) -> None:
    layout = find(touch(tmp_path, MITO, ERSYTO, HOECHST), "", "20585")
    assert [c.name for c in layout.channels] == ["1", "2", "5"]
    assert [paths(field) for field in layout.fields] == [[HOECHST, ERSYTO, MITO]]


def test_digits_before_the_guid_are_the_site_where_there_is_no_wave(tmp_path: Path) -> None:
    layout = find(touch(tmp_path, ONE_WAVE), "", "p")
    assert layout.fields == (Field("p", "E8", "1", 0, 0, ((Plane(ONE_WAVE),),)),)


def test_thumbnails_are_left_alone(tmp_path: Path) -> None:
    files = touch(tmp_path, THUMBNAIL, BARE_THUMBNAIL, "9987_B02_s1_w1_thumb.TIF", ONE_WAVE)
    assert planes(find(files, "", "p")) == {ONE_WAVE}


def test_what_lies_beside_the_steps_is_left_out_and_a_missing_step_is_a_gap(tmp_path: Path) -> None:
    guid = "-0000-0000-0000-000000000000.tif"
    kept = [f"ZStep_1/M_E07_s1_w10000000A{guid}", f"ZStep_2/M_E07_s1_w10000000B{guid}"]
    once = f"ZStep_1/M_E07_s1_w40000000C{guid}"
    maxima = [f"M_E07_s1_w10000000D{guid}", f"M_E07_s1_w30000000E{guid}"]
    layout = find(touch(tmp_path, *kept, once, *maxima), "", "p")
    assert [c.name for c in layout.channels] == ["1", "4"]
    assert [(f.z, paths(f)) for f in layout.fields] == [(0, [kept[0], once]), (1, [kept[1], None])]


def test_step_zero_alone_is_the_image(tmp_path: Path) -> None:
    name = "TimePoint_1/ZStep_0/p_B02_w1.TIF"
    assert find(touch(tmp_path, name), "", "p").fields == (Field("p", "B2", "1", 0, 0, ((Plane(name),),)),)


def test_steps_are_sorted_as_numbers(tmp_path: Path) -> None:
    layout = find(touch(tmp_path, *(f"ZStep_{z}/p_B02.tif" for z in (10, 9, 1))), "", "p")
    assert [f.z for f in layout.fields] == [0, 8, 9]


def test_wave_names_come_from_the_table_of_the_images_name(tmp_path: Path) -> None:
    files = touch(tmp_path, "b_B02_w1.TIF", "b_B02_w2.TIF", "b.HTD")
    (tmp_path / "a.HTD").write_text('"WaveName1", "GFP"\n')
    assert [c.name for c in find(files, "", "p").channels] == ["DAPI", "TRITC"]
    (tmp_path / "b.HTD").rename(tmp_path / "c.htd")
    assert [c.name for c in find(files, "", "p").channels] == ["GFP", "2"]


def test_other_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    others = ["old/p_B02_s1_w1.TIF", "p_B02_s1_w1.png", "overview.tif", "TimePoint_1x/p_B02_s1_w1.TIF"]
    assert planes(find(touch(tmp_path, "p_B02_s1_w1.TIF", *others), "", "p")) == {"p_B02_s1_w1.TIF"}


def test_numbers_that_no_instrument_counts_to_are_no_numbers() -> None:
    digits = "9" * 5000  # as a server may list them; Python makes no number of so many
    names = [f"TimePoint_{digits}/", f"ZStep_{digits}/"]
    names += [f"p_A01_s{digits}.tif", f"p_A01_w{digits}.tif", f"p_A01_w{digits}{HOECHST[-40:]}"]
    assert not there(names)
    tree = dict.fromkeys((f"/top/{name}" for name in names), b"")
    with ArchiveServer(tree) as server, pytest.raises(SourceError, match="holds no image of MetaXpress"):
        find(open_files(f"{server.url}/top"), "", "p")


def test_two_files_for_one_plane_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a_B02_s1_w1.TIF and b_B02_s1_w1.TIF are both plate p well B2 field 1"):
        find(touch(tmp_path, "a_B02_s1_w1.TIF", "b_B02_s1_w1.TIF"), "", "p")


def test_a_folder_without_such_images_is_an_error_and_none_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"plate holds no image of MetaXpress; expected names as plate_B02_s1_w1\.TIF"
    ):
        find(touch(tmp_path, "plate/p.HTD", "plate/image.tif"), "plate", "p")
    with pytest.raises(SourceMissing):
        find(touch(tmp_path), "nowhere", "p")


def test_the_layout_is_told_by_table_time_point_or_guid_and_not_by_a_common_name() -> None:
    for name in ("plate 11001.HTD", "TimePoint_1/", "ZStep_1/", HOECHST, ONE_WAVE):
        assert there(["notes.txt", name])
    assert not there(["plate_B02_s1_w1.tif", "A01_s1_w1.tif", "MeasurementData.mlf", "ZStep_1", THUMBNAIL])

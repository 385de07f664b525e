from pathlib import Path

import pytest

from bie_stream.errors import SourceError
from shardgen.archive import Plane
from shardgen.files import Files, open_files
from shardgen.sources.tiff_folder import compile_pattern, find


def touch(root: Path, *names: str) -> Files:
    root.mkdir(exist_ok=True)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return open_files(root)


def test_plate_well_field_and_channel_come_from_the_path(tmp_path: Path) -> None:
    names = [f"p{p}/{w}_s{s}_w{c}.tif" for p in (10, 9) for w in ("B01", "A12") for s in (10, 9) for c in (2, 1)]
    archive = find(touch(tmp_path / "raw", *names), "{plate}/{well}_s{field}_w{channel}.tif")
    assert [c.name for c in archive.channels] == ["1", "2"]
    found = [(f.plate, f.well, f.field, f.z, f.t) for f in archive.fields]
    assert found == [(f"p{p}", w, str(s), 0, 0) for p in (9, 10) for w in ("A12", "B1") for s in (9, 10)]
    assert archive.fields[0].planes == ((Plane("p9/A12_s9_w1.tif"),), (Plane("p9/A12_s9_w2.tif"),))


def test_row_and_column_make_a_well_and_a_star_is_any_text(tmp_path: Path) -> None:
    raw = touch(tmp_path / "raw", "deep/Channel1-07-C-04.tif", "deep/Channel2-08-C-04.tif")
    archive = find(raw, "Channel{channel}-{*}-{row}-{column}.tif")
    (field,) = archive.fields
    assert (field.plate, field.well, field.field) == ("", "C4", "1")
    assert field.planes == ((Plane("deep/Channel1-07-C-04.tif"),), (Plane("deep/Channel2-08-C-04.tif"),))


def test_z_and_t_are_numbers_and_the_plate_can_be_given(tmp_path: Path) -> None:
    raw = touch(tmp_path / "raw", "A1_t2_z03.TIFF", "A1_t10_z01.TIFF")
    archive = find(raw, "{well}_t{t}_z{z}.TIFF", plate="mine")
    assert [(f.plate, f.t, f.z) for f in archive.fields] == [("mine", 2, 3), ("mine", 10, 1)]


def test_a_plane_that_is_not_there_is_empty(tmp_path: Path) -> None:
    archive = find(touch(tmp_path / "raw", "A1_w1.tif", "A1_w3.tif", "A2_w3.tif"), "{well}_w{channel}.tif")
    assert {f.well: f.planes for f in archive.fields} == {
        "A1": ((Plane("A1_w1.tif"),), (Plane("A1_w3.tif"),)),
        "A2": ((), (Plane("A2_w3.tif"),)),
    }


def test_files_are_chosen_from_those_that_are_listed_and_keep_their_sizes(tmp_path: Path) -> None:
    listed = {"deep/B2.tif": 7, "deep/B4.tif": None, "B3.png": 8}
    archive = find(touch(tmp_path / "raw", "A1.tif"), "{well}.tif", listed=listed)
    assert [f.planes for f in archive.fields] == [((Plane("deep/B2.tif"),),), ((Plane("deep/B4.tif"),),)]
    assert [f.planes[0][0].file_bytes for f in archive.fields] == [7, None]


def test_characters_of_a_pattern_stand_for_themselves() -> None:
    assert compile_pattern("a.b+{well}(x).tif").fullmatch("a.b+C3(x).tif")
    assert not compile_pattern("a.b+{well}.tif").fullmatch("axbb+C3.tif")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{wel}_w1.tif", "{wel} is not a placeholder; did you mean 'well'"),
        ("{well}_{well}.tif", "{well} is there twice"),
        ("{row}_s{field}.tif", "does not tell the well"),
        ("", "does not tell the well"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        compile_pattern(pattern)
    assert said in str(caught.value)


def test_a_pattern_that_matches_nothing_is_answered_with_an_example(tmp_path: Path) -> None:
    raw = touch(tmp_path / "raw", "A01-1.tif", "A02-1.tif")
    with pytest.raises(SourceError, match=r"matches none of 2 TIFF files.*'A02-1.tif'"):
        find(raw, "{well}_w{channel}.tif")


def test_a_folder_without_tiffs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no TIFF"):
        find(touch(tmp_path / "raw", "A1.png"), "{well}.tif")
    with pytest.raises(SourceError, match="is not there"):
        find(open_files(tmp_path / "absent"), "{well}.tif")


def test_two_files_for_one_plane_are_refused(tmp_path: Path) -> None:
    raw = touch(tmp_path / "raw", "A1_w1.tif", "A01_w1.tif")
    with pytest.raises(SourceError, match=r"A01_w1.tif and A1_w1.tif are both plate p well A1"):
        find(raw, "{well}_w{channel}.tif", plate="p")


@pytest.mark.parametrize("z", ["99999999999", "9" * 200, "9" * 5000])
def test_slices_that_no_instrument_counts_to_are_refused(tmp_path: Path, z: str) -> None:
    assert [f.z for f in find(open_files(tmp_path), "{well}_z{z}.tif", listed={"A1_z000000000012.tif": 1}).fields] == [
        12
    ]
    with pytest.raises(SourceError, match=r"z is '9+'; expected a whole number|a name of more than 255 characters"):
        find(open_files(tmp_path), "{well}_z{z}.tif", listed={f"A1_z{z}.tif": 1})


def test_names_that_no_file_can_have_are_refused_at_once(tmp_path: Path) -> None:
    long = "x_" * 150  # to match one that is much longer would take hours
    with pytest.raises(SourceError, match=r"A1_x_.*_B\.tif' has a name of more than 255 characters"):
        find(open_files(tmp_path), "{*}_{well}_{plate}_{channel}_{field}.tif", listed={f"A1_{long}B.tif": 1})

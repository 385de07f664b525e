import csv

import pytest
from command_line import ROOT

from bie_stream.errors import SourceError
from shardgen.archive import Field, Plane, split_well
from shardgen.sources import screen
from shardgen.sources.screen import parse

STUDY = ROOT.parent / "shared" / "data" / "idr_metadata" / "idr0036"
real = pytest.mark.skipif(not STUDY.is_dir(), reason="the metadata of idr0036 are not beside this checkout")
PREFIX = "/uod/idr/filesets/"
PLATE = "[Plate]\nName = other\nRows = 16\nColumns = 24\nFields = 9\n"


def well(*fields: str, k: int = 0, **changes: str) -> str:
    """A section with two channels; a change to "-" leaves the line out."""
    values = {"Row": "0", "Column": "0", "AxisTypes": "C", "ChannelNames": "DNA,Actin"} | changes
    lines = [f"{key} = {value}" for key, value in values.items() if value != "-"]
    return "\n".join([f"\n[Well {k}]", *lines, *fields, ""])


def layout(*sections: str, plate: str = PLATE) -> tuple[list[str], tuple[Field, ...]]:
    read = parse(plate + "".join(sections), "p", "p.screen", PREFIX)
    return [channel.name for channel in read.channels], read.fields


@real
@pytest.mark.parametrize("plate", ["20585", "20646"])
def test_a_real_plate_has_every_field_of_every_well(plate: str) -> None:
    text = (STUDY / "screens" / f"{plate}.screen").read_text()
    read = parse(text, plate, "it", PREFIX)
    assert [c.name for c in read.channels] == ["ERSyto", "ERSytoBleed", "Hoechst", "Mito", "Ph_golgi"]
    with (STUDY / "screenA" / "idr0036-screenA-library.txt").open(newline="") as file:
        wells = {"".join(map(str, split_well(row["Well"]))) for row in csv.DictReader(file, delimiter="\t")}
    assert len(wells) == 384
    assert {f.well for f in read.fields} == wells
    assert [f.field for f in read.fields] == [str(i) for i in range(1, 10)] * 384  # 3456 files a channel: stats.txt


@real
def test_every_real_path_names_its_own_well_field_and_channel() -> None:
    read = parse((STUDY / "screens" / "20585.screen").read_text(), "20585", "it", PREFIX)
    waves = {"Hoechst": 1, "ERSyto": 2, "ERSytoBleed": 3, "Ph_golgi": 4, "Mito": 5}
    root = "idr0036-gustafsdottir-cellpainting/2016-01-19-screens-bbbc022/20585-"
    for field in read.fields:
        row, column = split_well(field.well)
        for channel, planes in zip(read.channels, field.planes, strict=True):
            (plane,) = planes
            name = f"IXMtest_{row}{column:02d}_s{field.field}_w{waves[channel.name]}"
            assert plane.path.startswith(f"{root}{channel.name}/{name}")
            assert plane.path.endswith(".tif")
            assert plane.index == ()
    first = "Hoechst/IXMtest_A01_s1_w164FBEEF7-F77C-4892-86F5-72D0160D4FB2.tif"  # as in the facts
    assert read.fields[0].planes[2] == (Plane(root + first),)


def test_rows_columns_and_fields_count_from_zero_in_the_file() -> None:
    assert layout(well(f"Field_8 = {PREFIX}s/a-<x,y/z>.tif", Row="15", Column="23")) == (
        ["DNA", "Actin"],
        (Field("p", "P24", "9", 0, 0, ((Plane("s/a-x.tif"),), (Plane("s/a-y/z.tif"),))),),
    )


def test_a_field_that_is_not_there_is_no_field() -> None:
    _, fields = layout(well(f"Field_0 = {PREFIX}<a,b>", f"Field_2 = {PREFIX}<c,d>"), well(k=1, Column="1"))
    assert [(f.well, f.field) for f in fields] == [("A1", "1"), ("A1", "3")]


def test_a_channel_that_another_well_lacks_is_a_gap_there() -> None:
    names, fields = layout(
        well(f"Field_0 = {PREFIX}<a,b>"),
        well(f"Field_0 = {PREFIX}<c,d>", k=1, Column="1", ChannelNames="Actin,Mito"),
    )
    assert names == ["DNA", "Actin", "Mito"]
    assert [f.planes for f in fields] == [((Plane("a"),), (Plane("b"),), ()), ((), (Plane("c"),), (Plane("d"),))]


def test_steps_and_times_are_axes_too() -> None:
    _, fields = layout(well(f"Field_0 = {PREFIX}z<1,2>c<x,y>t<5>", AxisTypes="ZCT"))
    assert [(f.z, f.t, f.planes) for f in fields] == [
        (z, 0, ((Plane(f"z{z + 1}cxt5"),), (Plane(f"z{z + 1}cyt5"),))) for z in (0, 1)
    ]


def test_one_channel_needs_neither_pattern_nor_name() -> None:
    names, fields = layout(well(f"Field_0 = {PREFIX}100% a;b#c=d.tif", AxisTypes="-", ChannelNames="-"))
    assert names == ["1"]
    assert fields[0].planes == ((Plane("100% a;b#c=d.tif"),),)


def test_a_small_file_cannot_stand_for_more_planes_than_a_plate_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "MOST_PLANES", 4)
    wells = [well(f"Field_0 = {PREFIX}{k}<a,b>", k=k, Column=str(k)) for k in range(3)]
    assert len(layout(*wells[:2])[1]) == 2
    with pytest.raises(SourceError, match=r"p\.screen stands for more than 4 planes"):
        layout(*wells)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (well(f"field_0 = {PREFIX}<a,b>"), "p.screen names no field; expected Field_0"),
        (well(f"Field_x = {PREFIX}<a,b>"), "p.screen [Well 0]: the number of a field is 'x'"),
        (well(f"Field_9 = {PREFIX}<a,b>"), "the number of a field is '9'; expected a whole number, 0 to 8"),
        (well(Row="-"), "p.screen [Well 0]: Row is missing"),
        (well(Row="16"), "p.screen [Well 0]: Row is '16'; expected a whole number, 0 to 15"),
        (well(Column="24"), "p.screen [Well 0]: Column is '24'"),
        (well(ChannelNames="a,a"), "ChannelNames is 'a,a'; expected a name for each, all different"),
        (well(f"Field_0 = {PREFIX}<a,b,c>"), "[Well 0] Field_0 names 3 channels, ChannelNames has 2"),
        (well(f"Field_0 = {PREFIX}a.tif"), "Field_0 has 0 pairs of <>, AxisTypes is 'C'"),
        (well(f"Field_0 = {PREFIX}<a,b><c,d>", AxisTypes="CC"), "none twice"),
        (well(f"Field_0 = {PREFIX}<a,b>", AxisTypes="X"), "expected one of CZT for each"),
        (well(f"Field_0 = {PREFIX}<a,b", AxisTypes="-", ChannelNames="DNA"), "a < or > without its other half"),
        (well(f"Field_0 = {PREFIX}z<1-5>c<a,b>", AxisTypes="ZC"), "Field_0 has a range, as in <1-5>"),
        (well(f"Field_0 = {PREFIX}<{'z,' * 400}><{'t,' * 400}><a,b>", AxisTypes="ZTC"), "stands for 321602 planes"),
        (well("Field_0 = /etc/<passwd,shadow>"), "names '/etc/passwd'; expected a path below /uod/idr/filesets/"),
        (well(f"Field_0 = {PREFIX}<a,../b>"), "names the file '../b'; expected a path below its own folder"),
        (well(f"Field_0 = {PREFIX}/<a,b>"), "names the file '/a'"),
        (well(f"Field_0 = {PREFIX}<a,b\\c>"), "names the file"),
        (well(f"Field_0 = {PREFIX}<a,b>") * 2, "is not an INI file"),
        (well(f"Field_0 = {PREFIX}<a,b>") + well(f"Field_0 = {PREFIX}<c,d>", k=1), "a and c are both plate p well A1"),
        ("", "p.screen names no field"),
        ("no value\n", "p.screen is not an INI file"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(section: str, said: str) -> None:
    with pytest.raises(SourceError) as error:
        layout(section)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("plate", "said"),
    [
        ("[plate]\nRows = 1\n", r"has no section \[Plate\]; expected a .screen file of IDR"),
        ("[Plate]\nRows = 1\nColumns = 1\n", r"Fields of \[Plate\] is missing"),
        ("[Plate]\nrows = 1\nColumns = 1\nFields = 1\n", r"Rows of \[Plate\] is missing"),
        ("Rows = 1\n", "is not an INI file"),
    ],
)
def test_a_file_without_the_plates_size_is_refused(plate: str, said: str) -> None:
    with pytest.raises(SourceError, match=f"^p.screen:? {said}"):
        layout(well(f"Field_0 = {PREFIX}<a,b>"), plate=plate)

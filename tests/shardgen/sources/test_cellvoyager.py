import time
from pathlib import Path

import pytest
from command_line import ROOT

from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Field, Plane
from shardgen.files import Local, open_files
from shardgen.sources.cellvoyager import find, there

REAL = ROOT.parent / "shared" / "data" / "hcs_layouts" / "CV8000"
PLATE = "CV8000-Minimal-DataSet-2C-3W-4S-FP2-stack"
FOLDER = f"{PLATE}_20230918_135839/{PLATE}"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real layouts are not beside this checkout")

BTS = 'xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"'


def record(text: str = "a.tif", **changes: str) -> str:
    """A record as a CV8000 writes it; a change to "-" leaves the attribute out."""
    values = {
        "Type": "IMG", "Time": "2023-09-18T13:58:44.438+02:00", "Column": "8", "Row": "4", "TimePoint": "1",
        "FieldIndex": "1", "ZIndex": "1", "TimelineIndex": "1", "ActionIndex": "1", "Action": "3D", "X": "-567.1",
        "Y": "402.9", "Z": "0.0", "Ch": "1",
    } | changes  # fmt: skip
    attributes = " ".join(f'bts:{key}="{value}"' for key, value in values.items() if value != "-")
    return f"<bts:MeasurementRecord {attributes}>{text}</bts:MeasurementRecord>"


def channel(number: int, size: str = "0.325", vertical: str | None = None) -> str:
    return (
        f'<bts:MeasurementChannel bts:Ch="{number}" bts:HorizontalPixelDimension="{size}" '
        f'bts:VerticalPixelDimension="{vertical or size}" bts:InputBitDepth="16" />'
    )


def write(folder: Path, *records: str, channels: list[str] | None = None, wpi: str = "001.wpi") -> Local:
    folder.mkdir(parents=True, exist_ok=True)
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    data = f'{head}<bts:MeasurementData bts:Version="1.0" {BTS}>\n' + "\n".join(records) + "\n</bts:MeasurementData>"
    (folder / "MeasurementData.mlf").write_text(data, "utf-8-sig")
    if channels is not None:
        detail = f'{head}<bts:MeasurementDetail bts:Version="1.0" {BTS}>{"".join(channels)}</bts:MeasurementDetail>'
        (folder / "MeasurementDetail.mrf").write_text(detail, "utf-8-sig")
    (folder / wpi).write_text(f"{head}<bts:WellPlate {BTS} />", "utf-8-sig")
    return Local(str(folder.resolve()))


@real
def test_a_real_plate_has_its_three_wells_four_fields_four_steps_and_two_channels() -> None:
    layout = find(open_files(REAL), FOLDER, "plate")
    assert [(f.well, f.field, f.z, f.t) for f in layout.fields] == [
        (well, str(field), z, 0) for well in ("D8", "E3", "F8") for field in (1, 2, 3, 4) for z in range(4)
    ]
    assert [c.name for c in layout.channels] == ["1", "2"]  # of the four that the instrument lists
    assert layout.pixel_size_um == 0.325


@real
def test_every_real_image_is_in_its_place_and_corrections_are_in_none() -> None:
    layout = find(open_files(REAL), FOLDER, "plate")
    for field in layout.fields:
        for number, planes in enumerate(field.planes, start=1):
            well = f"{field.well[0]}{int(field.well[1:]):02d}"
            place = f"T0001F{int(field.field):03d}L01A{number:02d}Z{field.z + 1:02d}C{number:02d}"
            assert planes == (Plane(f"{FOLDER}/{PLATE}_{well}_{place}.tif"),)
    named = {plane.path for field in layout.fields for planes in field.planes for plane in planes}
    there = {f"{FOLDER}/{path.name}" for path in (REAL / FOLDER).glob(f"{PLATE}_*.tif")}
    assert named == there
    assert len(there) == 96


def test_only_image_records_become_planes(tmp_path: Path) -> None:
    failed = '<bts:MeasurementRecord bts:Type="ERR" bts:Column="1" bts:Row="1" />'  # focus: no field, no file
    layout = find(write(tmp_path, failed, record(), record("x.tif", Type="ERR", Row="5")), "", "p")
    assert layout.fields == (Field("p", "D8", "1", 0, 0, ((Plane("a.tif"),),)),)


def test_rows_columns_steps_and_times_count_from_one(tmp_path: Path) -> None:
    last = record(Row="16", Column="24", FieldIndex="9", ZIndex="3", TimePoint="2")
    (field,) = find(write(tmp_path, last), "", "p").fields
    assert (field.well, field.field, field.z, field.t) == ("P24", "9", 2, 1)


def test_the_plate_is_found_whatever_its_wpi_is_called(tmp_path: Path) -> None:
    write(tmp_path / "05_batch" / "082", record("082_D08.tif"), wpi="No Response Detected.wpi")
    layout = find(Local(str(tmp_path)), "05_batch/082", "082")
    assert [(f.plate, f.planes) for f in layout.fields] == [("082", ((Plane("05_batch/082/082_D08.tif"),),))]


def test_a_channel_without_an_image_of_a_field_is_a_gap(tmp_path: Path) -> None:
    files = write(tmp_path, record("a.tif"), record("b.tif", Ch="4"), record("c.tif", Ch="4", FieldIndex="2"))
    layout = find(files, "", "p")
    assert [c.name for c in layout.channels] == ["1", "4"]
    assert [f.planes for f in layout.fields] == [((Plane("a.tif"),), (Plane("b.tif"),)), ((), (Plane("c.tif"),))]


def test_the_size_of_pixels_is_that_of_the_channels_with_images(tmp_path: Path) -> None:
    for channels, expected in (
        ([channel(1), channel(2, "0.65")], 0.325),
        ([channel(1), channel(3, "0.65")], None),
        ([channel(1, "0.325", "0.65"), channel(3)], None),
        ([channel(1, "0"), channel(3, "0")], None),
        (None, None),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        files = write(folder, record(), record("b.tif", Ch="3"), channels=channels)
        assert find(files, "", "p").pixel_size_um == expected


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (record(Row="-"), "MeasurementData.mlf, record 2: the row is missing"),
        (record(Type="-"), "record 2: Type is missing"),
        (record(ZIndex="0"), "record 2: ZIndex is '0'; expected a whole number"),
        (record(Column="H"), "record 2: the column is 'H'"),
        (record(FieldIndex="1.5"), "record 2: FieldIndex is '1.5'"),
        (record(Ch=""), "record 2: Ch is ''"),
        (record("../../etc/passwd"), "record 2 names the file '../../etc/passwd'"),
        (record("/etc/passwd"), "record 2 names the file"),
        (record("other\\b.tif"), "record 2 names the file"),
        (record("other/b.tif"), "record 2 names the file 'other/b.tif'; expected a name in its own folder"),
        (record(""), "record 2 names the file ''"),
        (record("b.tif"), "a.tif and b.tif are both plate p well D8 field 1 z 0 t 0 channel 1"),
    ],
)
def test_a_damaged_record_is_named_with_its_fault(tmp_path: Path, damaged: str, said: str) -> None:
    with pytest.raises(SourceError) as error:
        find(write(tmp_path, record(), damaged), "", "p")
    assert said in str(error.value)


def test_a_measurement_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"MeasurementData.mlf has no record of an image \(Type IMG\)"):
        find(write(tmp_path, record(Type="ERR")), "", "p")


@pytest.mark.parametrize("data", ["<a/>", "<bts:Other/>", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "<a", ""])
@pytest.mark.parametrize("name", ["MeasurementData.mlf", "MeasurementDetail.mrf"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, data: str) -> None:
    files = write(tmp_path, record(), channels=[channel(1)])
    (tmp_path / name).write_text(data)
    with pytest.raises(SourceError, match=f"^{name} "):
        find(files, "", "p")


def test_a_channel_of_the_detail_without_a_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"MeasurementDetail.mrf: HorizontalPixelDimension is 'wide'"):
        find(write(tmp_path, record(), channels=[channel(1, "wide")]), "", "p")
    with pytest.raises(SourceError, match=r"MeasurementDetail.mrf: Ch is missing"):
        find(write(tmp_path, record(), channels=["<bts:MeasurementChannel/>"]), "", "p")


def test_a_folder_without_records_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match=r"MeasurementData.mlf is not there"):
        find(Local(str(tmp_path)), "", "p")


def test_a_whole_plate_of_384_wells_is_read_in_seconds(tmp_path: Path) -> None:
    files = write(tmp_path, *(
        record(f"{row}-{column}-{field}-{ch}.tif", Row=str(row), Column=str(column), FieldIndex=str(field), Ch=str(ch))
        for row in range(1, 17) for column in range(1, 25) for field in range(1, 10) for ch in range(1, 10)
    ))  # fmt: skip
    start = time.process_time()
    layout = find(files, "", "p")
    assert len(layout.fields) == 384 * 9
    assert time.process_time() - start < 5  # about one here; a loop in a loop would take minutes


def test_the_layout_is_told_by_its_records() -> None:
    assert there(["001.wpi", "MeasurementData.mlf", "MeasurementDetail.mrf"])
    assert not there(["plate.HTD", "MeasurementIndex.ColumbusIDX.xml"])

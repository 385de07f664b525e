import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Field, Plane
from shardgen.files import Files, Local, open_files
from shardgen.sources.columbus import find, there

STAMPED = "2020-03-31T111336+0200[6690]"
PLATE = "SARS-CoV2[2454]/ESP0025769[6377]"


def image(url: str | None = "001001-1.tif", buffer: str | None = "0", **changes: str) -> str:
    """An image as Columbus writes it; a change to "-" leaves the element out."""
    values = {
        "Row": "1", "Col": "1", "FieldID": "1", "PlaneID": "1", "TimepointID": "1", "ChannelID": "1",
        "ChannelName": "cell body", "ChannelColor": "4287795858", "MainExcitationWavelength": "0",
        "MainEmissionWavelength": "0", "Unit": "m", "ImageResolutionX": "1.18E-06",
    } | changes  # fmt: skip
    unit = values.pop("Unit")
    number = "" if buffer is None else f' BufferNo="{buffer}"'
    parts = "" if url is None else f"<URL{number}>{url}</URL>"
    for key, value in values.items():
        attribute = f' Unit="{unit}"' if key == "ImageResolutionX" and unit != "-" else ""
        parts += "" if value == "-" else f"<{key}{attribute}>{value}</{key}>"
    return f'<Image Version="1"><id>i</id><State>Ok</State>{parts}</Image>'


def write_index(path: Path, *images: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8" ?><EvaluationInputData xmlns="http://www.perkinelmer.com/Columbus" '
        'Version="1"><User>u</User><Plates><Plate><PlateID>p</PlateID><PlateRows>8</PlateRows></Plate></Plates>'
        '<Wells><Well><id>227003</id><Row>1</Row><Col>1</Col><Image id="i" /></Well></Wells>'
        f"<Images>{''.join(images)}</Images></EvaluationInputData>"
    )


def write(folder: Path, *images: str, references: tuple[str, ...] = ("ImageIndex.ColumbusIDX.xml",)) -> Local:
    write_index(folder / "ImageIndex.ColumbusIDX.xml", *images)
    write_measurement(folder, *references)
    return Local(str(folder.resolve()))


def write_measurement(folder: Path, *references: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    named = "".join(f'<Reference Class="IMAGEINDEX">{name}</Reference>' for name in references)
    (folder / "MeasurementIndex.ColumbusIDX.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8" ?><ColumbusMeasurementIndex xmlns="http://www.perkinelmer.com/Columbus">'
        "<ScreenName>SARS-CoV2</ScreenName><PlateName>ESP0025769</PlateName><PlateType>96</PlateType>"
        f'<Measurement MeasurementID="6690">m</Measurement><PlateRows>8</PlateRows>{named}</ColumbusMeasurementIndex>'
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Files]:
    """A folder over HTTP, whose listings are pages with links."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield open_files(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def test_a_plate_as_idr0094_has_it_is_found_one_folder_further_down(tmp_path: Path) -> None:
    write(tmp_path / PLATE / STAMPED, image(), image("008012-9.tif", Row="8", Col="12", FieldID="9"))
    (tmp_path / PLATE / "notes").mkdir()
    layout = find(Local(str(tmp_path)), PLATE, "ESP0025769")
    assert layout.fields == (
        Field("ESP0025769", "A1", "1", 0, 0, ((Plane(f"{PLATE}/{STAMPED}/001001-1.tif", (0,)),),)),
        Field("ESP0025769", "H12", "9", 0, 0, ((Plane(f"{PLATE}/{STAMPED}/008012-9.tif", (0,)),),)),
    )
    (channel,) = layout.channels
    assert (channel.name, channel.excitation_nm, channel.emission_nm) == ("cell body", None, None)
    assert layout.pixel_size_um == 1.18


def test_brackets_and_plus_in_folders_are_found_over_http(tmp_path: Path, served: Files) -> None:
    write(tmp_path / PLATE / STAMPED, image())
    (field,) = find(served, PLATE, "p").fields
    assert field.planes == ((Plane(f"{PLATE}/{STAMPED}/001001-1.tif", (0,)),),)


def test_the_buffer_number_is_the_page_of_the_file(tmp_path: Path) -> None:
    pages = [
        image("227003.tif", str(2 * z + c), PlaneID=str(z + 1), ChannelID=str(c + 1), ChannelName=f"c{c}")
        for z in range(3) for c in range(2)
    ]  # fmt: skip
    layout = find(write(tmp_path, *pages), "", "p")
    assert [(f.z, f.planes) for f in layout.fields] == [
        (z, ((Plane("227003.tif", (2 * z,)),), (Plane("227003.tif", (2 * z + 1,)),))) for z in range(3)
    ]


def test_channels_have_the_names_and_wavelengths_of_the_index(tmp_path: Path) -> None:
    dapi = {"ChannelName": "DAPI &amp; co", "MainExcitationWavelength": "375", "MainEmissionWavelength": "456.5"}
    files = write(tmp_path, image("b.tif", ChannelID="4", ChannelName="Alexa 488"), image("a.tif", **dapi))
    layout = find(files, "", "p")
    assert [(c.name, c.excitation_nm, c.emission_nm) for c in layout.channels] == [
        ("DAPI & co", 375, 456.5), ("Alexa 488", None, None),
    ]  # fmt: skip
    assert [f.planes for f in layout.fields] == [((Plane("a.tif", (0,)),), (Plane("b.tif", (0,)),))]


def test_an_image_without_a_file_is_missing(tmp_path: Path) -> None:
    files = write(tmp_path, image("a.tif"), image("b.tif", ChannelID="2"), image("", ChannelID="1", FieldID="2"),
                  image("c.tif", ChannelID="2", FieldID="2"), image("", FieldID="3"))  # fmt: skip
    layout = find(files, "", "p")
    assert [(f.field, [len(planes) for planes in f.planes]) for f in layout.fields] == [("1", [1, 1]), ("2", [0, 1])]


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [("6.5E-07", "m", 0.65), ("0.000065", "cm", 0.65), ("650", "nm", 0.65), ("0.65", "um", 0.65), ("0", "m", None)],
)
def test_the_size_of_pixels_is_in_micrometres_whatever_the_unit(
    tmp_path: Path, size: str, unit: str, expected: float | None
) -> None:
    assert find(write(tmp_path, image(ImageResolutionX=size, Unit=unit)), "", "p").pixel_size_um == expected


def test_the_size_of_pixels_is_unknown_where_images_differ_or_do_not_say(tmp_path: Path) -> None:
    other = image("b.tif", FieldID="2", ImageResolutionX="2E-06")
    assert find(write(tmp_path / "a", image(), other), "", "p").pixel_size_um is None
    assert find(write(tmp_path / "b", image(ImageResolutionX="-")), "", "p").pixel_size_um is None


def test_the_index_beside_the_measurement_is_read_where_none_is_named(tmp_path: Path) -> None:
    for i, references in enumerate(((), ("AssayLayout.xml",), ("T0/ImageIndex.ColumbusIDX.xml",))):
        (field,) = find(write(tmp_path / str(i), image(), references=references), "", "p").fields
        assert field.planes == ((Plane("001001-1.tif", (0,)),),)
    (tmp_path / "0" / "MeasurementIndex.ColumbusIDX.xml").unlink()
    assert len(find(Local(str(tmp_path / "0")), "", "p").fields) == 1


def test_indexes_in_folders_are_time_points_and_urls_start_from_them(tmp_path: Path) -> None:
    names = ("early/ImageIndex.ColumbusIDX.xml", "late/ImageIndex.ColumbusIDX.xml")
    write_measurement(tmp_path, *names)
    for name in names:
        write_index(tmp_path / name, image())
    layout = find(Local(str(tmp_path)), "", "p")
    assert [(f.t, f.planes) for f in layout.fields] == [
        (0, ((Plane("early/001001-1.tif", (0,)),),)), (1, ((Plane("late/001001-1.tif", (0,)),),)),
    ]  # fmt: skip


def test_time_points_of_one_index_count_from_one(tmp_path: Path) -> None:
    layout = find(write(tmp_path, image("b.tif", TimepointID="2"), image("a.tif")), "", "p")
    assert [(f.t, f.planes) for f in layout.fields] == [
        (0, ((Plane("a.tif", (0,)),),)), (1, ((Plane("b.tif", (0,)),),)),
    ]  # fmt: skip


def test_a_file_in_a_folder_below_is_fine(tmp_path: Path) -> None:
    (field,) = find(write(tmp_path, image("Images/a.tif")), "", "p").fields
    assert field.planes == ((Plane("Images/a.tif", (0,)),),)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (image(None), "ImageIndex.ColumbusIDX.xml, image 2: URL is missing"),
        (image("b.tif", None), "image 2: BufferNo of the URL is missing"),
        (image("b.tif", "first"), "image 2: BufferNo of the URL is 'first'"),
        (image("b.tif", Row="-"), "image 2: the row is missing"),
        (image("b.tif", Col="0"), "image 2: the column is '0'"),
        (image("b.tif", FieldID="x"), "image 2: FieldID is 'x'"),
        (image("b.tif", PlaneID=""), "image 2: PlaneID is missing"),
        (image("b.tif", TimepointID="0"), "image 2: TimepointID is '0'"),
        (image("b.tif", ChannelID="-"), "image 2: ChannelID is missing"),
        (image("b.tif", MainEmissionWavelength="green"), "image 2: MainEmissionWavelength is 'green'"),
        (image("b.tif", ImageResolutionX="1,18"), "image 2: ImageResolutionX is '1,18'"),
        (image("b.tif", Unit="inch"), "image 2: ImageResolutionX has unit 'inch'"),
        (image("b.tif", Unit="-"), "image 2: ImageResolutionX has unit ''"),
        (image("../b.tif"), "image 2 names the file '../b.tif'; expected a path below its own folder"),
        (image("/b.tif"), "image 2 names the file '/b.tif'"),
        (image("C:\\b.tif"), "image 2 names the file"),
        (image("b.tif"), "001001-1.tif and b.tif are both plate p well A1 field 1"),
    ],
)
def test_a_damaged_image_is_named_with_its_fault(tmp_path: Path, damaged: str, said: str) -> None:
    with pytest.raises(SourceError) as error:
        find(write(tmp_path, image(), damaged), "", "p")
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["MeasurementIndex.ColumbusIDX.xml", "ImageIndex.ColumbusIDX.xml"])
@pytest.mark.parametrize("data", ['<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "<a", ""])
def test_a_broken_file_is_named(tmp_path: Path, name: str, data: str) -> None:
    files = write(tmp_path, image())
    (tmp_path / name).write_text(data)
    with pytest.raises(SourceError, match=f"^{name} "):
        find(files, "", "p")


def test_an_index_without_images_is_an_error(tmp_path: Path) -> None:
    for images in ([], [image("")]):
        with pytest.raises(SourceError, match=r"an index without images; expected elements Images/Image"):
            find(write(tmp_path, *images), "", "p")


def test_a_reference_cannot_leave_its_folder(tmp_path: Path) -> None:
    for reference in (
        "../ImageIndex.ColumbusIDX.xml",
        "/x/ImageIndex.ColumbusIDX.xml",
        "T0\\ImageIndex.ColumbusIDX.xml",
    ):
        with pytest.raises(SourceError, match=r"MeasurementIndex.ColumbusIDX.xml names the file"):
            find(write(tmp_path, image(), references=(reference,)), "", "p")


def test_an_index_that_is_named_and_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match=r"Other.ColumbusIDX.xml is not there"):
        find(write(tmp_path, image(), references=("Other.ColumbusIDX.xml",)), "", "p")


def test_no_measurement_and_several_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no MeasurementIndex.ColumbusIDX.xml, and no folder in it does"):
        find(Local(str(tmp_path)), "", "p")
    write(tmp_path / "deep" / "deeper", image())
    with pytest.raises(SourceError, match=r"holds no MeasurementIndex"):  # only one folder is gone down
        find(Local(str(tmp_path)), "", "p")
    for name in ("b", "a"):
        write(tmp_path / name, image())
    with pytest.raises(SourceError, match=r"holds 2 measurements; give one of a, b$"):
        find(Local(str(tmp_path)), "", "p")


def test_the_layout_is_told_by_its_indexes_or_a_folder_with_time_and_number() -> None:
    assert there(["001001-1.tif", "MeasurementIndex.ColumbusIDX.xml"])
    assert there(["ImageIndex.ColumbusIDX.xml"])
    assert there([f"{STAMPED}/"])
    assert not there(["Index.idx.xml", "2020-03-31/", STAMPED, "MeasurementData.mlf"])

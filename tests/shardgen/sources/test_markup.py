from pathlib import Path

import pytest

from bie_stream.errors import SourceError
from shardgen.archive import Plane
from shardgen.sources.markup import (
    Found,
    channel_names,
    decimal,
    file_name,
    gather,
    parse_xml,
    path_below,
    well_at,
    whole,
)

LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    assert parse_xml(b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?><a b="\xc2\xb5m"/>', "x").get("b") == "µm"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LAUGHS.encode(), "x.xml has a DOCTYPE"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "x.xml has a DOCTYPE"),
        (LAUGHS.encode("utf-16"), "x.xml is not UTF-8"),
        (LAUGHS.encode("utf-16-le"), "x.xml is not UTF-8 (it has a byte 0)"),
        (b"<a>&b;</a>", "x.xml is not whole XML (undefined entity"),
        (b"<a><b></a>", "x.xml is not whole XML (mismatched tag"),
        (b"<a><b/>", "x.xml is not whole XML"),
        (b"<a>\0</a>", "x.xml is not UTF-8 (it has a byte 0)"),
        (b"", "x.xml is not whole XML"),
        (b"\xff\xd8\xff", "x.xml is not UTF-8"),
    ],
)
def test_what_is_not_plain_whole_xml_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(SourceError) as error:
        parse_xml(data, "x.xml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoding_that_is_only_claimed_does_not_hide_a_doctype() -> None:
    hidden = '<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE a+AD4-<a/>'
    with pytest.raises(SourceError):
        parse_xml(hidden.encode(), "x.xml")


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e3", "one", "١", "1_0", "9" * 5000, "1000001"])
def test_only_digits_in_range_are_a_whole_number(text: str) -> None:
    assert whole(" 12\n", "Row", "x") == 12
    with pytest.raises(SourceError, match=r"^x: Row is .* expected a whole number, 1 to 1000000$"):
        whole(text, "Row", "x")


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1,4", "wide", "1e308", "1e999", "9" * 5000])
def test_only_numbers_of_at_least_zero_are_a_size(text: str) -> None:
    assert decimal(" 6.5E-07 ", "size", "x") == 6.5e-07
    with pytest.raises(SourceError, match=r"^x: size is .* expected a number of at least 0$"):
        decimal(text, "size", "x")


def test_what_is_missing_is_named() -> None:
    for read in (whole, decimal):
        with pytest.raises(SourceError, match=r"^x: Row is missing"):
            read(None, "Row", "x")


def test_rows_and_columns_are_a_well_from_either_origin() -> None:
    assert [well_at("1", "1", "x"), well_at("4", "8", "x"), well_at("27", "48", "x")] == ["A1", "D8", "AA48"]
    assert [well_at("0", "0", "x", first=0), well_at("15", "23", "x", first=0)] == ["A1", "P24"]
    for row, column in (("0", "1"), ("703", "1"), ("1", "1000")):
        with pytest.raises(SourceError, match=r"^x: the (row|column) is"):
            well_at(row, column, "x")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a.tif", "a/../../b.tif", "a//b.tif", "./a.tif", "a\\b", "a\0"])
def test_a_path_cannot_leave_its_folder(path: str) -> None:
    assert path_below("a b[1]/c+d#.tif", "x") == "a b[1]/c+d#.tif"
    with pytest.raises(SourceError, match=r"^x names the file"):
        path_below(path, "x")


def test_a_name_has_no_folder() -> None:
    assert file_name("a b.tif", "x") == "a b.tif"
    for name in ("a/b.tif", "..", ""):
        with pytest.raises(SourceError, match=r"^x names the file"):
            file_name(name, "x")


def found(path: str, well: str = "A1", field: str = "1", z: int = 0, channel: int = 1) -> Found:
    return Found(well, field, z, 0, channel, Plane(path))


def test_planes_become_fields_in_order_with_a_gap_where_a_channel_is_missing() -> None:
    planes = [found("d", "A2", channel=3), found("b", "A10"), found("c", "A10", channel=3), found("a", "A2", "10")]
    channels, fields = gather("p", planes)
    assert channels == (1, 3)
    assert [(f.plate, f.well, f.field, f.planes) for f in fields] == [
        ("p", "A2", "1", ((), (Plane("d"),))),
        ("p", "A2", "10", ((Plane("a"),), ())),
        ("p", "A10", "1", ((Plane("b"),), (Plane("c"),))),
    ]


def test_two_files_for_one_plane_are_refused_and_one_named_twice_is_not() -> None:
    assert len(gather("p", [found("a"), found("a")])[1]) == 1
    with pytest.raises(SourceError, match=r"^a and b are both plate p well A1 field 1 z 0 t 0 channel 1;"):
        gather("p", [found("a"), found("b")])


def test_channels_without_a_name_of_their_own_are_named_by_number() -> None:
    assert channel_names([1, 2], {1: "DAPI", 2: "Texas Red", 3: "Cy5"}) == ["DAPI", "Texas Red"]
    assert channel_names([1, 2], {1: " ", 2: "DAPI"}) == ["1", "DAPI"]
    assert channel_names([1, 2], {1: "DAPI", 2: "DAPI"}) == ["1", "2"]
    assert channel_names([1, 2, 3], {1: "\x1b[31mDAPI", 2: "x" * 1000, 3: "\x9b31m"}) == ["1", "2", "3"]


def test_no_other_source_parses_xml() -> None:
    sources = Path(__file__).parents[3] / "shardgen" / "sources"
    for path in sources.glob("*.py"):
        text = path.read_text()
        assert path.name == "markup.py" or not any(f"ET.{name}" in text for name in ("fromstring", "parse", "XML"))

import gzip

import pytest

from bie_stream.errors import SourceError
from shardgen.labels import Labels, join, labels_of, parse_table

WELLS = [("p", "A1"), ("p", "A2"), ("p", "B1")]


def read(text: str, wells: list[tuple[str, str]] = WELLS, encoding: str = "utf-8") -> Labels:
    return labels_of(parse_table(text.encode(encoding), "wells.csv"), wells)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "+2", ""], [1, 2, None]),
        (["1", "2.5", "3"], [1.0, 2.5, 3.0]),
        (["1e-6", "", "0.5"], [1e-6, None, 0.5]),
        (["1", "high", "2.5"], ["1", "high", "2.5"]),
        (["", "", ""], [None, None, None]),
        (["007", "008", "010"], ["007", "008", "010"]),
        (["1_000", "2", "3"], ["1_000", "2", "3"]),
        (["-1,4", "33,33", "20"], [-1.4, 33.33, 20.0]),
        (["1,000.5", "2", "3"], ["1,000.5", "2", "3"]),
        (["BRD-1,BRD-2", "", "1"], ["BRD-1,BRD-2", None, "1"]),
        (["123456789012345678901", "2", "3"], ["123456789012345678901", "2", "3"]),
        (["1e999", "2", "3"], ["1e999", "2", "3"]),
        (["9" * 5000, "2", "0,5"], ["9" * 5000, "2", "0,5"]),
        (["\x1b[31m", "a\0b", "\u202e"], ["\x1b[31m", "a\0b", "\u202e"]),
    ],
)
def test_a_column_has_the_first_type_that_fits_all_cells(cells: list[str], expected: list[object]) -> None:
    rows = "\n".join(f'{well},"{cell}"' for (_, well), cell in zip(WELLS, cells, strict=True))
    labels = read(f"well,x\n{rows}\n")
    found = [labels[well]["x"] for well in WELLS]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_wells_may_be_written_with_zeros_and_in_any_case() -> None:
    assert read("Well,x\na01,1\nA002,2\n B1 ,3\n", WELLS) == {
        ("p", "A1"): {"x": 1},
        ("p", "A2"): {"x": 2},
        ("p", "B1"): {"x": 3},
    }


def test_a_byte_order_mark_is_no_part_of_the_header() -> None:
    assert read("well,µ\nA1,é\n", WELLS[:1], encoding="utf-8-sig") == {("p", "A1"): {"µ": "é"}}


def test_rows_of_other_wells_and_plates_change_nothing() -> None:
    assert read("plate,well,x\np,A1,1\nq,A1,word\np,H12,word\n", WELLS[:1]) == {("p", "A1"): {"x": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("well,x\nA1,1\nA01,2\nA2,1\nB1,1\n", "twice"),
        ("well,x\nA1,1\n", r"lacks 2 of 3 wells: p/A2, p/B1"),
        ("plate,well,x\nq,A1,1\n", r"has plate q, the archive has plate p; name them alike"),
        ("well,split\nA1,1\n", "'split'"),
        ("well,shard\nA1,1\n", "'shard'"),
        ("well,x,x\nA1,1,2\nA2,1,2\nB1,1,2\n", "'x'"),
        ("plate,x\np,1\n", "no column 'well'"),
        ("", "is empty"),
        ("well,x\nA1\n", "line 2: 2 columns"),
        ("well,x\nA1,1,2\n", "line 2: 2 columns"),
        ("well,x\n7,1\n", "'7' is not a well"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read(text)


def test_several_plates_need_a_plate_column() -> None:
    with pytest.raises(SourceError, match="no column 'plate'"):
        read("well,x\nA1,1\n", [("p", "A1"), ("q", "A1")])


def test_a_table_in_another_encoding_is_refused() -> None:
    with pytest.raises(SourceError, match="UTF-8"):
        read("well,µ\nA1,1\n", WELLS[:1], encoding="latin-1")


def test_a_text_file_has_tabs_and_a_packed_one_is_unpacked() -> None:
    packed = gzip.compress(b"Plate\tWell\tx\np\to2\t1\n")
    assert labels_of(parse_table(packed, "library.txt.gz"), [("p", "O2")]) == {("p", "O2"): {"x": 1}}
    with pytest.raises(SourceError, match="is cut off"):
        parse_table(packed[:-9], "library.txt.gz")
    with pytest.raises(SourceError, match="damaged"):
        parse_table(b"no gzip", "library.txt.gz")


def test_a_table_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardgen.labels.LARGEST_TABLE_BYTES", 1000)
    with pytest.raises(SourceError, match="unpacks to more than"):
        parse_table(gzip.compress(b"well\n" + b"A1\n" * 10_000), "wells.csv.gz")


def test_wells_without_a_row_have_no_values_where_that_is_allowed() -> None:
    found = labels_of(parse_table(b"plate,well,x\np,A1,3\n", "annotation.csv"), WELLS, complete=False)
    assert found == {("p", "A1"): {"x": 3}, ("p", "A2"): {"x": None}, ("p", "B1"): {"x": None}}


def test_a_join_keeps_every_row_of_the_left_table_once() -> None:
    library = parse_table(b"Well\tCompound\tDose\nA1\tx\t1\nA2\ty\t2\nB1\tx\t3\n", "library.txt")
    processed = parse_table(b"Compound\tPhenotype\nx\tround\n", "processed.txt")
    found = labels_of(join(library, processed), WELLS)
    assert [found[well]["Phenotype"] for well in WELLS] == ["round", None, "round"]
    assert [found[well]["Dose"] for well in WELLS] == [1, 2, 3]


def test_a_join_that_would_be_ambiguous_is_refused() -> None:
    library = parse_table(b"Well\tCompound\nA1\tx\n", "library.txt")
    with pytest.raises(SourceError, match="'x' twice"):
        join(library, parse_table(b"Compound\tPhenotype\nx\tround\nx\tflat\n", "processed.txt"))
    with pytest.raises(SourceError, match="no column in common"):
        join(library, parse_table(b"Drug\tPhenotype\nx\tround\n", "processed.txt"))

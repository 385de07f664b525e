from pathlib import Path

import pytest

from bie_stream.errors import SourceError
from shardgen.labels import read_labels

WELLS = [("p", "A1"), ("p", "A2"), ("p", "B1")]


def table(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "wells.csv"
    path.write_text(text, encoding=encoding)
    return path


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
        (["123456789012345678901", "2", "3"], ["123456789012345678901", "2", "3"]),
    ],
)
def test_a_column_has_the_first_type_that_fits_all_cells(
    tmp_path: Path, cells: list[str], expected: list[object]
) -> None:
    rows = "\n".join(f"{well},{cell}" for (_, well), cell in zip(WELLS, cells, strict=True))
    labels = read_labels(table(tmp_path, f"well,x\n{rows}\n"), WELLS)
    found = [labels[well]["x"] for well in WELLS]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_wells_may_be_written_with_zeros_and_in_any_case(tmp_path: Path) -> None:
    path = table(tmp_path, "Well,x\na01,1\nA002,2\n B1 ,3\n")
    assert read_labels(path, WELLS) == {("p", "A1"): {"x": 1}, ("p", "A2"): {"x": 2}, ("p", "B1"): {"x": 3}}


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = table(tmp_path, "well,µ\nA1,é\n", encoding="utf-8-sig")
    assert read_labels(path, WELLS[:1]) == {("p", "A1"): {"µ": "é"}}


def test_rows_of_other_wells_and_plates_change_nothing(tmp_path: Path) -> None:
    path = table(tmp_path, "plate,well,x\np,A1,1\nq,A1,word\np,H12,word\n")
    assert read_labels(path, WELLS[:1]) == {("p", "A1"): {"x": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("well,x\nA1,1\nA01,2\nA2,1\nB1,1\n", "twice"),
        ("well,x\nA1,1\n", r"lacks 2 of 3 wells: p/A2, p/B1"),
        ("plate,well,x\nq,A1,1\n", r"the table's plates: q"),
        ("well,split\nA1,1\n", "'split'"),
        ("well,shard\nA1,1\n", "'shard'"),
        ("well,x,x\nA1,1,2\nA2,1,2\nB1,1,2\n", "'x'"),
        ("plate,x\np,1\n", "no column 'well'"),
        ("", "no column 'well'; it has: nothing"),
        ("well,x\nA1\n", "line 2: 2 columns"),
        ("well,x\nA1,1,2\n", "line 2: 2 columns"),
        ("well,x\n7,1\n", "'7' is not a well"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read_labels(table(tmp_path, text), WELLS)


def test_several_plates_need_a_plate_column(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column 'plate'"):
        read_labels(table(tmp_path, "well,x\nA1,1\n"), [("p", "A1"), ("q", "A1")])


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="UTF-8"):
        read_labels(table(tmp_path, "well,µ\nA1,1\n", encoding="latin-1"), WELLS[:1])

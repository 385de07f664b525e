import csv
import gzip
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bie_stream.errors import SourceError
from shardgen.archive import Field, Objects, ObjectTable, Place, Plane
from shardgen.labels import typed
from shardgen.objects import read_objects


def fields_of(*places: Place) -> list[Field]:
    return [Field(*place, planes=((Plane("a.tif"),),)) for place in places]


ONE = fields_of(("p", "A1", "1", 0, 0))
A1: Place = ("p", "A1", "1", 0, 0)


def read(text: str, fields: Sequence[Field] = ONE, where: str = "objects.csv") -> ObjectTable:
    return read_objects(text.encode(), where, fields)


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def read_parquet(columns: dict[str, Any], fields: Sequence[Field] = ONE) -> ObjectTable:
    rows = max(map(len, columns.values()))
    return read_objects(parquet({"well": ["A1"] * rows, "field": ["1"] * rows} | columns), "objects.parquet", fields)


def listed(objects: Objects) -> tuple[list[int], list[list[float]], dict[str, list[object]]]:
    assert (objects.numbers.dtype, objects.centres.dtype) == (np.int64, np.float64)
    return objects.numbers.tolist(), objects.centres.tolist(), {name: list(v) for name, v in objects.labels.items()}


def random_table(rows: int = 500) -> list[dict[str, str]]:
    """Rows of three plates in no order, cells as text."""
    rng = np.random.default_rng(0)
    places = [(p, w, f) for p in ("001", "1", "x y") for w in ("A01", "a1", "B12") for f in ("1", "02")]
    numbers = rng.permutation(rows)
    return [
        {
            **dict(zip(("plate", "well", "field"), places[rng.integers(len(places))], strict=True)),
            **{name: str(value) for name, value in zip("yx", rng.random(2) * 100, strict=True)},
            "object": str(numbers[row]),
            "mean": rng.choice(["1.5", "2", ""]),
            "phase": rng.choice(["G1", "S"]),
            "area": str(rng.integers(100)),
            "barcode": rng.choice(["007", "8"]),
        }
        for row in range(rows)
    ]


def text_of(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


ASKED = fields_of(
    *(("001", well, field, 0, 0) for well in ("A1", "B12") for field in ("1", "02")), ("1", "A1", "1", 0, 0)
)


def test_a_table_gives_each_field_its_rows_in_order_of_their_numbers() -> None:
    rows = random_table()
    found = read(text_of(rows), ASKED)
    assert found.columns == ("mean", "phase", "area", "barcode")
    well = {"A01": "A1", "a1": "A1", "B12": "B12"}
    asked = {field.place for field in ASKED}
    mine = [row for row in rows if (row["plate"], well[row["well"]], row["field"], 0, 0) in asked]
    types = {name: dict(zip((r[name] for r in mine), typed([r[name] for r in mine]))) for name in found.columns}
    expected: dict[Place, list[dict[str, str]]] = {}
    for row in sorted(mine, key=lambda row: int(row["object"])):
        expected.setdefault((row["plate"], well[row["well"]], row["field"], 0, 0), []).append(row)
    assert set(found.by_field) == set(expected)
    for place, part in expected.items():
        assert listed(found.by_field[place]) == (
            [int(row["object"]) for row in part],
            [[float(row["y"]), float(row["x"])] for row in part],
            {name: [types[name][row[name]] for row in part] for name in found.columns},
        )


@pytest.mark.parametrize("where", ["o.tsv", "o.txt", "O.CSV", "o.csv.gz", "o.tsv.gz"])
def test_a_table_may_have_tabs_and_be_packed(where: str) -> None:
    rows = random_table(50)
    data = text_of(rows, "\t" if "c" not in where.lower() else ",").encode()
    found = read_objects(gzip.compress(data) if where.endswith(".gz") else data, where, ASKED)
    expected = read(text_of(rows), ASKED)
    assert {p: listed(o) for p, o in found.by_field.items()} == {p: listed(o) for p, o in expected.by_field.items()}


def test_parquet_gives_what_the_same_csv_gives() -> None:
    rows = random_table()
    expected = read(text_of(rows), ASKED)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {name: [float(row[name] or "nan") for row in rows] for name in ("y", "x", "mean")}
    columns |= {name: [int(row[name]) for row in rows] for name in ("object", "area")}
    found = read_objects(parquet(columns), "o.parquet", ASKED)
    assert found.columns == expected.columns
    assert {p: listed(o) for p, o in found.by_field.items()} == {p: listed(o) for p, o in expected.by_field.items()}


def test_columns_are_known_in_any_case_and_a_byte_order_mark_is_none_of_them() -> None:
    found = read("\ufeff Field ,WELL,Y,x,Object,Näme\n1,a001,1,2,5,µ\n")
    assert listed(found.by_field[A1]) == ([5], [[1.0, 2.0]], {"Näme": ["µ"]})


def test_a_cell_may_have_several_lines() -> None:
    found = read('well,field,y,x,note\n\nA1,1,1,2,"a\n""b"", c"\nA1,1,3,4,\n')
    assert listed(found.by_field[A1]) == ([1, 2], [[1.0, 2.0], [3.0, 4.0]], {"note": ['a\n"b", c', None]})


def test_fields_are_the_same_with_zeros_before_them_and_plates_are_not() -> None:
    fields = fields_of(("001", "A1", "01", 0, 0), ("1", "A1", "10", 0, 0))
    found = read("plate,well,field,y,x\n001,A1,1,1,1\n1,A01,0010,2,2\n01,A1,1,3,3\n", fields)
    assert {place: objects.centres.tolist() for place, objects in found.by_field.items()} == {
        ("001", "A1", "01", 0, 0): [[1, 1]],
        ("1", "A1", "10", 0, 0): [[2, 2]],
    }
    with pytest.raises(SourceError, match="field 1 z 0 t 0 and field 01 are one by their numbers"):
        read("well,field,y,x\nA1,1,1,1\n", fields_of(A1, ("p", "A1", "01", 0, 0)))


def test_an_object_is_in_all_z_and_t_unless_the_table_says_in_which() -> None:
    fields = fields_of(*(("p", "A1", "1", z, t) for t in (0, 1) for z in (0, 3)))
    found = read("well,field,y,x\nA1,1,1,2\n", fields)
    assert [listed(found.by_field[field.place])[:2] for field in fields] == [([1], [[1.0, 2.0]])] * 4
    found = read("well,field,z,y,x\nA1,1,03,1,2\nA1,1,0,3,4\nA1,1,3,5,6\n", fields)
    numbered = {place[3:]: listed(objects)[:2] for place, objects in found.by_field.items()}
    three = ([1, 2], [[1.0, 2.0], [5.0, 6.0]])
    assert numbered == {(0, 0): ([1], [[3.0, 4.0]]), (3, 0): three, (0, 1): ([1], [[3.0, 4.0]]), (3, 1): three}
    found = read("well,field,z,T,y,x\nA1,1,3,1,1,2\n", fields)
    assert list(found.by_field) == [("p", "A1", "1", 3, 1)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "2.5", ""], [1.0, 2.5, None]),
        (["1", "high", "2.5"], ["1", "high", "2.5"]),
        (["007", "008", "010"], ["007", "008", "010"]),
        (["-1,4", "33,33", " 20"], [-1.4, 33.33, 20.0]),
        (["123456789012345678901", "2", "2"], ["123456789012345678901", "2", "2"]),
        (["1", "nan", "2"], [1.0, None, 2.0]),
        (["", "", ""], [None, None, None]),
        (["NA", "NULL", ""], ["NA", "NULL", None]),
    ],
)
def test_a_label_column_has_the_first_type_that_fits_all_cells_of_the_fields(
    cells: list[str], expected: list[object]
) -> None:
    rows = "".join(f'A1,1,{n},{n},"{cell}"\n' for n, cell in enumerate(cells))
    found = read(f"well,field,y,x,label\n{rows}H12,1,0,0,another type\n").by_field[A1].labels["label"]
    assert list(found) == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (pa.array([1, None, -3], pa.int8()), [1, None, -3]),
        (pa.array([2**63 - 1, 0, 1], pa.uint64()), [2**63 - 1, 0, 1]),
        (pa.array([1.5, None, float("nan")], pa.float32()), [1.5, None, None]),
        (pa.array(np.array([1.5, 2, 3], np.float16)), [1.5, 2.0, 3.0]),
        (pa.array(["1", None, "007"]), ["1", None, "007"]),
        (pa.array(["x", "", "nan"], pa.large_string()), ["x", "", "nan"]),
        (pa.array(["x", None, "y"]).dictionary_encode(), ["x", None, "y"]),
        (pa.nulls(3), [None, None, None]),
    ],
)  # fmt: skip
def test_parquet_keeps_its_types(cells: pa.Array, expected: list[object]) -> None:
    found = read_parquet({"y": [0, 1, 2], "x": [0.5, 1, 2], "label": cells}).by_field[A1].labels["label"]
    assert list(found) == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_places_and_numbers_of_parquet_may_be_integers() -> None:
    columns = {"plate": [20585, 20586], "well": ["A01", "B2"], "field": pa.array([1, 2], pa.uint8()), "z": [0, 7]}
    data = parquet(columns | {"object": [4, 5], "y": [1, 2], "x": [3, 4]})
    fields = fields_of(("20585", "A1", "1", 0, 0), ("20586", "B2", "2", 7, 0))
    found = read_objects(data, "o.parquet", fields).by_field
    assert [listed(found[field.place])[:2] for field in fields] == [([4], [[1.0, 3.0]]), ([5], [[2.0, 4.0]])]


@pytest.mark.parametrize(
    ("column", "cells", "said"),
    [
        ("label", [True, False], "column 'label' is of type bool; expected integers, floats or strings"),
        ("label", [[1], [2]], "column 'label' is of type list"),
        ("label", [{"a": 1}, {"a": 2}], "column 'label' is of type struct"),
        ("label", [b"a", b"\xff"], "column 'label' is of type binary"),
        ("label", pa.array([1, 2], pa.timestamp("s")), "column 'label' is of type timestamp"),
        ("label", pa.array([1, 2], pa.decimal128(5)), "column 'label' is of type decimal128"),
        ("label", pa.array([1, 2**63], pa.uint64()), "column 'label': .*2\\*\\*63"),
        ("field", [1.0, 2.0], "column 'field': double; expected integers or strings"),
        ("object", [1.0, 2.0], "column 'object': double; expected integers or strings"),
        ("well", ["A1", None], "column 'well': '' is not a well"),
        ("y", [0.5, None], "row 2: y is missing; expected pixels from 0"),
        ("x", [0.5, float("nan")], "row 2: x is nan; expected pixels"),
        ("x", [0, -1], "row 2: x is -1; expected pixels"),
        ("y", ["1", "one"], "row 2: y is 'one'; expected pixels"),
        ("object", [1, -1], "row 2: object is -1; expected a whole number from 0"),
        ("object", [1, None], "row 2: object is missing; expected a whole number from 0"),
    ],
)
def test_parquet_that_cannot_be_used_is_refused_with_the_reason(column: str, cells: Any, said: str) -> None:
    with pytest.raises(SourceError, match=rf"^objects.parquet.*{said}"):
        read_parquet({"y": [0, 1], "x": [0, 1], column: cells})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a CSV"),
        ("well,field,y,x", "is not a CSV"),
        ("well,field,y,x\n", "has no rows"),
        ("well,field,y\nA1,1,1\n", "no column 'x'; it has: well, field, y"),
        ("well,field,y,x\nA1,1,1\n", "Row #2: Expected 4 columns, got 3"),
        ("well,field,y,x\nA1,1,1,2,3\n", "Row #2: Expected 4 columns, got 5"),
        ("well,field,y,x,Y\nA1,1,1,2,3\n", "column 'y' is there twice"),
        ("well,field,y,x,a,a\nA1,1,1,2,3,4\n", "column 'a' is there twice"),
        ("well,field,y,x,split\nA1,1,1,2,3\n", "'split' is one of the sample table's own"),
        ("well,field,y,x\n7,1,1,2\n", "column 'well': '7' is not a well"),
        ("well,field,z,y,x\nA1,1,-1,1,2\n", "column 'z': '-1' is not a whole number from 0"),
        ("well,field,t,y,x\nA1,1,,1,2\n", "column 't': '' is not a whole number from 0"),
        ("well,field,y,x\nA1,1,1,2\nA1,1,,2\n", "line 3: y is missing; expected pixels from 0"),
        ("well,field,y,x\nA1,1,1,2\nA1,1,1,nan\n", "line 3: x is 'nan'; expected pixels from 0"),
        ("well,field,y,x\nA1,1,1,2\nA1,1,1,-0.5\n", "line 3: x is '-0.5'"),
        ("well,field,y,x\nA1,1,1,2\nA1,1,1,inf\n", "line 3: x is 'inf'"),
        ("well,field,y,x\nA1,1,1,2\nA1,1,2147483649,2\n", "line 3: y is '2147483649'"),
        ("well,field,y,x\nA1,1,1,2\nA1,1,one,2\n", "line 3: y is 'one'"),
        ('well,field,y,x\nA1,1,1,2.5\nA1,1,1,"2,5"\n', "line 3: x is '2,5'"),
        ("well,field,y,x,object\nA1,1,1,2,1\nA1,1,1,2,1.5\n", "line 3: object is '1.5'; expected a whole number"),
        ("well,field,y,x,object\nA1,1,1,2,1\nA1,1,1,2,\n", "line 3: object is missing"),
        (f"well,field,y,x,object\nA1,1,1,2,1\nA1,1,1,2,{'9' * 5000}\n", "line 3: object is '999"),
        ("well,field,y,x,object\nA1,1,1,2,7\nB1,1,1,2,7\nA1,1,1,2,07\n", "line 4: object 7 of its field is there"),
        ("plate,well,field,y,x\nq,A01,2,1,2\n", "first is of plate q well A1 field 2 z 0 t 0, .* has plate p well A1"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=rf"^objects.csv.*{said}"):
        read(text)


def test_centres_are_taken_from_the_first_pixel_to_the_farthest_one() -> None:
    found = read('well,field,y,x\nA1,1,0,"2147483648"\nA1,1,1e3,007\n')
    assert found.by_field[A1].centres.tolist() == [[0, 2**31], [1000, 7]]
    found = read('well,field,y,x\nA1,1,"0,5",1\nA1,1,"1,25",2\n')
    assert found.by_field[A1].centres.tolist() == [[0.5, 1], [1.25, 2]]


def test_several_plates_need_a_plate_column() -> None:
    with pytest.raises(SourceError, match="has no column 'plate', and the archive has 2 plates: p, q"):
        read("well,field,y,x\nA1,1,1,1\n", fields_of(A1, ("q", "A1", "1", 0, 0)))


def test_rows_of_other_fields_are_counted_and_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rows = "well,field,y,x,object,label\nA1,1,1,1,3,5\n"
    assert listed(read(rows).by_field[A1]) == ([3], [[1.0, 1.0]], {"label": [5]})
    assert not caplog.messages
    with caplog.at_level(logging.WARNING, "shardgen"):
        found = read(rows + "A1,2,none,-1,x,word\nB2,1,,,3,\n")
    assert {place: listed(o) for place, o in found.by_field.items()} == {A1: ([3], [[1.0, 1.0]], {"label": [5]})}
    assert caplog.messages == ["2 of 3 rows of objects.csv are of other fields"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(SourceError, match="is not a CSV in UTF-8"):
        read_objects("well,field,y,x,µ\nA1,1,1,1,é\n".encode(encoding), "o.csv", ONE)


@pytest.mark.parametrize("where", ["o.csv", "o.csv.gz", "o.parquet"])
def test_whatever_is_damaged_in_a_table_it_is_read_or_a_source_error(where: str) -> None:
    rows = random_table(60)
    data = text_of(rows).encode()
    if where == "o.parquet":
        data = parquet({name: [row[name] for row in rows] for name in rows[0]} | {"area": list(range(60))})
    elif where == "o.csv.gz":
        data = gzip.compress(data)
    rng = np.random.default_rng(0)
    damaged = [data[: rng.integers(len(data))] for _ in range(50)]
    for _ in range(300):
        bytes_ = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            bytes_[at] = rng.integers(256)
        damaged.append(bytes(bytes_))
    refused = 0
    for one in damaged:
        try:
            read_objects(one, where, ASKED)
        except SourceError:
            refused += 1
    assert refused > 50


def test_tables_larger_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "well,field,y,x\n" + "A1,1,1,1\n" * 10_000
    columns = {name: np.zeros(10_000) for name in ("y", "x", "a", "b")}
    packed = gzip.compress(long.encode())
    claims = parquet({"well": ["A1"] * 10_000, "field": ["1"] * 10_000} | columns)
    assert len(packed) < 2000
    for module in ("labels", "objects"):
        monkeypatch.setattr(f"shardgen.{module}.LARGEST_TABLE_BYTES", 50_000)
    assert len(claims) < 50_000
    for data, where in ((long.encode(), "o.csv"), (packed, "o.csv.gz"), (claims, "o.parquet")):
        with pytest.raises(SourceError, match=r"MiB"):
            read_objects(data, where, ONE)


def test_tables_of_more_columns_than_can_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardgen.objects.MOST_COLUMNS", 5)
    assert read("well,field,y,x,a\nA1,1,1,1,1\n").columns == ("a",)
    for data, where in (
        (b"well,field,y,x,a,b\nA1,1,1,1,1,1\n", "o.csv"),
        (parquet({name: [1] for name in ("well", "field", "y", "x", "a", "b")}), "o.parquet"),
    ):
        with pytest.raises(SourceError, match=r"and 6 columns; a table may have .* 5 columns"):
            read_objects(data, where, ONE)


def test_a_long_word_in_every_row_of_parquet_takes_its_memory_once() -> None:
    rows, word = 200_000, "x" * 2**20
    label = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([word]))
    found = read_parquet({"y": np.ones(rows), "x": np.ones(rows), "label": label})  # 195 GiB were it not
    labels = found.by_field[A1].labels["label"]
    assert len(labels) == rows
    assert all(value is labels[0] for value in labels)
    assert labels[0] == word

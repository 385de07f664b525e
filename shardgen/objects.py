"""Tables of objects, cells or nuclei: where each is in its field, and what is known of it.

    objects.csv[.gz], .tsv, .txt, .parquet  ──read_objects──►  ObjectTable

A table is not trusted. Fields 1 and 01 are one, as wells A1 and A01 are.
"""

import io
import itertools
import logging
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from bie_stream.errors import SourceError
from shardgen.archive import (
    Field,
    Label,
    Objects,
    ObjectTable,
    Place,
    by_place,
    describe_place,
    field_name,
    only_plate,
    some,
    split_well,
)  # fmt: skip
from shardgen.labels import LARGEST_TABLE_BYTES, require_label_names, typed, unpacked

MOST_COLUMNS = 10_000  # of a table; each takes memory, however few its rows are
LARGEST_CENTRE = 2**31  # pixels
_OWN = ("plate", "well", "field", "z", "t", "object", "y", "x")
_NEEDED = ("well", "field", "y", "x")
_TEXT = pa.dictionary(pa.int32(), pa.string())
_TEXTS = ("string", "large_string", "string_view")
_log = logging.getLogger("shardgen")
_T = TypeVar("_T")


def read_objects(data: bytes, where: str, fields: Sequence[Field]) -> ObjectTable:
    """The objects of these fields.

    Args:
        data: a table as `shardgen.labels.parse_table` takes it, or Parquet, with a row for each object. Columns, in
            any case: `well`, `field`, `y`, `x`; `plate` where there is more than one; perhaps `z` and `t`, without
            which an object is in all of them, and `object`, its number, without which those of a field are counted
            from 1. All others are labels. Those of a text file get their types over all rows of these fields, as in
            `shardgen.labels`; those of Parquet have them. Rows of other fields are counted and passed over.
        where: the file's name.

    Raises:
        SourceError: it is no such table, has no object of these fields, or one that cannot be used.
    """
    table = _parquet(data, where) if where.lower().endswith(".parquet") else _csv(data, where)
    known = by_place(fields, table.own)
    rows, groups = _rows_of(table, fields, list(known))
    numbers = _numbers(table, rows, groups)
    order = np.lexsort((numbers, groups))
    rows, groups, numbers = rows[order], groups[order], numbers[order]
    _require_distinct(table, rows, groups, numbers)
    centres = np.stack([_pixels(table, name, rows) for name in ("y", "x")], axis=1)
    labels = {name: table.values(cells, rows, name) for name, cells in table.labels.items()}
    alike = list(known.values())
    by_field: dict[Place, Objects] = {}
    for first, last in _runs(groups):
        of_field = {name: tuple(values[first:last]) for name, values in labels.items()}
        objects = Objects(numbers[first:last], centres[first:last], of_field)
        by_field.update((field.place, objects) for field in alike[groups[first]])
    return ObjectTable(tuple(labels), by_field)


@dataclass(frozen=True)
class _Table:
    """The columns of a file: each of text (as a dictionary), of whole numbers, of floats, or of nothing.

    Attributes:
        own: those that say which object it is and where.
        typed: whether text is meant as text; else the type of its column is to be found.
    """

    where: str
    own: Mapping[str, pa.Array]
    labels: Mapping[str, pa.Array]
    typed: bool

    def at(self, row: int) -> str:
        """A row, counted from 0, for a message; a text file has its header in line 1."""
        return f"{self.where}, row {row + 1}" if self.typed else f"{self.where}, line {row + 2}"

    def values(self, cells: pa.Array, rows: NDArray[np.int64], name: str) -> list[Label]:
        """The cells of a column at these rows; None where there is none, or NaN."""
        cells = cells.take(pa.array(rows))
        if pa.types.is_dictionary(cells.type):
            found = _decoded(cells, list if self.typed else _types_found)
        else:
            found = _widened(cells, f"{self.where}: column {name!r}").to_pylist()
        return [None if value != value else value for value in found]


def _csv(data: bytes, where: str) -> _Table:
    text, delimiter = unpacked(data, where)
    _require_small(where, len(text))
    read = csv.ReadOptions(use_threads=False)  # with threads it does not say which row is at fault
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with csv.open_csv(io.BytesIO(text), read, parse) as head:
            names = head.schema.names
        _require_small(where, len(text), len(names))
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, _TEXT), strings_can_be_null=False)
        table = csv.read_csv(io.BytesIO(text), read, parse, convert)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{where} is not a CSV in UTF-8: {error}") from error
    return _table(table, where, typed=False)


def _parquet(data: bytes, where: str) -> _Table:
    try:
        about = pq.ParquetFile(pa.BufferReader(data))
        _require_small(where, max(len(data), _claimed_bytes(about)), len(about.schema_arrow))
        for field in about.schema_arrow:
            _require_kind(field.type, f"{where}: column {field.name!r}")
        # As a dictionary, a long word that every row has takes no more memory than in the file.
        table = pq.ParquetFile(pa.BufferReader(data), read_dictionary=about.schema_arrow.names).read(use_threads=False)
        table.validate(full=True)
    except SourceError:
        raise
    except Exception as error:  # pyarrow raises whatever the bytes lead it to
        raise SourceError(f"{where} is not a readable Parquet file: {error}") from error
    return _table(table, where, typed=True)


def _claimed_bytes(file: pq.ParquetFile) -> int:
    """What the columns take in memory, as far as the file says it."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    return max(8 * rows * len(file.schema_arrow), sum(group.total_byte_size for group in groups))


def _require_small(where: str, size: int, columns: int = 0) -> None:
    if size > LARGEST_TABLE_BYTES or columns > MOST_COLUMNS:
        raise SourceError(
            f"{where} has {size / 2**20:.0f} MiB and {columns} columns; a table may have "
            f"{LARGEST_TABLE_BYTES / 2**20:.0f} MiB and {MOST_COLUMNS} columns: leave some out, or build plates apart"
        )


def _require_kind(kind: pa.DataType, what: str) -> None:
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not number and str(text) not in _TEXTS:
        raise SourceError(f"{what} is of type {kind}; expected integers, floats or strings: convert it or leave it out")


def _table(table: pa.Table, where: str, typed: bool) -> _Table:
    own: dict[str, pa.Array] = {}
    labels: list[tuple[str, pa.Array]] = []
    for name, column in zip(table.column_names, table.unify_dictionaries().columns, strict=True):
        known, cells = name.strip().lower(), column.combine_chunks()
        if known not in _OWN:
            labels.append((name, cells))
        elif own.setdefault(known, cells) is not cells:
            raise SourceError(f"{where}: column {known!r} is there twice; rename one")
    for name in _NEEDED:
        if name not in own:
            raise SourceError(f"{where} has no column {name!r}; it has: {some(table.column_names, 20)}")
    if not len(table):
        raise SourceError(f"{where} has no rows")
    require_label_names(where, [name for name, _ in labels])
    return _Table(where, own, dict(labels), typed)


def _rows_of(
    table: _Table, fields: Sequence[Field], known: Sequence[Place]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that are of known fields, and for each of these rows the number of its field."""
    plate = "" if "plate" in table.own else only_plate(fields, f"{table.where} has no column 'plate'")
    columns = (
        _places(table, "plate", str, plate),
        _places(table, "well", _well, ""),
        _places(table, "field", field_name, ""),
        _places(table, "z", _slice, 0),
        _places(table, "t", _slice, 0),
    )
    numbers = {key: number for number, key in enumerate(known)}
    found = np.fromiter((numbers.get(key, -1) for key in zip(*columns, strict=False)), np.int64)
    rows = np.flatnonzero(found >= 0)
    if not len(rows):
        first: Any = next(zip(*columns, strict=False))
        raise SourceError(
            f"{table.where} has no object of a field of the archive: its first is of {describe_place(first)}, "
            f"the archive has {describe_place(fields[0].place)}"
        )
    if len(rows) < len(found):
        _log.warning("%d of %d rows of %s are of other fields", len(found) - len(rows), len(found), table.where)
    return rows, found[rows]


def _places(table: _Table, name: str, read: Callable[[str], _T], absent: _T) -> Iterable[_T]:
    """What a column says of every row's place."""
    if name not in table.own:
        return itertools.repeat(absent)
    try:
        return _decoded(_as_text(table.own[name]), lambda words: [read((word or "").strip()) for word in words])
    except SourceError as error:
        raise SourceError(f"{table.where}: column {name!r}: {error}") from error


def _as_text(cells: pa.Array) -> pa.DictionaryArray:
    if pa.types.is_floating(cells.type):
        raise SourceError(f"{cells.type}; expected integers or strings")
    return cells if pa.types.is_dictionary(cells.type) else cells.cast(pa.string()).dictionary_encode()


def _decoded(cells: pa.DictionaryArray, read: Callable[[Sequence[str | None]], Sequence[_T]]) -> list[_T]:
    """What is read of the cells' words, each word once."""
    words = [*cells.dictionary.to_pylist(), None]
    codes = cells.indices.fill_null(len(words) - 1).to_numpy()
    used, codes = np.unique(codes, return_inverse=True)
    found = read([words[code] for code in used.tolist()])
    return [found[code] for code in codes.tolist()]


def _types_found(words: Sequence[str | None]) -> Sequence[Label]:
    return typed([(word or "").strip() for word in words])


def _well(text: str) -> str:
    row, column = split_well(text)
    return f"{row}{column}"


def _slice(text: str) -> int:
    if (number := _whole(text)) < 0:
        raise SourceError(f"{reprlib.repr(text)} is not a whole number from 0")
    return number


def _whole(text: str) -> int:
    """A whole number from 0 that fits 64 bits; -1 where it is none."""
    try:
        number = int(text)
    except ValueError:
        return -1
    return number if 0 <= number < 2**63 else -1


def _numbers(table: _Table, rows: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The objects' numbers: those given, or counted from 1 in each group."""
    if "object" not in table.own:
        order = np.argsort(groups, kind="stable")
        numbers = np.empty_like(groups)
        numbers[order] = np.arange(1, len(groups) + 1) - np.searchsorted(groups[order], groups[order])
        return numbers
    numbers = np.array(_places(table, "object", _whole, -1))[rows]
    _require_all(numbers >= 0, table, rows, "object", "a whole number from 0")
    return numbers


def _pixels(table: _Table, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    values = table.values(table.own[name], rows, name)
    pixels = np.array([_float(value) for value in values])
    _require_all((pixels >= 0) & (pixels <= LARGEST_CENTRE), table, rows, name, "pixels from 0 to 2**31")
    return pixels


def _float(value: Label) -> float:
    """NaN where it is none."""
    try:
        return float("nan" if value is None else value)
    except ValueError:
        return float("nan")


def _require_all(fine: NDArray[np.bool_], table: _Table, rows: NDArray[np.int64], name: str, expected: str) -> None:
    if fine.all():
        return
    row = int(rows[np.argmin(fine)])
    said = table.own[name][row].as_py()
    raise SourceError(
        f"{table.at(row)}: {name} is {'missing' if said in (None, '') else reprlib.repr(said)}; expected {expected}"
    )


def _require_distinct(
    table: _Table, rows: NDArray[np.int64], groups: NDArray[np.int64], numbers: NDArray[np.int64]
) -> None:
    """No number is twice in a group; both are sorted."""
    twice = np.flatnonzero((np.diff(groups) == 0) & (np.diff(numbers) == 0))
    if twice.size:
        at = twice[0] + 1
        raise SourceError(f"{table.at(int(rows[at]))}: object {numbers[at]} of its field is there twice; keep one row")


def _runs(groups: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and after last of each run of the same number."""
    edges = np.flatnonzero(np.diff(groups, prepend=-1, append=-1))
    return itertools.pairwise(edges.tolist())


def _widened(cells: pa.Array, what: str) -> pa.Array:
    """Numbers in 64 bits."""
    if pa.types.is_null(cells.type):
        return cells
    try:
        return cells.cast(pa.float64() if pa.types.is_floating(cells.type) else pa.int64())
    except pa.ArrowInvalid as error:
        raise SourceError(f"{what}: {error}; expected numbers below 2**63") from error

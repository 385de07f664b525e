"""Tables of well labels → one row per well. Types are found once, over the whole column.

wells.csv, annotation.csv[.gz], library.txt (tabs)  ──parse──►  Table  ──labels_of──►  (plate, well) → labels
"""

import csv
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bie_stream.errors import SourceError
from bie_stream.shards import SAMPLE_COLUMNS
from shardgen.archive import Label, some, split_well

Labels = dict[tuple[str, str], dict[str, Label]]
LARGEST_TABLE_BYTES = 2**30  # unpacked


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        where: the file's name, for messages.
    """

    where: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> int | None:
        """The number of a column, whatever its case."""
        names = [column.strip().lower() for column in self.header]
        return names.index(name.lower()) if name.lower() in names else None


def parse_table(data: bytes, where: str) -> Table:
    """A table from the bytes of a CSV file, or one with tabs (`.txt`, `.tsv`); `.gz` is unpacked.

    Raises:
        SourceError: it is no such table in UTF-8, or rows have other lengths than the header.
    """
    data, delimiter = unpacked(data, where)
    try:
        text = data.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{where} is not a CSV in UTF-8: {error}") from error
    if not rows:
        raise SourceError(f"{where} is empty")
    header = tuple(rows[0][1])
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise SourceError(f"{where}, line {line}: {len(header)} columns expected, as in the header")
    return Table(where, header, tuple(tuple(row) for _, row in rows[1:]))


def unpacked(data: bytes, where: str) -> tuple[bytes, str]:
    """The text of such a file, and what stands between its cells.

    Raises:
        SourceError: it is damaged, or too large.
    """
    name = where.lower()
    if name.endswith(".gz"):
        data, name = _unpack(data, where), name.removesuffix(".gz")
    return data, "\t" if name.endswith((".txt", ".tsv")) else ","


def join(left: Table, right: Table) -> Table:
    """The left table with the columns of the right one, by the first column that both have; each row stays once.

    Raises:
        SourceError: no column is in both, or the right table has a key twice.
    """
    both = [name for name in right.header if name in left.header]
    if not both:
        raise SourceError(f"{left.where} and {right.where} have no column in common to join them by")
    key, more = both[0], [name for name in right.header if name not in left.header]
    numbers = [right.header.index(name) for name in more]
    found: dict[str, list[str]] = {}
    for row in right.rows:
        value = row[right.header.index(key)]
        if found.setdefault(value, (cells := [row[n] for n in numbers])) != cells:
            raise SourceError(f"{right.where} has {key} {value!r} twice, with different values")
    nothing, at = [""] * len(more), left.header.index(key)
    rows = tuple((*row, *found.get(row[at], nothing)) for row in left.rows)
    return Table(left.where, (*left.header, *more), rows)


def labels_of(table: Table, wells: Iterable[tuple[str, str]], complete: bool = True) -> Labels:
    """Labels of these wells.

    Args:
        table: with a column `well` (A1 or A01), a column `plate` where there is more than one plate, and any label
            columns. An empty cell is no value. A column is int, float (also with decimal commas) or text: the first
            that fits all of its cells.
        wells: the (plate, well) pairs that the archive has.
        complete: whether a well without a row is an error; else it has no values.

    Raises:
        SourceError: a well is missing or named twice, or a column cannot be used.
    """
    wells = list(dict.fromkeys(wells))
    well_column, plate_column = table.column("well"), table.column("plate")
    if well_column is None:
        raise SourceError(f"{table.where} has no column 'well'; it has: {', '.join(table.header) or 'nothing'}")
    columns = [name for n, name in enumerate(table.header) if n not in (well_column, plate_column)]
    require_label_names(table.where, columns)
    plates = sorted({plate for plate, _ in wells})
    if plate_column is None and len(plates) > 1:
        raise SourceError(
            f"{table.where} has no column 'plate', and the archive has {len(plates)} plates: {some(plates)}"
        )
    rows = _by_well(table, well_column, plate_column, plates)
    missing = [f"{plate}/{well}" for plate, well in wells if (plate, well) not in rows]
    if missing and complete:
        named = sorted({plate for plate, _ in rows})
        if not set(plates) & set(named):
            raise SourceError(
                f"{table.where} has {_plates(named)}, the archive has {_plates(plates)}; name them alike, in the table "
                "or by {plate} in --pattern, or by --plate where file names do not say it"
            )
        raise SourceError(
            f"{table.where} lacks {len(missing)} of {len(wells)} wells: {some(missing)}; add a row for each"
        )
    nothing, known = ("",) * len(table.header), set(columns)
    taken = [rows.get(well, nothing) for well in wells]
    values = {name: typed([row[n].strip() for row in taken]) for n, name in enumerate(table.header) if name in known}
    return {well: {name: values[name][i] for name in columns} for i, well in enumerate(wells)}


def _plates(names: Sequence[str]) -> str:
    return f"plate{'s' * (len(names) != 1)} {some(list(names), 3)}"


def require_label_names(where: str, columns: Sequence[str]) -> None:
    """Columns of a table can be label columns.

    Raises:
        SourceError: one is there twice, or is called as one of the sample table's own.
    """
    if doubled := [name for name, times in Counter(columns).items() if times > 1]:
        raise SourceError(f"{where}: column {doubled[0]!r} is there twice; rename one")
    if reserved := [name for name in columns if name in (*SAMPLE_COLUMNS.names, "object", "fold", "shard")]:
        raise SourceError(f"{where}: column {reserved[0]!r} is one of the sample table's own; rename it")


def _by_well(
    table: Table, well_column: int, plate_column: int | None, plates: Sequence[str]
) -> Mapping[tuple[str, str], tuple[str, ...]]:
    wanted = set(plates)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for number, row in enumerate(table.rows, start=2):
        plate = row[plate_column].strip() if plate_column is not None else plates[0]
        if plate not in wanted:
            found.setdefault((plate, ""), row)
            continue
        letter, column = split_well(row[well_column])
        if (plate, f"{letter}{column}") in found:
            raise SourceError(
                f"{table.where}, line {number}: plate {plate} well {letter}{column} is there twice; keep one row"
            )
        found[plate, f"{letter}{column}"] = row
    return found


def typed(cells: Sequence[str]) -> list[Label]:
    """The cells of a column, without blanks around them, as int, float (also with decimal commas) or text: the first
    that fits all of them. An empty cell is no value."""
    kinds: tuple[Callable[[str], Label], ...] = (_int, _float, _decimal_comma)
    for kind in kinds:
        try:
            return [None if cell == "" else kind(cell) for cell in cells]
        except ValueError:
            continue
    return [None if cell == "" else cell for cell in cells]


def _int(cell: str) -> int:
    value = int(cell)
    if str(value) != cell.removeprefix("+") or abs(value) >= 2**63:  # 007 and a long barcode are names, 1_000 a mistake
        raise ValueError(cell)
    return value


def _float(cell: str) -> float:
    value = float(_int(cell)) if cell.lstrip("+-").isdigit() or "_" in cell else float(cell)
    if math.isinf(value) and any(map(str.isdigit, cell)):  # 1e999 is not infinite, only too large
        raise ValueError(cell)
    return value


def _decimal_comma(cell: str) -> float:
    if not re.fullmatch(r"[+-]?\d+(,\d+)?", cell):
        raise ValueError(cell)
    return _float(cell.replace(",", "."))


def _unpack(data: bytes, where: str) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, LARGEST_TABLE_BYTES)
    except zlib.error as error:
        raise SourceError(f"{where} is damaged: {error}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        fault = f"unpacks to more than {LARGEST_TABLE_BYTES >> 20} MiB" if unpacker.unconsumed_tail else "is cut off"
        raise SourceError(f"{where} {fault}")
    return text

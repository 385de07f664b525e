"""A CSV of well labels → one row per well. Types are found once, over the whole column."""

import csv
from collections.abc import Iterable
from pathlib import Path

from bie_stream.errors import SourceError
from bie_stream.shards import SAMPLE_COLUMNS
from shardgen.archive import Label, some, split_well

Labels = dict[tuple[str, str], dict[str, Label]]


def read_labels(path: Path, wells: Iterable[tuple[str, str]]) -> Labels:
    """Labels of these wells.

    Args:
        path: CSV with a column `well` (A1 or A01), a column `plate` where there is more than one plate, and any
            label columns. An empty cell is no value. A column is int, float or text: the first that fits all.
        wells: the (plate, well) pairs that the archive has.

    Raises:
        SourceError: a well is missing or named twice, or a column cannot be used.
    """
    wells = list(dict.fromkeys(wells))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            header = list(reader.fieldnames or [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} is not a CSV in UTF-8: {error}") from error
    names = {name.strip().lower(): name for name in header}
    if "well" not in names:
        raise SourceError(f"{path} has no column 'well'; it has: {', '.join(header) or 'nothing'}")
    columns = [name for name in header if name.strip().lower() not in ("plate", "well")]
    if doubled := [name for name in columns if columns.count(name) > 1]:
        raise SourceError(f"{path}: column {doubled[0]!r} is there twice; rename one")
    reserved = [name for name in columns if name in (*SAMPLE_COLUMNS.names, "shard")]
    if reserved:
        raise SourceError(f"{path}: column {reserved[0]!r} has a name that the sample table uses itself; rename it")

    plates = sorted({plate for plate, _ in wells})
    if "plate" not in names and len(plates) > 1:
        raise SourceError(f"{path} has no column 'plate', and the archive has {len(plates)} plates: {some(plates)}")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        if any(value is None for value in row.values()) or None in row:
            raise SourceError(f"{path}, line {line}: {len(header)} columns expected, as in the header")
        letter, number = split_well(row[names["well"]])
        plate = row[names["plate"]].strip() if "plate" in names else plates[0]
        if (plate, f"{letter}{number}") in found:
            raise SourceError(f"{path}, line {line}: plate {plate} well {letter}{number} is there twice; keep one row")
        found[plate, f"{letter}{number}"] = row

    missing = [f"{plate}/{well}" for plate, well in wells if (plate, well) not in found]
    if missing:
        named = sorted({plate for plate, _ in found})
        hint = f" (the table's plates: {some(named)})" if not set(plates) & set(named) else ""
        raise SourceError(
            f"{path} lacks {len(missing)} of {len(wells)} wells: {some(missing)}{hint}; add a row for each"
        )
    typed = {name: _typed([found[well][name].strip() for well in wells]) for name in columns}
    return {well: {name: typed[name][i] for name in columns} for i, well in enumerate(wells)}


def _typed(cells: list[str]) -> list[Label]:
    for kind in (_int, _float):
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
    return float(_int(cell)) if cell.lstrip("+-").isdigit() or "_" in cell else float(cell)

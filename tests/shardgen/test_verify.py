from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from shardgen.build import build
from shardgen.cli import app
from shardgen.plan import Plan


@pytest.fixture
def dataset(tmp_path: Path, raw: Path, plan_of: Callable[..., Plan]) -> Path:
    build(plan_of(raw, labels=tmp_path / "wells.csv", shard_bytes=4000), tmp_path / "out", workers=1)
    return tmp_path / "out"


def faults(dataset: Path) -> list[str]:
    """Lines that `verify` says of an unsound dataset."""
    result = CliRunner().invoke(app, ["verify", str(dataset)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.replace("\r", "\n").splitlines()
    assert sum(line.startswith("error:") for line in lines) == 1
    return [line for line in lines if line.startswith("fault:")]


def test_a_sound_dataset_is_said_to_be_sound(dataset: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(dataset)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{dataset}: sound\n"


def test_one_flipped_bit_in_a_payload_is_found_and_its_sample_named(dataset: Path) -> None:
    row = pq.read_table(dataset / "shards/000001.parquet").to_pylist()[1]
    tar = dataset / "shards/000001.tar"
    data = bytearray(tar.read_bytes())
    data[row["offset"] + row["size"] - 1] ^= 1
    tar.write_bytes(data)
    found = faults(dataset)
    assert any(row["key"] in fault and "crc32c" in fault for fault in found)
    assert any("sha256" in fault for fault in found)


@pytest.mark.parametrize("left", [0, 1000, 3000])
def test_a_shard_cut_short_is_found(dataset: Path, left: int) -> None:
    tar = dataset / "shards/000000.tar"
    tar.write_bytes(tar.read_bytes()[:left])
    assert any(f"has {left} bytes" in fault for fault in faults(dataset))


@pytest.mark.parametrize("suffix", ["tar", "parquet", "idx"])
def test_a_missing_file_of_a_shard_is_found(dataset: Path, suffix: str) -> None:
    (dataset / f"shards/000001.{suffix}").unlink()
    assert any(f"000001.{suffix}" in fault for fault in faults(dataset))


def edit(dataset: Path, column: str, change: Callable[[list[object]], list[object]]) -> None:
    path = dataset / "shards/000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    edited = pa.array(change(table[column].to_pylist()), table.schema.field(column).type)
    pq.write_table(table.set_column(at, table.schema.field(column), edited), path)


@pytest.mark.parametrize("column", ["key", "offset", "size", "crc32c", "shape", "split", "well", "drug", "dose"])
def test_a_table_whose_values_were_swapped_is_found(dataset: Path, column: str) -> None:
    values = pq.read_table(dataset / "shards/000000.parquet")[column].to_pylist()
    other = {
        "key": "x", "offset": 0, "size": 10, "crc32c": 1, "shape": [1, 12, 16], "split": "nowhere", "well": "H12",
        "drug": "water", "dose": 99,
    }[column]  # fmt: skip
    assert values[0] != other
    edit(dataset, column, lambda values: [other, *values[1:]])
    assert faults(dataset)


def test_a_table_that_lost_rows_or_columns_is_found(dataset: Path) -> None:
    path = dataset / "shards/000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert faults(dataset)
    pq.write_table(table.drop_columns(["key"]), path)
    assert faults(dataset)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("npy 512", "npy 513"), lambda text: text + "x", str.upper]
)
def test_an_index_that_points_elsewhere_is_found(dataset: Path, change: Callable[[str], str]) -> None:
    index = dataset / "shards/000000.idx"
    assert change(index.read_text()) != index.read_text()
    index.write_text(change(index.read_text()))
    assert any("000000.idx" in fault for fault in faults(dataset))


def test_an_index_that_is_no_text_is_found(dataset: Path) -> None:
    (dataset / "shards/000000.idx").write_bytes(b"\xff\xfe\x00")
    assert any("000000.idx" in fault for fault in faults(dataset))


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and then nothing"])
def test_lost_or_damaged_rejects_are_found(dataset: Path, content: bytes | None) -> None:
    (dataset / "rejects.parquet").unlink()
    if content is not None:
        (dataset / "rejects.parquet").write_bytes(content)
    assert any("rejects.parquet" in fault for fault in faults(dataset))


def test_no_dataset_is_an_error_and_no_fault(tmp_path: Path) -> None:
    assert faults(tmp_path) == []

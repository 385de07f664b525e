"""One shard: the same bytes each time, and readable without our code."""

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from bie_stream import codecs
from bie_stream.errors import DatasetError, DatasetNotFound
from bie_stream.shards import (
    MANIFEST,
    SAMPLE_COLUMNS,
    ShardWriter,
    crc32c,
    read_manifest,
    read_table,
    shard_facts,
    tar_path,
)

SCHEMA = SAMPLE_COLUMNS.append(pa.field("phenotype", pa.string()))


def _image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 65535, (2, 7, 5 + number), np.uint16)


def _row(number: int) -> dict[str, object]:
    row = {"key": f"p1_A{number}_f1", "shape": list(_image(number).shape), "plate": "p1", "well": f"A{number}"}
    label = None if number == 1 else "späckled"
    return row | {"field": "1", "z": 0, "t": 0, "top": 0, "left": 0, "split": "train", "phenotype": label}


def _write(root: Path, samples: int = 4, codec: codecs.Codec = "npy") -> Path:
    with ShardWriter(root, "000000", SCHEMA, codec) as writer:
        for number in range(samples):
            writer.add([codecs.encode(_image(number), codec)], _row(number))
        writer.facts = {"note": "kept"}
    return tar_path(root, "000000")


def test_the_checksum_is_that_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(memoryview(bytes(32))) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = _write(tmp_path / "one"), _write(tmp_path / "other")
    for suffix in (".tar", ".idx", ".parquet"):
        assert one.with_suffix(suffix).read_bytes() == other.with_suffix(suffix).read_bytes(), suffix


def test_the_standard_library_reads_the_tar(tmp_path: Path) -> None:
    with tarfile.open(_write(tmp_path)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"p1_A{i}_f1.{e}" for i in range(4) for e in ("npy", "json")]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        for number in range(4):
            pixels, about = tar.extractfile(members[2 * number]), tar.extractfile(members[2 * number + 1])
            assert pixels is not None
            assert about is not None
            np.testing.assert_array_equal(np.load(io.BytesIO(pixels.read())), _image(number))
            assert json.load(about) == {name: value for name, value in _row(number).items() if value is not None}


def test_the_table_says_where_the_tar_has_each_payload(tmp_path: Path) -> None:
    tar = _write(tmp_path)
    table = pq.read_table(tar.with_suffix(".parquet"))
    assert table.schema.equals(SCHEMA)
    with tarfile.open(tar) as opened:
        members = [member for member in opened.getmembers() if member.name.endswith(".npy")]
    assert table["offset"].to_pylist() == [member.offset_data for member in members]
    assert table["size"].to_pylist() == [member.size for member in members]
    assert table["crc32c"].to_pylist() == [crc32c(codecs.encode(_image(number), "npy")) for number in range(4)]
    assert table["phenotype"].to_pylist() == ["späckled", None, "späckled", "späckled"]


def _read_by_webdataset(*tars: Path, decode: bool = True) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the tars it has read to the collector
        urls = [tar.as_posix() for tar in tars]
        reader = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        samples = list(reader.decode() if decode else reader)
        del reader
        gc.collect()
    return samples


def test_webdataset_reads_the_tar(tmp_path: Path) -> None:
    samples = _read_by_webdataset(_write(tmp_path))
    assert [sample["__key__"] for sample in samples] == [f"p1_A{number}_f1" for number in range(4)]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["npy"], _image(number))
        assert sample["json"]["well"] == f"A{number}"


def test_webdataset_reads_what_shardgen_built(plate_dataset: Path) -> None:
    manifest = read_manifest(plate_dataset)
    samples = _read_by_webdataset(*(tar_path(plate_dataset, shard.name) for shard in manifest.shards))
    table = read_table(plate_dataset, manifest)
    assert [sample["__key__"] for sample in samples] == table["key"].to_pylist()
    assert [sample["json"]["phenotype"] for sample in samples] == table["phenotype"].to_pylist()


@pytest.mark.parametrize(
    ("codec", "suffix", "package"),
    [("tif", "tif", "imagecodecs"), ("jph", "jph", "imagecodecs"), ("blosc2", "b2nd", "blosc2")],
)
def test_a_payload_has_the_ending_of_its_codec(tmp_path: Path, codec: codecs.Codec, suffix: str, package: str) -> None:
    pytest.importorskip(package)
    tar = _write(tmp_path, codec=codec)
    with tarfile.open(tar) as opened:
        names = opened.getnames()
    assert names == [f"p1_A{i}_f1.{ending}" for i in range(4) for ending in (suffix, "json")]
    lines = tar.with_suffix(".idx").read_text().splitlines()[1:]
    assert [(line.split()[0], line.split()[3]) for line in lines] == [(suffix, name) for name in names[::2]]
    for number, sample in enumerate(_read_by_webdataset(tar, decode=False)):
        np.testing.assert_array_equal(codecs.decode(memoryview(sample[suffix]), codec), _image(number))


@pytest.mark.parametrize(("codec", "suffix"), [("npy", "npy"), ("tif", "tif")])
def test_dali_reads_the_tar_by_our_index(tmp_path: Path, codec: codecs.Codec, suffix: str) -> None:
    dali = pytest.importorskip("nvidia.dali")
    if codec != "npy":
        pytest.importorskip("imagecodecs")
    tar = _write(tmp_path, codec=codec)

    @dali.pipeline_def(batch_size=4, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]  # DALI has no types
    def graph() -> object:
        return tuple(
            dali.fn.readers.webdataset(
                paths=[str(tar)],
                index_paths=[str(tar.with_suffix(".idx"))],
                ext=[suffix, "json"],
                missing_component_behavior="error",
            )
        )

    pipeline = graph()
    pipeline.build()
    pixels, abouts = pipeline.run()
    for number in range(4):
        payload = memoryview(pixels.at(number).tobytes())
        np.testing.assert_array_equal(codecs.decode(payload, codec), _image(number))
        assert json.loads(abouts.at(number).tobytes())["key"] == f"p1_A{number}_f1"


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, "000000", SCHEMA, "npy") as writer:
            writer.add([codecs.encode(_image(0), "npy")], _row(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "shards").iterdir()) == []
    assert shard_facts(tmp_path, "000000") is None


def test_an_exception_leaves_the_finished_shard_that_was_there(tmp_path: Path) -> None:
    before = _write(tmp_path).read_bytes()

    def interrupted() -> None:
        with ShardWriter(tmp_path, "000000", SCHEMA, "npy"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tar_path(tmp_path, "000000").read_bytes() == before
    assert shard_facts(tmp_path, "000000") is not None


def test_facts_come_back_of_a_finished_shard_only(tmp_path: Path) -> None:
    tar = _write(tmp_path)
    facts = shard_facts(tmp_path, "000000")
    assert facts is not None
    assert (facts["note"], facts["samples"], facts["bytes"]) == ("kept", 4, tar.stat().st_size)
    for suffix in (".idx", ".parquet", ".tar"):
        aside = tar.with_suffix(suffix).rename(tmp_path / "aside")
        assert shard_facts(tmp_path, "000000") is None, suffix
        aside.rename(tar.with_suffix(suffix))
    with tar.open("ab") as file:
        file.write(b"\0")
    assert shard_facts(tmp_path, "000000") is None


def test_no_manifest_is_told_apart_from_an_unfinished_build(own_plate_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="nothing is there"):
        read_manifest(tmp_path / "nowhere")
    (own_plate_dataset / MANIFEST).unlink()
    with pytest.raises(DatasetNotFound, match="its build has not finished"):
        read_manifest(own_plate_dataset)


@pytest.mark.parametrize("damage", ["{", '{"format": "bie-stream", "version": 2}', '{"no_such_key": 1}', "[]"])
def test_a_manifest_of_another_kind_is_refused_in_one_line(own_plate_dataset: Path, damage: str) -> None:
    (own_plate_dataset / MANIFEST).write_text(damage)
    with pytest.raises(DatasetError, match="is not a manifest of version 1") as caught:
        read_manifest(own_plate_dataset)
    assert "\n" not in str(caught.value)

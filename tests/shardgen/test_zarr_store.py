import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from bie_stream.codecs import Pixels
from bie_stream.errors import SourceError, SourceMissing
from shardgen import pixels, zarr_store
from shardgen.archive import Archive, Field, Plane
from shardgen.files import Files, open_files
from shardgen.pixels import open_zarr, probe, read_plane
from shardgen.zarr_store import FilesStore, open_array, read_json

VERSION_2 = {"zarr_format": 2, "shape": [4, 6], "chunks": [4, 6], "dtype": "<u2", "compressor": None, "filters": None}
VERSION_2 |= {"fill_value": 0, "order": "C"}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
VERSION_3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [4, 6], "data_type": "uint16", "fill_value": 0, "codecs": [BYTES],
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 6]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
}  # fmt: skip


def sharded(*codecs: object) -> list[dict[str, Any]]:
    about = {"chunk_shape": [2, 2], "codecs": list(codecs), "index_codecs": [BYTES, {"name": "crc32c"}]}
    return [{"name": "sharding_indexed", "configuration": about}]


def grid(chunk: list[int]) -> dict[str, Any]:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}}}


def described(folder: Path, metadata: object) -> Path:
    """A folder with an array's metadata and no chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    version = metadata.get("zarr_format") if isinstance(metadata, dict) else 2
    (folder / ("zarr.json" if version == 3 else ".zarray")).write_text(json.dumps(metadata))
    return folder


def written(folder: Path, data: np.ndarray[Any, Any], version: int, **how: Any) -> Path:
    array = zarr.create_array(str(folder), shape=data.shape, dtype=data.dtype, zarr_format=version, **how)  # type: ignore[arg-type]
    array[...] = data
    return folder


def random(*shape: int, dtype: str = "uint16") -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[1]", "expected a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_metadata_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / ".zattrs").write_bytes(text)
    with pytest.raises(SourceError, match=said):
        read_json(open_files(tmp_path), ".zattrs")


def test_metadata_of_more_than_64_mib_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "zarr.json").open("wb") as file:
        file.truncate(zarr_store.LARGEST_METADATA_BYTES + 1)
    with pytest.raises(SourceError, match="larger than 64 MiB"):
        open_array(open_files(tmp_path), "")


def test_where_no_array_is_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="nothing/0 is no Zarr array"):
        open_array(open_files(tmp_path), "nothing/0")


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def _read(files: Files, plane: Plane, dtype: str, shape: tuple[int, int]) -> Pixels:
    out = np.empty(shape, dtype)
    read_plane(files, plane, "zarr", out)
    return out


@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize("dtype", ["<u2", "|O"])
def test_nothing_is_unpickled(tmp_path: Path, dtype: str, where: str) -> None:
    codec = {"id": "pickle", "protocol": 4}
    folder = described(tmp_path / "a", {**VERSION_2, "dtype": dtype, where: [codec] if where == "filters" else codec})
    (folder / "0.0").write_bytes(pickle.dumps(Opens(tmp_path / "opened")))
    with pytest.raises(SourceError, match="not a readable Zarr array"):
        _read(open_files(tmp_path), Plane("a"), "uint16", (4, 6))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "metadata",
    [
        {**VERSION_2, "dtype": "|O", "filters": [{"id": "vlen-utf8"}]},
        {**VERSION_2, "dtype": "<U4"},
        {**VERSION_2, "dtype": "<c8"},
        {**VERSION_2, "dtype": "<M8[s]"},
        {**VERSION_2, "dtype": [["a", "<u2"]]},
        {**VERSION_2, "dtype": 2},
        {**VERSION_2, "compressor": {"id": "no-such-codec"}},
        {**VERSION_2, "compressor": {"id": ["gzip"]}},
        {**VERSION_2, "compressor": "gzip"},
        {**VERSION_2, "filters": [{"id": "delta", "dtype": "O"}]},
        {**VERSION_2, "filters": [{"id": "astype", "encode_dtype": "O", "decode_dtype": "<u2"}]},
        {**VERSION_2, "filters": 5},
        {**VERSION_2, "shape": [4]},
        {**VERSION_2, "shape": [], "chunks": []},
        {**VERSION_2, "shape": [24], "chunks": [24]},
        {**VERSION_2, "chunks": [0, 6]},
        {**VERSION_2, "shape": [4, 0]},
        {**VERSION_2, "shape": [4, -6]},
        {**VERSION_2, "shape": [4, 10**400]},
        {**VERSION_2, "shape": [4, 6.5]},
        {**VERSION_2, "shape": "46"},
        {**VERSION_2, "shape": None},
        {**VERSION_2, "fill_value": {"a": 1}},
        {**VERSION_2, "order": "Z"},
        {**VERSION_2, "dimension_separator": "../"},
        {**VERSION_2, "zarr_format": 7},
        {},
        {**VERSION_3, "node_type": "group"},
        {**VERSION_3, "data_type": "complex64"},
        {**VERSION_3, "data_type": "variable_length_bytes"},
        {**VERSION_3, "data_type": {"name": "numpy.datetime64", "configuration": {"unit": "s", "scale_factor": 1}}},
        {**VERSION_3, "codecs": [{"name": "vlen-bytes"}]},
        {**VERSION_3, "codecs": [BYTES, {"name": "numcodecs.pickle"}]},
        {**VERSION_3, "codecs": [BYTES, {"name": {"a": []}}]},
        {**VERSION_3, "codecs": [BYTES, 7]},
        {**VERSION_3, "codecs": None},
        {**VERSION_3, "codecs": []},
        {**VERSION_3, "codecs": sharded(*sharded(BYTES))},
        {**VERSION_3, "codecs": sharded(BYTES, {"name": "numcodecs.pickle"})},
        {**VERSION_3, "codecs": [{"name": "sharding_indexed"}]},
        {**VERSION_3, "codecs": [*sharded(BYTES), {"name": "gzip", "configuration": {"level": 1}}]},
        {**VERSION_3, **grid([0, 6])},
        {**VERSION_3, "chunk_grid": {"name": "rectilinear", "configuration": {}}},
        {**VERSION_3, "chunk_key_encoding": {"name": "../", "configuration": {}}},
        {"zarr_format": 3},
    ],
    ids=str,
)
def test_metadata_of_an_array_that_cannot_be_read_is_a_source_error(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(SourceError):
        open_array(open_files(described(tmp_path, metadata)), "")


@pytest.mark.parametrize(
    ("version", "how"),
    [
        (2, {"compressors": None}),
        (2, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
        (2, {"filters": [numcodecs.Delta("<u2")], "compressors": numcodecs.Zlib()}),
        (2, {"filters": [numcodecs.Shuffle(2)], "compressors": numcodecs.Blosc()}),
        (2, {"order": "F", "compressors": numcodecs.GZip()}),
        (3, {}),
        (3, {"shards": (3, 8, 10)}),
        (3, {"compressors": [{"name": "gzip", "configuration": {"level": 1}}, {"name": "crc32c"}]}),
        (3, {"filters": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}]}),
    ],
    ids=str,
)
def test_every_plane_is_what_zarr_reads(tmp_path: Path, version: int, how: dict[str, Any]) -> None:
    folder = written(tmp_path / "a", random(3, 11, 13), version, chunks=(1, 4, 5), **how)
    expected = zarr.open_array(str(folder), mode="r")
    for c in range(3):
        found = _read(open_files(tmp_path), Plane("a", (c,)), "uint16", (11, 13))
        np.testing.assert_array_equal(found, np.asarray(expected[c]))


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<u2", "|u1"])
def test_pixels_come_in_the_byte_order_of_the_machine(tmp_path: Path, dtype: str) -> None:
    data = random(2, 5, 7, dtype=dtype)
    written(tmp_path / "a", data, 2, chunks=(1, 5, 7))
    assert json.loads((tmp_path / "a" / ".zarray").read_text())["dtype"] == dtype
    field = Field("p", "A1", "1", 0, 0, ((Plane("a", (1,)),),))
    archive = Archive(open_files(tmp_path), "s", "s", (), (field,), "zarr")
    known, shape = probe(archive)
    assert (known, shape) == (data.dtype.name, (5, 7))
    found = _read(archive.files, Plane("a", (1,)), known, shape)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, data[1])


def test_an_empty_list_of_filters_is_none_and_attributes_are_not_read(tmp_path: Path) -> None:
    described(tmp_path, {**VERSION_2, "filters": [], "fill_value": 3})
    (tmp_path / ".zattrs").write_text("no JSON")
    found = _read(open_files(tmp_path), Plane(""), "uint16", (4, 6))
    np.testing.assert_array_equal(found, np.full((4, 6), 3))  # where a chunk is absent its pixels are the fill value


@pytest.mark.parametrize("index", [(), (3,), (0, 0), (-1,)])
def test_a_plane_that_the_array_does_not_have_is_an_error(tmp_path: Path, index: tuple[int, ...]) -> None:
    written(tmp_path / "a", random(3, 4, 6), 3, chunks=(1, 4, 6))
    with pytest.raises(SourceError, match="no plane"):
        _read(open_files(tmp_path), Plane("a", index), "uint16", (4, 6))


@pytest.mark.parametrize(
    "metadata",
    [
        {**VERSION_2, "shape": [2**20, 2**20], "chunks": [2**20, 2**20]},
        {**VERSION_2, "chunks": [2**20, 2**20]},
        {**VERSION_2, "shape": [1000, 1000], "chunks": [1, 1]},
        {**VERSION_3, **grid([2**13, 2**13]), "codecs": sharded(BYTES)},
    ],
    ids=["plane", "chunk", "many chunks", "index of a shard"],
)
def test_what_would_take_the_memory_or_never_end_is_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    out = np.broadcast_to(np.uint16(0), metadata["shape"])  # takes no memory
    with pytest.raises(SourceError, match=r"may take 1024 MiB, a plane 65536 chunks"):
        read_plane(open_files(described(tmp_path, metadata)), Plane(""), "zarr", out)


@pytest.mark.parametrize("shards", [None, (1, 8, 8)])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_chunk_is_an_error(tmp_path: Path, damage: bytes | None, shards: tuple[int, ...] | None) -> None:
    folder = written(tmp_path / "a", random(1, 8, 8), 3, chunks=(1, 4, 4), shards=shards)
    chunk = folder / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-7] if damage is None else damage)
    with pytest.raises(SourceError, match="is damaged"):
        _read(open_files(tmp_path), Plane("a", (0,)), "uint16", (8, 8))


def test_the_same_files_are_the_same_store(tmp_path: Path) -> None:
    one, same = FilesStore(open_files(tmp_path)), FilesStore(open_files(tmp_path))
    assert one == same
    assert hash(one) == hash(same)
    assert one != FilesStore(open_files(tmp_path / "other"))


def test_a_store_gives_the_part_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"0123456789")
    parts = [
        (RangeByteRequest(2, 5), b"234"),
        (RangeByteRequest(4, 4), b""),
        (OffsetByteRequest(7), b"789"),
        (SuffixByteRequest(3), b"789"),
        (None, b"0123456789"),
    ]

    async def ask() -> list[bytes]:
        store = FilesStore(open_files(tmp_path))
        found = await store.get_partial_values(default_buffer_prototype(), [("k", part) for part, _ in parts])
        assert await store.get("nothing", default_buffer_prototype()) is None
        assert (await store.exists("k"), await store.exists("nothing")) == (True, False)
        return [part.to_bytes() for part in found if part is not None]

    assert asyncio.run(ask()) == [expected for _, expected in parts]


@pytest.mark.parametrize("part", [RangeByteRequest(8, 12), SuffixByteRequest(11)])
def test_fewer_bytes_than_asked_for_are_an_error(tmp_path: Path, part: RangeByteRequest | SuffixByteRequest) -> None:
    (tmp_path / "k").write_bytes(b"0123456789")
    with pytest.raises(SourceError, match="k is damaged"):
        asyncio.run(FilesStore(open_files(tmp_path)).get("k", default_buffer_prototype(), part))


def test_an_array_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a", random(4, 6), 3)
    assert open_zarr(open_files(tmp_path), "a") is open_zarr(open_files(tmp_path), "a")
    assert pixels.open_zarr.cache_info().hits

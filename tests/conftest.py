"""Fixtures that several packages share: a small plate on disk, and datasets made of given images."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bie_stream import codecs, synth
from bie_stream.shards import (
    SAMPLE_COLUMNS,
    Channel,
    ChannelStatistics,
    Manifest,
    PlateStatistics,
    ShardEntry,
    ShardWriter,
    shard_facts,
    write_manifest,
)
from shardgen.build import build
from shardgen.pixels import probe
from shardgen.plan import Options, make_plan
from shardgen.studies import demo

WriteDataset = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test keeps what it reads of object stores: not in the home of who runs it."""
    monkeypatch.setenv("BIE_STREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def plate_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a raw archive: 10 wells of one field, 3 channels of 64 x 64 uint16 TIFFs, and `wells.csv`."""
    plate = synth.Plate(wells_per_phenotype=2, fields=1, size=64)
    return demo.write(tmp_path_factory.mktemp("plate") / "raw", plate)


@pytest.fixture(scope="session")
def plate_dataset(plate_archive: Path) -> Path:
    """Folder of the dataset built from that archive: 10 whole fields in 3 shards. Not to be changed."""
    archive = demo.find(plate_archive)
    plan = make_plan(archive, Options(tile=None, shard_bytes=100_000), *probe(archive))
    build(plan, plate_archive.parent / "dataset", workers=1)
    return plate_archive.parent / "dataset"


@pytest.fixture
def own_plate_dataset(plate_dataset: Path, tmp_path: Path) -> Path:
    """A copy of that dataset, for a test that damages it."""
    return shutil.copytree(plate_dataset, tmp_path / "own")


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """A function that writes [C, Y, X] images, of any shapes, as a dataset of one shard; `codec=` other than npy.

    With `plates=`, their names of plates, the manifest has the statistics of each.
    """

    def write(
        images: Sequence[npt.NDArray[np.generic]], codec: codecs.Codec = "npy", plates: Sequence[str] | None = None
    ) -> Path:
        root = tmp_path / "written"
        with ShardWriter(root, "000000", SAMPLE_COLUMNS, codec) as writer:
            for i, image in enumerate(images):
                row = {
                    "key": f"s{i}",
                    "shape": list(image.shape),
                    "plate": plates[i] if plates else "p",
                    "well": f"A{i + 1}",
                    "field": "1",
                }
                writer.add([codecs.encode(image, codec)], row | {"z": 0, "t": 0, "top": 0, "left": 0, "split": "train"})
        facts = shard_facts(root, "000000")
        assert facts is not None
        pixels = [np.concatenate([image[c].ravel() for image in images]) for c in range(len(images[0]))]
        statistics = [
            ChannelStatistics(
                mean=float(p.mean(dtype=np.float64)),
                std=float(p.std(dtype=np.float64)),
                minimum=float(p.min()),
                maximum=float(p.max()),
                percentiles={},
            )
            for p in pixels
        ]
        manifest = Manifest(
            study="written",
            source="test",
            licence=None,
            citation=None,
            channels=tuple(Channel(name=f"c{c}") for c in range(len(pixels))),
            dtype=images[0].dtype.name,
            pixel_size_um=None,
            codec=codec,
            samples=len(images),
            splits={"train": len(images)},
            labels=(),
            rejected=0,
            statistics=tuple(statistics),
            plates={name: _of_plate(images, plates, name) for name in sorted(set(plates or []))},
            shards=(ShardEntry(name="000000", **{key: facts[key] for key in ("samples", "bytes", "sha256")}),),
            options={},
            plan_sha256="0" * 64,
        )
        write_manifest(root, manifest)
        return root

    return write


def _of_plate(
    images: Sequence[npt.NDArray[np.generic]], plates: Sequence[str] | None, name: str
) -> tuple[PlateStatistics, ...]:
    own = np.stack([image for image, plate in zip(images, plates or [], strict=True) if plate == name])
    channels = own.swapaxes(0, 1).reshape(own.shape[1], -1).astype(np.float64)
    return tuple(PlateStatistics(mean=float(c.mean()), std=float(c.std())) for c in channels)

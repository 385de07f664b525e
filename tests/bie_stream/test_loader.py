"""The loader's promises, on the native back end and on DALI's CPU back end.

Native and DALI agree bit for bit without normalisation and with the dataset's; per-image normalisation sums in
another order, and agrees to 2e-5 standard deviations.
"""

import hashlib
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bie_stream
from bie_stream import Augment, Batch, Dataset, DatasetError, Loader, SampleError, codecs
from bie_stream.augment import NO_AUGMENT
from bie_stream.loader import bottleneck
from bie_stream.normalise import Normalise, normalisation
from bie_stream.normalise import apply as normalise_pixels
from bie_stream.shards import tar_path

WriteDataset = Callable[..., Path]

needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
BACKENDS = ["native", pytest.param("dali", marks=needs_dali)]
AUGMENTS = [
    Augment(), Augment(flip=False), Augment(quarter_turn=False), Augment(crop_anywhere=False, flip=False),
]  # fmt: skip


@pytest.fixture
def plates(plate_dataset: Path) -> Dataset:
    return bie_stream.open(plate_dataset)


def _images(batches: Sequence[Batch]) -> npt.NDArray[np.float32]:
    return torch.cat([batch.images for batch in batches]).numpy()


def _ids(batches: Sequence[Batch]) -> list[int]:
    return [int(sample) for batch in batches for sample in batch.ids[batch.valid]]


def _damage(root: Path, *samples: int) -> None:
    rows = bie_stream.open(root).table.to_pylist()
    for sample in samples:
        with tar_path(root, f"{rows[sample]['shard']:06d}").open("rb+") as file:
            file.seek(rows[sample]["offset"] + 200)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 255]))


def _symmetries(image: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """The image [C, Y, X] as seen in each of the eight symmetries of the square."""
    return [np.rot90(seen, k, axes=(1, 2)) for seen in (image, image[:, :, ::-1]) for k in range(4)]


def _places(view: npt.NDArray[np.float32], sample: npt.NDArray[np.generic]) -> list[tuple[int, int]]:
    """Every corner at which one of the symmetries of the view is cut out of the sample."""
    side = view.shape[-1]
    found = []
    for seen in _symmetries(view):
        tops, lefts = (limit - side + 1 for limit in sample.shape[1:])
        corners = np.argwhere(sample[0, :tops, :lefts] == seen[0, 0, 0])
        for top, left in corners:
            if np.array_equal(sample[:, top : top + side, left : left + side], seen):
                found.append((int(top), int(left)))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_image_is_a_turned_crop_of_its_own_sample(plates: Dataset, backend: Any) -> None:
    loader = Loader(plates, batch_size=5, crop=48, normalise="none", backend=backend, threads=2)
    places = []
    for batch in loader:
        for image, sample in zip(batch.images.numpy(), batch.ids.tolist(), strict=True):
            (place,) = _places(image, plates[sample])
            places.append(place)
    assert len(places) == 10
    assert len(set(places)) > 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_evaluation_image_is_the_centre_of_its_sample(plates: Dataset, backend: Any) -> None:
    loader = Loader(plates, batch_size=5, crop=49, normalise="none", training=False, backend=backend, threads=2)
    expected = np.stack([plates[i][:, 7:56, 7:56] for i in range(10)])
    np.testing.assert_array_equal(_images(list(loader)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dataset_normalisation_is_the_z_score_of_the_raw_pixels(plates: Dataset, backend: Any) -> None:
    pixels = np.stack([plates[i] for i in range(10)]).astype(np.float64)
    expected = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    loader = Loader(plates, batch_size=5, training=False, backend=backend, threads=2)
    np.testing.assert_allclose(_images(list(loader)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_normalisation_is_the_z_score_of_the_crop(plates: Dataset, backend: Any) -> None:
    pixels = np.stack([plates[i][:, 8:56, 8:56] for i in range(10)]).astype(np.float64)
    expected = (pixels - pixels.mean((2, 3), keepdims=True)) / pixels.std((2, 3), keepdims=True)
    loader = Loader(plates, batch_size=5, crop=48, normalise="image", training=False, backend=backend, threads=2)
    got = _images(list(loader))
    scale = pixels.std((2, 3)) / pixels.std((0, 2, 3))  # in units of the dataset's deviation
    tolerance = (1e-4 / scale**2 * 10).clip(1e-3)[:, :, None, None]  # what the variance floor may change
    assert (np.abs(got - expected) <= tolerance).all()


@needs_dali
@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: "-".join(map(str, astuple(augment))))
@pytest.mark.parametrize(("normalise", "tolerance"), [("none", 0), ("dataset", 0), ("image", 2e-5)])
def test_native_and_dali_give_the_same_images(
    plate_dataset: Path, normalise: Normalise, tolerance: float, augment: Augment
) -> None:
    plates = bie_stream.open(plate_dataset, channels=["Actin", "DNA"])
    asked: dict[str, Any] = {"crop": 48, "normalise": normalise, "augment": augment, "seed": 5, "threads": 2}
    native, dali = (list(Loader(plates, 2, backend=backend, **asked)) for backend in ("native", "dali"))
    assert _ids(native) == _ids(dali)
    assert _images(native).shape == (10, 2, 48, 48)
    np.testing.assert_allclose(_images(dali), _images(native), rtol=0, atol=tolerance)


@needs_dali
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_native_and_dali_agree_on_samples_of_any_shape_and_dtype(
    write_dataset: WriteDataset, dtype: str, training: bool
) -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 20, 40), (2, 40, 20), (2, 17, 17), (2, 64, 16), (2, 16, 16)]
    dataset = bie_stream.open(write_dataset([(rng.random(shape) * 255).astype(dtype) for shape in shapes]))
    native, dali = (
        list(Loader(dataset, 2, crop=16, training=training, backend=backend, threads=2))
        for backend in ("native", "dali")
    )
    assert len(native) == (2 if training else 3)
    np.testing.assert_array_equal(_images(dali), _images(native))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("codec", "package", "dtype"),
    [("tif", "imagecodecs", "uint16"), ("tif", "imagecodecs", "float32"), ("jph", "imagecodecs", "uint16"),
     ("jph", "imagecodecs", "uint8"), ("blosc2", "blosc2", "uint16"), ("blosc2", "blosc2", "float32")],
)  # fmt: skip
def test_every_codec_gives_the_images_that_npy_gives(
    write_dataset: WriteDataset, codec: str, package: str, dtype: str, backend: Any
) -> None:
    pytest.importorskip(package)
    rng = np.random.default_rng(0)
    images = [(rng.random((5, side, 64)) * 255).astype(dtype) for side in (40, 64, 33, 48)]
    asked: dict[str, Any] = {"crop": 32, "seed": 3, "threads": 2}
    dataset = bie_stream.open(write_dataset(images))
    expected = list(Loader(dataset, 2, backend="native", **asked))
    dataset = bie_stream.open(write_dataset(images, codec=codec), channels=["c0", "c1", "c2", "c3", "c4"])
    batches = list(Loader(dataset, 2, backend=backend, **asked))
    assert _ids(batches) == _ids(expected)
    np.testing.assert_array_equal(_images(batches), _images(expected))
    np.testing.assert_array_equal(dataset[1], images[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("codec", "package"), [("npy", "numpy"), ("tif", "imagecodecs"), ("jph", "imagecodecs"), ("blosc2", "blosc2")]
)
def test_one_to_eight_channels_of_every_dtype_and_codec_are_those_of_the_microscope_to_the_bit(
    write_dataset: WriteDataset, codec: str, package: str, dtype: str, backend: Any
) -> None:
    pytest.importorskip(package)
    if (codec, dtype) == ("jph", "float32"):
        pytest.skip("jph does not take float32")
    rng = np.random.default_rng(1)
    asked: dict[str, Any] = {"normalise": "none", "training": False, "backend": backend, "threads": 2}
    for channels in range(1, 9):
        shape = (channels, 24, 33)
        if dtype == "float32":
            images = [rng.normal(0, 1e3, shape).astype(dtype) for _ in range(3)]
        else:
            images = [rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True) for _ in range(3)]
        root = write_dataset(images, codec=codec)
        (batch,) = Loader(bie_stream.open(root), 3, **asked)
        np.testing.assert_array_equal(batch.images, np.stack(images).astype(np.float32))
        order = [f"c{c}" for c in rng.permutation(channels)[: max(1, channels - 1)]]
        (batch,) = Loader(bie_stream.open(root, channels=order), 3, **asked)
        expected = np.stack(images)[:, [int(name[1]) for name in order]]
        np.testing.assert_array_equal(batch.images, expected.astype(np.float32))
        shutil.rmtree(root)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("codec", "package"), [("npy", "numpy"), ("tif", "imagecodecs"), ("blosc2", "blosc2")])
def test_a_payload_that_is_not_what_the_table_says_of_its_shape_is_a_sample_error(
    write_dataset: WriteDataset, codec: str, package: str, backend: Any
) -> None:
    pytest.importorskip(package)
    root = write_dataset([np.zeros((2, 16, 16), np.uint16)] * 2, codec=codec)
    table = tar_path(root, "000000").with_suffix(".parquet")
    rows = pq.read_table(table)
    shapes = pa.array([[2, 16, 32]] * 2, rows.schema.field("shape").type)
    at = rows.schema.get_field_index("shape")
    pq.write_table(rows.set_column(at, rows.schema.field("shape"), shapes), table)
    if backend == "dali" and codec == "npy":
        pytest.skip("DALI decodes npy itself")
    with pytest.raises((SampleError, DatasetError), match=r"uint16 \[2, 16, 16\], the table says uint16 \[2, 16, 32\]"):
        list(Loader(bie_stream.open(root), 2, crop=16, backend=backend, normalise="none", threads=2))


@pytest.mark.parametrize("prefetch_batches", [0, 1, 2, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_and_batches_ahead_change_nothing(plates: Dataset, backend: Any, prefetch_batches: int) -> None:
    plain = list(Loader(plates, 2, crop=32, backend="native", threads=1, prefetch_batches=0))
    batches = list(Loader(plates, 2, crop=32, backend=backend, threads=3, prefetch_batches=prefetch_batches))
    assert _ids(batches) == _ids(plain)
    np.testing.assert_array_equal(_images(batches), _images(plain))


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_sample_comes_once_an_epoch_and_in_another_order_the_next(plates: Dataset, world_size: int) -> None:
    loaders = [Loader(plates, 2, crop=32, rank=rank, world_size=world_size) for rank in range(world_size)]
    epochs = [[sample for loader in loaders for sample in _ids(list(loader))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sample_has_another_view_in_the_next_epoch_and_under_another_seed(plates: Dataset) -> None:
    loader, other = Loader(plates, 2, crop=32), Loader(plates, 2, crop=32, seed=1)
    runs = [list(loader), list(loader), list(other)]
    first, second, reseeded = (_images(run)[np.argsort(_ids(run))] for run in runs)
    for views in (second, reseeded):
        assert sum(np.array_equal(one, two) for one, two in zip(first, views, strict=True)) <= 1


def test_a_partial_batch_is_left_out_of_training(plates: Dataset) -> None:
    loader = Loader(plates, 4, crop=32)
    ids = _ids(list(loader))
    assert loader.steps_per_epoch == 2
    assert len(ids) == len(set(ids)) == 8


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_has_the_same_number_of_steps(plates: Dataset, world_size: int, training: bool) -> None:
    loaders = [Loader(plates, 4, training=training, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(loader) for loader in loaders]
    assert {len(of_rank) for of_rank in batches} == {loader.steps_per_epoch for loader in loaders}
    assert {tuple(batch.images.shape) for of_rank in batches for batch in of_rank} == {(4 // world_size, 3, 64, 64)}
    ids = [sample for of_rank in batches for sample in _ids(of_rank)]
    assert len(ids) == len(set(ids)) == (8 if training else 10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_comes_in_order_and_fills_up_with_rows_that_are_not_valid(plates: Dataset, backend: Any) -> None:
    batches = list(Loader(plates, 4, training=False, backend=backend, threads=2))
    assert _ids(batches) == list(range(10))
    assert [batch.valid.tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert {tuple(batch.images.shape) for batch in batches} == {(4, 3, 64, 64)}


@pytest.mark.parametrize(
    "other",
    [{"threads": 1}, {"threads": 3, "prefetch_batches": 0}, pytest.param({"backend": "dali"}, marks=needs_dali)],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_run_goes_on_exactly_under_any_world_size_threads_and_back_end(
    plates: Dataset, world_size: int, other: dict[str, Any]
) -> None:
    straight = Loader(plates, 2, crop=48, seed=8, backend="native")
    whole = [batch for _ in range(3) for batch in straight]

    stopped = Loader(plates, 2, crop=48, seed=8, backend="native")
    for _ in stopped:
        pass
    for _, _batch in zip(range(2), stopped, strict=False):
        state = stopped.state_dict()
    assert state == {"seed": 8, "epoch": 1, "consumed": 4}

    ranks = [Loader(plates, 2, crop=48, rank=rank, world_size=world_size, **other) for rank in range(world_size)]
    for loader in ranks:
        loader.load_state_dict(state)
    rest = [list(step) for _ in range(2) for step in zip(*ranks, strict=True)]
    assert len(rest) == len(whole[7:]) == 8
    for parts, batch in zip(rest, whole[7:], strict=True):
        assert _ids(parts) == batch.ids.tolist()
        np.testing.assert_array_equal(_images(parts), batch.images.numpy())


LOOP = """
import hashlib, json, pathlib, sys
import bie_stream

folder = pathlib.Path(sys.argv[2])
loader = bie_stream.Loader(bie_stream.open(sys.argv[1]), 2, crop=48, seed=21, backend=sys.argv[3], threads=2)
while True:
    for batch in loader:
        seen = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()
        print(json.dumps([loader.state_dict(), batch.ids.tolist(), seen]), flush=True)
"""


@pytest.mark.parametrize(
    ("killed", "backend", "world_size", "threads"),
    [("native", "native", 2, 3), pytest.param("native", "dali", 1, 2, marks=needs_dali),
     pytest.param("dali", "native", 2, 1, marks=needs_dali)],
)  # fmt: skip
def test_a_process_killed_at_any_step_is_gone_on_with_to_the_bit(
    plate_dataset: Path, tmp_path: Path, killed: str, backend: Any, world_size: int, threads: int
) -> None:
    command = [sys.executable, "-c", LOOP, str(plate_dataset), str(tmp_path), killed]
    steps = random.Random(backend + str(world_size)).randrange(3, 17)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(steps)]
        process.send_signal(signal.SIGKILL)
    straight = Loader(bie_stream.open(plate_dataset), 2, crop=48, seed=21, backend="native")
    whole = [batch for _ in range(5) for batch in straight]
    for (_, ids, seen), batch in zip(lines, whole[:steps], strict=True):
        assert ids == batch.ids.tolist()
        assert seen == hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()
    ranks = [
        Loader(
            bie_stream.open(plate_dataset), 2, crop=48, rank=rank, world_size=world_size, backend=backend,
            threads=threads,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for loader in ranks:
        loader.load_state_dict(lines[-1][0])
    rest = [list(parts) for _ in range(2) for parts in zip(*ranks, strict=True)]
    for parts, batch in zip(rest, whole[steps : steps + len(rest)], strict=True):
        assert _ids(parts) == batch.ids.tolist()
        np.testing.assert_array_equal(_images(parts), batch.images.numpy())


def test_a_loop_that_was_left_goes_on_with_the_rest_of_the_epoch(plates: Dataset) -> None:
    loader = Loader(plates, 2, crop=32)
    seen = []
    for batch in loader:
        seen.append(batch)
        if len(seen) == 2:
            break
    seen += list(loader)
    assert sorted(_ids(seen)) == list(range(10))
    assert loader.state_dict() == {"seed": 0, "epoch": 1, "consumed": 0}


def test_a_state_taken_after_the_last_batch_leads_to_the_next_epoch(plates: Dataset) -> None:
    loader = Loader(plates, 4, crop=32)
    states = [loader.state_dict() for _ in loader]
    assert states[-1] == {"seed": 0, "epoch": 0, "consumed": 8}
    resumed = Loader(plates, 4, crop=32, seed=99)
    resumed.load_state_dict(states[-1])
    assert resumed.state_dict() == {"seed": 0, "epoch": 1, "consumed": 0}
    assert _ids(list(resumed)) == _ids(list(loader))


def test_a_state_of_another_batch_size_is_refused(plates: Dataset) -> None:
    with pytest.raises(DatasetError, match="resume with the batch_size it was saved with"):
        Loader(plates, 4).load_state_dict({"seed": 0, "epoch": 0, "consumed": 6})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_sample_is_replaced_counted_and_reported_in_training(
    own_plate_dataset: Path, plates: Dataset, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _damage(own_plate_dataset, 3)
    asked: dict[str, Any] = {"crop": 48, "backend": backend, "threads": 2}
    loader = Loader(bie_stream.open(own_plate_dataset), 5, max_bad_fraction=0.1, **asked)
    epochs = [list(loader) for _ in range(2)]
    for batches in epochs:
        assert Counter(_ids(batches)) == Counter([0, 1, 2, 4, 4, 5, 6, 7, 8, 9])
        assert all(batch.valid.all() for batch in batches)
    assert [(bad["dataset"], bad["id"]) for bad in loader.report()["bad_samples"]] == [(0, 3)]
    assert [record.levelname for record in caplog.records if "sample left out" in record.message] == ["WARNING"]
    # All others are as they would have been.
    sound = list(Loader(plates, 5, **asked))
    keep = np.array(_ids(sound)) != 3
    np.testing.assert_array_equal(np.array(_ids(epochs[0]))[keep], np.array(_ids(sound))[keep])
    np.testing.assert_array_equal(_images(epochs[0])[keep], _images(sound)[keep])


@pytest.mark.parametrize(("damaged", "allowed"), [((3,), 0.01), ((3, 4), 0.1)])
def test_one_bad_sample_past_the_budget_stops_training(
    own_plate_dataset: Path, damaged: tuple[int, ...], allowed: float
) -> None:
    _damage(own_plate_dataset, *damaged)
    loader = Loader(bie_stream.open(own_plate_dataset), 5, max_bad_fraction=allowed)
    with pytest.raises(DatasetError, match=f"{len(damaged)} unreadable samples, at most {len(damaged) - 1} of 10"):
        list(loader)


def test_a_dataset_without_a_readable_sample_ends_with_an_error_under_any_budget(own_plate_dataset: Path) -> None:
    _damage(own_plate_dataset, *range(10))
    with pytest.raises(DatasetError, match="10 unreadable samples, at most 9 of 10"):
        list(Loader(bie_stream.open(own_plate_dataset), 5, max_bad_fraction=1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_tolerates_no_bad_sample(own_plate_dataset: Path, backend: Any) -> None:
    _damage(own_plate_dataset, 3)
    loader = Loader(
        bie_stream.open(own_plate_dataset), 5, training=False, max_bad_fraction=0.5, backend=backend, threads=2
    )
    with pytest.raises(DatasetError, match="1 unreadable samples, at most 0 of 10"):
        list(loader)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_come_in_the_dtype_asked(plates: Dataset, backend: Any) -> None:
    asked: dict[str, Any] = {"crop": 32, "backend": backend, "threads": 2}
    half = list(Loader(plates, 5, dtype=torch.bfloat16, **asked))
    full = list(Loader(plates, 5, **asked))
    assert {batch.images.dtype for batch in half} == {torch.bfloat16}
    assert {batch.images.dtype for batch in full} == {torch.float32}
    for one, other in zip(half, full, strict=True):
        assert torch.equal(one.images, other.images.to(torch.bfloat16))


def test_a_batch_stays_as_it_was_when_the_next_ones_come(plates: Dataset) -> None:
    loader = Loader(plates, 2, crop=32)
    kept = [(batch.images, batch.images.clone()) for batch in loader]
    assert all(torch.equal(now, then) for now, then in kept)


def test_numbers_of_a_training_set_can_be_brought_along(plates: Dataset) -> None:
    small = plates.select(np.arange(10) < 4)
    own = normalisation("dataset", plates.channels, plates.statistics)
    by_number = list(Loader(small, 4, normalise=own, training=False))
    by_name = list(Loader(plates, 4, training=False))[:1]
    np.testing.assert_array_equal(_images(by_number), _images(by_name))


def test_the_report_counts_batches_and_bytes(plates: Dataset) -> None:
    loader = Loader(plates, 5, crop=32)
    list(loader)
    report = loader.report()
    assert (report["batches"], report["images"], report["read_bytes"]) == (2, 10, 10 * 3 * 32 * 32 * 2)  # of the crops
    assert 0 < report["wait_s"] <= report["seconds"]
    assert report["images_per_s"] == pytest.approx(10 / report["seconds"])
    assert set(report["busy_share"]) == {"read", "decode", "transform", "copy"}
    assert all(0 <= share <= 1 for share in report["busy_share"].values())
    assert report["bottleneck"]
    assert report["bad_samples"] == []
    assert set(report["store"].values()) == {0}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch_size": 5, "world_size": 2}, "must be a multiple of world_size 2"),
        ({"batch_size": 4, "world_size": 2, "rank": 2}, "with rank 2 below it"),
        ({"batch_size": 11}, "10 samples do not fill one batch of 11"),
        ({"batch_size": 2, "crop": 65}, "crop 65 does not fit samples of 64 x 64 pixels"),
        ({"batch_size": 2, "crop": 0}, "crop 0 does not fit"),
    ],
)
def test_what_cannot_be_given_is_refused_at_once(plates: Dataset, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        Loader(plates, **asked)
    assert "\n" not in str(caught.value)


def test_whole_samples_must_have_one_shape_and_be_square_for_quarter_turns(write_dataset: WriteDataset) -> None:
    rng = np.random.default_rng(0)
    oblong = bie_stream.open(write_dataset([rng.random((1, 8, 12), np.float32) for _ in range(2)]))
    with pytest.raises(DatasetError, match="quarter turns need square images"):
        Loader(oblong, 2)
    assert Loader(oblong, 2, augment=Augment(quarter_turn=False)).image_shape == (1, 8, 12)
    assert Loader(oblong, 2, training=False).image_shape == (1, 8, 12)
    mixed = bie_stream.open(write_dataset([rng.random((1, 8, side), np.float32) for side in (8, 12)]))
    with pytest.raises(DatasetError, match="give one crop for all"):
        Loader(mixed, 2, training=False)


WILD = Augment(
    rotate_deg=30, scale=(0.8, 1.25), gain=0.3, offset=0.2, drop_channel=0.2, noise=0.1, blur_px=1.5, defocus_px=2
)


@needs_dali
@pytest.mark.parametrize("normalise", ["dataset", "image"])
def test_native_and_dali_agree_on_every_augmentation(plates: Dataset, normalise: Any) -> None:
    native, dali = (
        _images(list(Loader(plates, 5, crop=24, augment=WILD, views=2, normalise=normalise, backend=b, threads=2)))
        for b in ("native", "dali")
    )
    assert native.shape == (20, 3, 24, 24)
    np.testing.assert_allclose(dali, native, rtol=0, atol=0.02)  # places of pixels in float32
    assert np.abs(dali - native).mean() < 5e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_are_different_crops_of_the_same_samples_side_by_side(plates: Dataset, backend: Any) -> None:
    one = list(Loader(plates, 5, crop=48, normalise="none", backend=backend))
    three = list(Loader(plates, 5, crop=48, normalise="none", backend=backend, views=3))
    for single, batch in zip(one, three, strict=True):
        assert batch.images.shape == (15, 3, 48, 48)
        assert batch.ids.tolist() == [sample for sample in single.ids.tolist() for _ in range(3)]
        np.testing.assert_array_equal(batch.images[::3], single.images)  # the first view is the one without `views`
        for image, sample in zip(batch.images.numpy(), batch.ids.tolist(), strict=True):
            assert _places(image, plates[sample])
        assert any(not torch.equal(batch.images[i], batch.images[i + 1]) for i in range(0, 15, 3))


def test_pixels_that_are_compressed_are_decoded_once_for_all_views(
    write_dataset: WriteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("blosc2")
    images = [np.random.default_rng(n).integers(0, 4000, (2, 32, 32), np.uint16) for n in range(4)]
    root = write_dataset(images, codec="blosc2")
    calls = []
    decode = codecs.decode_rows
    monkeypatch.setattr(codecs, "decode_rows", lambda *a: calls.append(1) or decode(*a))
    (batch,) = Loader(bie_stream.open(root), 4, crop=16, views=5)
    assert len(batch.images) == 20
    assert len(calls) == 4


@pytest.fixture
def other_plates(plate_archive: Path) -> Dataset:
    """The same fields with two of their three channels, in another order."""
    return bie_stream.open(plate_archive.parent / "dataset", channels=["Protein", "DNA"])


@pytest.fixture
def three_plates(write_dataset: WriteDataset) -> Dataset:
    """Twelve samples of three plates, each brighter than the one before, in no order."""
    rng = np.random.default_rng(0)
    plates = [i % 3 for i in (0, 1, 2, 2, 1, 0, 0, 2, 1, 1, 0, 2)]
    images = [rng.normal(300 * (n + 1), 20 * (n + 1), (2, 40, 40)).clip(0).astype(np.uint16) for n in plates]
    return bie_stream.open(write_dataset(images, plates=[f"P{n}" for n in plates]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [None, ["c1"], ["c1", "c0"]])
def test_by_plate_every_plate_has_mean_0_and_variance_1(three_plates: Dataset, backend: Any, channels: Any) -> None:
    dataset = bie_stream.open(three_plates.folder, channels=channels).select(np.arange(12) > 0)
    loader = Loader(dataset, 11, normalise="plate", training=False, backend=backend, threads=2)
    images, plates = _images(list(loader)), np.array(dataset.table["plate"].to_pylist())
    whole = np.array(three_plates.table["plate"].to_pylist())
    for name in ("P0", "P1", "P2"):
        raw = np.stack([three_plates[i] for i in np.flatnonzero(whole == name)]).astype(np.float64)
        raw = raw[:, [int(channel[1]) for channel in dataset.channels]]
        mean, std = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3))
        own = np.stack([dataset[i] for i in np.flatnonzero(plates == name)])
        expected = (own - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(images[plates == name], expected, atol=1e-5)


def test_normalisation_by_plate_is_refused_where_the_dataset_has_no_numbers_of_plates(
    write_dataset: WriteDataset,
) -> None:
    dataset = bie_stream.open(write_dataset([np.zeros((1, 8, 8), np.uint8)]))
    with pytest.raises(DatasetError, match=r"no statistics of plate 'p': .*normalise='dataset'"):
        Loader(dataset, 1, normalise="plate")


@needs_dali
@pytest.mark.parametrize("augment", [Augment(), WILD])
def test_native_and_dali_agree_on_mixtures(plates: Dataset, other_plates: Dataset, augment: Augment) -> None:
    fewer_plates = plates.select(np.arange(10) < 7)  # of the same channels: both in one batch
    asked: dict[str, Any] = {"crop": 24, "weights": [2, 1, 3], "threads": 2, "augment": augment, "views": 2}
    native, dali = (
        list(Loader([plates, other_plates, fewer_plates], 4, backend=b, **asked)) for b in ("native", "dali")
    )
    assert {len(set(batch.dataset.tolist())) for batch in native} == {1, 2}
    for one, other in zip(native, dali, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.dataset, other.dataset)
        assert one.channels == other.channels
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0 if augment == Augment() else 0.02)


def test_datasets_of_other_channels_come_in_batches_of_their_own(plates: Dataset, other_plates: Dataset) -> None:
    loader = Loader([plates, other_plates], 2, crop=32, weights=[1, 3], threads=2)
    batches = list(loader)
    assert len(batches) == loader.steps_per_epoch == 10
    assert {batch.channels for batch in batches} == {plates.channels, other_plates.channels}
    for batch in batches:
        (number,) = set(batch.dataset.tolist())
        dataset = (plates, other_plates)[number]
        assert batch.channels == dataset.channels
        assert batch.images.shape == (2, len(dataset.channels), 32, 32)
    shares = [sum(batch.channels == each.channels for batch in batches) for each in (plates, other_plates)]
    assert shares in ([2, 8], [3, 7])


def test_a_batch_of_several_datasets_normalises_each_by_its_own_numbers(
    write_dataset: WriteDataset, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    roots = []
    for number, (mean, dtype) in enumerate([(100, "uint8"), (9000, "uint16")]):
        root = write_dataset([rng.normal(mean, mean / 10, (2, 16, 16)).astype(dtype) for _ in range(8)])
        roots.append(root.rename(tmp_path / f"of{number}"))
    datasets = [bie_stream.open(root) for root in roots]
    loader = Loader(datasets, 8, augment=NO_AUGMENT, weights=[1, 1])
    seen = set()
    for batch in loader:
        assert sorted(batch.dataset.tolist()) == [0] * 4 + [1] * 4
        for image, number, sample in zip(batch.images, batch.dataset.tolist(), batch.ids.tolist(), strict=True):
            by = normalisation("dataset", datasets[number].channels, datasets[number].statistics)
            expected = np.empty((2, 16, 16), np.float32)
            normalise_pixels(datasets[number][sample], by, expected)
            np.testing.assert_array_equal(image, expected)
            seen.add((number, sample))
    assert len(seen) == 16


@pytest.mark.parametrize("shuffle", ["everywhere", "blocked", "balanced", "mixture"])
def test_every_order_resumes_exactly_with_another_number_of_ranks(
    plates: Dataset, other_plates: Dataset, shuffle: Any
) -> None:
    how = {"weights": [2, 1]} if shuffle == "mixture" else {"shuffle": shuffle}
    data: Any = [plates, other_plates] if shuffle == "mixture" else plates

    def loader(**more: Any) -> Loader:
        return Loader(data, 2, crop=32, seed=3, **how, **more)

    whole = loader()
    straight = [batch for _ in range(3) for batch in whole]
    first = loader()
    begun = [batch for _, batch in zip(range(3), first, strict=False)]
    state = first.state_dict()
    assert all(torch.equal(a.images, b.images) for a, b in zip(begun, straight, strict=False))
    parts = []
    for rank in range(2):
        part = loader(rank=rank, world_size=2)
        part.load_state_dict(state)
        steps = whole.steps_per_epoch - 3
        parts.append([batch for _, batch in zip(range(steps), part, strict=False)])
    for expected, left, right in zip(straight[3 : whole.steps_per_epoch], *parts, strict=True):
        assert torch.equal(torch.cat([left.images, right.images]), expected.images)
        assert torch.cat([left.ids, right.ids]).tolist() == expected.ids.tolist()


def test_memory_of_batches_that_nobody_holds_is_used_again(plates: Dataset) -> None:
    loader = Loader(plates, 5, crop=32, threads=1, prefetch_batches=0)
    places = set()
    for _ in range(20):
        for batch in loader:
            places.add(batch.images.data_ptr())
            del batch
    assert len(places) <= 4


def test_200_epochs_leave_no_thread_file_or_memory_behind(plates: Dataset) -> None:
    process = psutil.Process()
    loader = Loader(plates, 5, crop=32, threads=2)
    for epoch in range(200):
        for batch in loader:
            assert len(batch.ids) == 5
        if epoch == 50:
            before = threading.active_count(), process.num_fds(), process.memory_info().rss
    threads, files, memory = threading.active_count(), process.num_fds(), process.memory_info().rss
    assert threads <= before[0]
    assert files <= before[1]
    assert memory < before[2] + 20 * 2**20


def test_a_disk_that_does_not_answer_ends_the_waiting(plates: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    there = threading.Event()
    read = plates.store.read
    monkeypatch.setattr(plates.store, "read", lambda *where: there.wait(30) and read(*where))
    with pytest.raises(DatasetError, match=r"no batch came for 0\.2 s"):
        next(iter(Loader(plates, 5, crop=32, timeout_s=0.2, threads=1)))
    there.set()


@pytest.mark.parametrize(
    ("wait", "busy", "said"),
    [
        (0.01, [0.2, 0.1, 0.3, 0.0], "the consumer is the limit"),
        (0.6, [0.1, 0.7, 0.2, 0.0], "decode is the limit, 70%"),
        (0.6, [0.8, 0.1, 0.1, 0.0], "read is the limit, 80%"),
        (0.6, [0.1, 0.1, 0.1, 0.0], "threads were idle; raise prefetch_batches"),
    ],
)
def test_the_bottleneck_is_named_with_what_moves_it(wait: float, busy: list[float], said: str) -> None:
    stages: list[Any] = ["read", "decode", "transform", "copy"]
    assert said in bottleneck(wait, dict(zip(stages, busy, strict=True)))


def test_how_well_an_order_mixes_is_said_in_a_sentence(plates: Dataset, other_plates: Dataset) -> None:
    assert Loader(plates, 5, crop=32, shuffle="everywhere").shuffle_quality().shards > 1
    said = str(Loader([plates, other_plates], 5, crop=32).shuffle_quality())
    assert said.startswith("in-batch plate entropy ")
    assert said.endswith(" shards a batch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("augment", [Augment(), Augment(rotate_deg=30), Augment(noise=0.1), WILD], ids=str)
def test_bfloat16_images_are_those_of_float32_rounded(plates: Dataset, augment: Augment, backend: Any) -> None:
    whole, half = (
        torch.cat([batch.images for batch in Loader(plates, 5, crop=24, augment=augment, dtype=dtype, backend=backend)])
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, whole.to(torch.bfloat16))

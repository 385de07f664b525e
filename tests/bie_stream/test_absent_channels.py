"""Datasets of unlike channels in one batch: what a dataset lacks is all 0, to the bit, and the batch says so."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import bie_stream
from bie_stream import Augment, Batch, Dataset, DatasetError, Loader
from bie_stream.augment import draw
from bie_stream.normalise import Normalisation, apply, normalisation

WriteDataset = Callable[..., Path]

needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
BACKENDS = ["native", pytest.param("dali", marks=needs_dali)]
NAMES = ["c2", "c0", "c3", "c1"]  # of datasets that have c0, c0 and c1, and so on
PRESENT = {1: [False, True, False, False], 2: [False, True, False, True], 4: [True] * 4}  # by how many they have
EVERYTHING = Augment(
    rotate_deg=30, scale=(0.8, 1.25), gain=0.3, offset=0.2, drop_channel=0.5, noise=0.1, blur_px=1.5, defocus_px=2
)


@pytest.fixture
def mixed(write_dataset: WriteDataset, tmp_path: Path) -> list[Dataset]:
    """Three datasets of 1, 2 and 4 channels, opened with the same names; the last has another dtype."""
    rng = np.random.default_rng(0)
    roots = []
    for stored, dtype in [(1, "uint16"), (2, "uint16"), (4, "uint8")]:
        root = write_dataset([rng.integers(1, 250, (stored, 40, 44)).astype(dtype) for _ in range(6)])
        roots.append(root.rename(tmp_path / f"of{stored}"))
    return [bie_stream.open(root, channels=NAMES, absent_ok=True) for root in roots]


def _expected_present(batch: Batch, datasets: list[Dataset]) -> npt.NDArray[np.bool_]:
    """From what the manifests say."""
    return np.array([PRESENT[len(datasets[number].manifest.channels)] for number in batch.dataset.tolist()])


def _by_numpy(dataset: Dataset, kind: str, crop: int) -> npt.NDArray[np.float64]:
    """The centres of all samples, normalised in float64; channels that are absent stay 0."""
    stored = len(dataset.manifest.channels)
    names = [f"c{c}" for c in range(stored)]
    raw = np.stack([image.astype(np.float64) for image in bie_stream.open(dataset.folder, channels=names)])
    y, x = (raw.shape[2] - crop) // 2, (raw.shape[3] - crop) // 2
    images = raw[:, :, y : y + crop, x : x + crop].copy()
    if kind == "plate":
        plates = np.array(dataset.table["plate"].to_pylist())
        for plate in np.unique(plates):
            own = raw[plates == plate]
            mean, std = own.mean((0, 2, 3))[:, None, None], own.std((0, 2, 3))[:, None, None]
            images[plates == plate] = (images[plates == plate] - mean) / std
    elif kind != "none":
        axes = (2, 3) if kind == "image" else (0, 2, 3)
        by = images if kind == "image" else raw
        images = (images - by.mean(axes, keepdims=True)) / by.std(axes, keepdims=True)
    out = np.zeros((len(raw), len(NAMES), crop, crop))
    for i, name in enumerate(NAMES):
        if name in names:
            out[:, i] = images[:, names.index(name)]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["none", "dataset", "plate", "image"])
@pytest.mark.parametrize(
    ("codec", "package", "dtype"),
    [("npy", "numpy", "uint16"), ("npy", "numpy", "float32"), ("tif", "imagecodecs", "uint8"),
     ("jph", "imagecodecs", "uint16"), ("blosc2", "blosc2", "float32"), ("blosc2", "blosc2", "uint16")],
)  # fmt: skip
def test_an_evaluation_image_is_that_of_numpy_and_zeros_where_the_dataset_has_no_such_channel(
    write_dataset: WriteDataset, codec: str, package: str, dtype: str, kind: Any, backend: Any
) -> None:
    pytest.importorskip(package)
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 250, (2, 33, 40)).astype(dtype) for _ in range(5)]
    root = write_dataset(images, codec=codec, plates=["P0", "P1", "P0", "P1", "P1"])
    dataset = bie_stream.open(root, channels=NAMES, absent_ok=True)
    loader = Loader(dataset, 2, crop=24, normalise=kind, training=False, backend=backend, threads=1)
    batches = list(loader)
    got = torch.cat([batch.images[batch.valid] for batch in batches]).numpy()
    np.testing.assert_allclose(got, _by_numpy(dataset, kind, 24), rtol=0, atol=5e-4)
    absent = ~np.array(PRESENT[2])
    for batch in batches:
        assert batch.channels == tuple(NAMES)
        assert batch.present.tolist() == [PRESENT[2]] * 2  # a row that only fills up, too
        assert not batch.images[:, absent].any()
        assert batch.images[:, ~absent].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["none", "dataset"])
def test_images_of_a_mixture_are_those_of_numpy_and_the_zeros_do_not_depend_on_what_was_in_memory(
    mixed: list[Dataset], kind: Any, backend: Any
) -> None:
    loader = Loader(mixed, 6, crop=24, weights=[1, 1, 1], normalise=kind, backend=backend, seed=4, threads=2)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(4):
        for batch in loader:
            assert Counter(batch.dataset.tolist()) == {0: 2, 1: 2, 2: 2}
            np.testing.assert_array_equal(batch.present, _expected_present(batch, mixed))
            assert not batch.images[~batch.present].any()
            for image, number, sample in zip(batch.images, batch.dataset.tolist(), batch.ids.tolist(), strict=True):
                expected = _view_by_numpy(mixed[number], number, sample, seen[number, sample], kind)
                np.testing.assert_array_equal(image, expected)
                seen[number, sample] += 1
    assert len(seen) == 18


def _view_by_numpy(dataset: Dataset, number: int, sample: int, visit: int, kind: Any) -> npt.NDArray[np.float32]:
    """The view of a sample that comes for the so-manieth time: cut, turned, mirrored and normalised step by step."""
    stored = bie_stream.open(dataset.folder)
    own_seed = 4 ^ (number << 40)
    pixels = stored[sample]
    view = draw(Augment(), np.array([sample]), np.array([[40, 44]]), (24, 24), seed=own_seed, epoch=visit)
    image = pixels[:, view.top[0] : view.top[0] + 24, view.left[0] : view.left[0] + 24]
    image = image.transpose(0, 2, 1) if view.swap[0] else image
    image = image[:, :: -1 if view.flip_y[0] else 1, :: -1 if view.flip_x[0] else 1]
    normalised = np.empty((len(pixels), 24, 24), np.float32)
    apply(image, normalisation(kind, stored.channels, stored.statistics), normalised)
    out = np.zeros((4, 24, 24), np.float32)
    for c, plane in enumerate(normalised):
        out[NAMES.index(f"c{c}")] = plane
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["dataset", "image"])
@pytest.mark.parametrize("augment", [EVERYTHING, Augment(noise=1, offset=5), Augment(rotate_deg=45)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_augmentation_writes_into_an_absent_channel(
    mixed: list[Dataset], augment: Augment, kind: Any, dtype: torch.dtype, backend: Any
) -> None:
    asked: dict[str, Any] = {"crop": 24, "views": 2, "augment": augment, "normalise": kind, "dtype": dtype}
    for batch in Loader(mixed, 6, backend=backend, threads=2, **asked):
        np.testing.assert_array_equal(batch.present, _expected_present(batch, mixed))
        there = batch.images.flatten(2).any(dim=2)
        assert not there[~batch.present].any()
        assert there.any(dim=1).all()  # of the channels that are there, one is kept
        if not augment.drop_channel:
            assert torch.equal(there, batch.present)


@needs_dali
@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["plain", "everything"])
def test_native_and_dali_agree_on_mixed_channels(mixed: list[Dataset], augment: Augment) -> None:
    asked: dict[str, Any] = {"crop": 24, "views": 2, "augment": augment, "threads": 2}
    native, dali = (list(Loader(mixed, 6, backend=backend, **asked)) for backend in ("native", "dali"))
    for one, other in zip(native, dali, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.present, other.present)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0 if augment == Augment() else 0.02)


def test_mixed_channels_resume_exactly_with_another_number_of_ranks(mixed: list[Dataset]) -> None:
    asked: dict[str, Any] = {"crop": 24, "seed": 3, "weights": [2, 1, 3], "augment": Augment(noise=0.1, gain=0.2)}
    straight, first = (Loader(mixed, 4, **asked) for _ in range(2))
    whole = [batch for _ in range(3) for batch in straight]
    for _, _batch in zip(range(6), (batch for _ in range(2) for batch in first), strict=False):
        state = first.state_dict()
    assert state == {"seed": 3, "epoch": 1, "consumed": 8}
    ranks = [Loader(mixed, 4, rank=rank, world_size=2, **asked) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(state)
    rest = [parts for _ in range(2) for parts in zip(*ranks, strict=True)]
    assert len(rest) == len(whole[6:]) == 6
    for (left, right), expected in zip(rest, whole[6:], strict=True):
        for name in ("images", "ids", "dataset", "present"):
            assert torch.equal(torch.cat([getattr(left, name), getattr(right, name)]), getattr(expected, name)), name


def test_datasets_opened_with_other_names_come_in_batches_of_their_own_with_all_channels_present(
    mixed: list[Dataset],
) -> None:
    plain = bie_stream.open(mixed[2].folder, channels=["c0", "c3"])
    batches = list(Loader([*mixed, plain], 6, crop=24))
    assert {batch.channels for batch in batches} == {tuple(NAMES), ("c0", "c3")}
    for batch in batches:
        assert batch.present.shape == (6, len(batch.channels))
        assert batch.present.dtype == torch.bool
        assert (3 in batch.dataset) == (batch.channels == ("c0", "c3")) == (set(batch.dataset.tolist()) == {3})
        if 3 in batch.dataset:
            assert batch.present.all()


def test_only_bytes_of_channels_that_are_there_are_counted_as_read(mixed: list[Dataset]) -> None:
    loader = Loader(mixed[1], 3, crop=24)
    list(loader)
    assert loader.report()["read_bytes"] == 6 * 2 * 24 * 24 * 2


def test_present_stays_with_a_batch_that_goes_to_a_device(mixed: list[Dataset]) -> None:
    batch = next(iter(Loader(mixed, 6, crop=24)))
    there = batch.to("meta")
    assert there.images.device.type == "meta"
    assert there.present is batch.present
    assert batch.present.device.type == "cpu"


def test_a_name_that_none_of_several_datasets_has_is_refused_with_the_nearest(mixed: list[Dataset]) -> None:
    root = mixed[2].folder
    asked = [bie_stream.open(each.folder, channels=["c0", "cc3"], absent_ok=True) for each in mixed]
    with pytest.raises(DatasetError, match=r"none of 3 datasets has a channel 'cc3'; did you mean 'c3'\?") as caught:
        Loader(asked, 2, crop=24)
    assert "\n" not in str(caught.value)
    alone = Loader(bie_stream.open(root, channels=["c0", "of another"], absent_ok=True), 2, crop=24)
    assert next(iter(alone)).present.tolist() == [[True, False]] * 2


def test_numbers_brought_along_must_be_there_for_every_channel_that_is(mixed: list[Dataset]) -> None:
    few, every = mixed[1], mixed[2]
    of_few, of_every = (normalisation("dataset", each.channels, each.statistics) for each in (few, every))
    with pytest.raises(DatasetError, match=r"no numbers of channel 'c2', which .*of4 has"):
        Loader(every, 2, crop=24, normalise=of_few)
    loader = Loader(few, 6, normalise=of_every, training=False)
    (batch,) = loader
    expected = np.zeros((6, 4, 40, 44), np.float32)
    for image, out in zip(bie_stream.open(few.folder), expected, strict=True):
        own = Normalisation(of_every.shift[:, [1, 3]], of_every.scale[:, [1, 3]])
        apply(image, own, planes := np.empty((2, 40, 44), np.float32))
        out[[1, 3]] = planes
    np.testing.assert_array_equal(batch.images, expected)

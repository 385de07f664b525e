import numpy as np
import pytest

from bie_stream.errors import DatasetError
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR, Normalise, apply, normalisation, normalisation_by_plate
from bie_stream.shards import ChannelStatistics, PlateStatistics

STATISTICS = tuple(
    ChannelStatistics(mean=mean, std=std, minimum=0, maximum=65535, percentiles={})
    for mean, std in [(300.5, 41.25), (9000.0, 2500.0)]
)


def _pixels(dtype: str = "uint16") -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = rng.gamma(4.0, [[[60.0]], [[2000.0]]], (2, 32, 48))
    return pixels.clip(0, 255).astype(dtype) if dtype == "uint8" else pixels.astype(dtype)


def _normalised(kind: Normalise, pixels: np.ndarray) -> np.ndarray:
    out = np.empty(pixels.shape, np.float32)
    apply(pixels, normalisation(kind, ("DNA", "Actin"), STATISTICS), out)
    return out


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_none_keeps_the_numbers_of_the_microscope(dtype: str) -> None:
    np.testing.assert_array_equal(_normalised("none", _pixels(dtype)), _pixels(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_dataset_is_the_z_score_of_each_channel(dtype: str) -> None:
    pixels = _pixels(dtype).astype(np.float64)
    expected = np.stack([(pixels[0] - 300.5) / 41.25, (pixels[1] - 9000.0) / 2500.0])
    np.testing.assert_allclose(_normalised("dataset", _pixels(dtype)), expected, rtol=1e-6, atol=1e-6)


def test_image_gives_each_channel_of_each_image_mean_0_and_variance_1() -> None:
    pixels = _pixels().astype(np.float64)
    mean, std = pixels.mean(axis=(1, 2), keepdims=True), pixels.std(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(_normalised("image", _pixels()), (pixels - mean) / std, atol=1e-3)


def test_image_leaves_an_empty_image_near_zero_instead_of_blowing_it_up() -> None:
    assert not _normalised("image", np.full((2, 8, 8), 300, np.uint16)).any()
    faint = np.full((2, 8, 8), 9000, np.uint16)
    faint[:, ::2] += 2  # in the second channel a thousandth of the dataset's deviation
    variance = _normalised("image", faint)[1].var(dtype=np.float64)
    inside = (1 / 2500) ** 2
    assert variance == pytest.approx(inside / (inside + IMAGE_VARIANCE_FLOOR), rel=1e-3)


def test_input_pixels_are_left_as_they_were() -> None:
    pixels = _pixels("float32")
    _normalised("image", pixels)
    np.testing.assert_array_equal(pixels, _pixels("float32"))


@pytest.mark.parametrize("kind", ["dataset", "image"])
def test_a_constant_channel_is_refused_by_name(kind: Normalise) -> None:
    flat = ChannelStatistics(mean=7, std=0, minimum=7, maximum=7, percentiles={})
    with pytest.raises(DatasetError, match="channel 'Empty' has the value 7 everywhere"):
        normalisation(kind, ("DNA", "Empty"), (STATISTICS[0], flat))
    assert not normalisation("none", ("DNA", "Empty"), (STATISTICS[0], flat)).shift.any()


@pytest.mark.parametrize("kind", ["none", "dataset", "image"])
def test_an_absent_channel_stays_0_and_is_no_constant_one(kind: Normalise) -> None:
    pixels = np.stack([_pixels()[0], np.zeros((32, 48), np.uint16)])
    out = np.empty(pixels.shape, np.float32)
    apply(pixels, normalisation(kind, ("DNA", "ER"), (STATISTICS[0], None)), out)
    np.testing.assert_array_equal(out[0], _normalised(kind, _pixels())[0])
    assert not out[1].any()


def test_by_plate_each_plate_has_its_own_numbers() -> None:
    of = {
        name: tuple(PlateStatistics(mean=mean, std=std) for mean, std in numbers)
        for name, numbers in {"P2": [(1.0, 2.0), (3.0, 4.0)], "P1": [(5.0, 6.0), (7.0, 8.0)]}.items()
    }
    by = normalisation_by_plate(("DNA", "Actin"), of)
    np.testing.assert_array_equal(by.shift, [[1, 3], [5, 7]])
    np.testing.assert_array_equal(by.scale, np.float32(1) / np.float32([[2, 4], [6, 8]]))
    out = np.empty((2, 32, 48), np.float32)
    apply(_pixels(), by, out, plate=1)
    np.testing.assert_allclose(out[1], (_pixels()[1] - 7.0) / 8.0, rtol=1e-6)


def test_a_plate_on_which_a_channel_is_constant_is_named() -> None:
    dead = PlateStatistics(mean=7, std=0)
    with pytest.raises(DatasetError, match=r"'Actin' has the value 7 all over plate P9: .* leave that plate out"):
        normalisation_by_plate(("DNA", "Actin"), {"P9": (PlateStatistics(mean=1, std=1), dead)})

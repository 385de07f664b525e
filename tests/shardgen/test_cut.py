import numpy as np
import pytest

from shardgen.cut import around, binned, grid, is_background


def test_a_grid_covers_a_field_from_the_top_left_and_leaves_the_rest_over() -> None:
    assert grid((10, 15), (5, 5)) == ((0, 0), (0, 5), (0, 10), (5, 0), (5, 5), (5, 10))
    assert grid((9, 14), (5, 5)) == ((0, 0), (0, 5))
    assert grid((7, 8), (7, 8)) == ((0, 0),)


@pytest.mark.parametrize("tile", [1, 2, 3, 4, 5])
def test_a_crop_is_the_one_whose_centre_is_nearest(tile: int) -> None:
    rng = np.random.default_rng(tile)
    centres = rng.uniform(0, 20, (200, 2))
    corners, inside = around(centres, (tile, tile), (20, 24))
    for (y, x), (top, left), there in zip(centres, corners, inside, strict=True):
        distances = {t: abs(t + (tile - 1) / 2 - y) for t in range(-10, 30)}
        assert distances[top] == min(distances.values())
        assert abs(left + (tile - 1) / 2 - x) <= 0.5
        assert there == (top >= 0 and left >= 0 and top + tile <= 20 and left + tile <= 24)


def test_an_object_in_the_middle_of_a_pixel_is_in_the_middle_of_an_odd_crop() -> None:
    corners, inside = around(np.array([[7.0, 9.0]]), (5, 5), (20, 20))
    assert corners.tolist() == [[5, 7]]
    assert inside.all()


def test_background_is_what_reaches_the_level_of_no_channel_on_one_percent_of_its_pixels() -> None:
    sample = np.zeros((2, 20, 20), np.uint16)
    sample[0].ravel()[:4] = 300  # 1 % of 400 pixels
    assert not is_background(sample, {0: 300})
    assert is_background(sample, {0: 301})
    assert is_background(sample, {1: 1})
    assert not is_background(sample, {0: 300, 1: 1})
    sample[0].ravel()[0] = 299
    assert is_background(sample, {0: 300})
    assert not is_background(np.zeros((2, 20, 20), np.uint16), {})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_binning_is_the_mean_of_squares(dtype: str, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 14)).astype(dtype)
    pixels[0] = 255  # a sum that a byte does not hold
    found = binned(pixels, side)
    assert found.shape == (2, 9 // side, 14 // side)
    assert found.dtype == dtype
    for c, y, x in np.ndindex(found.shape):
        mean = pixels[c, y * side : (y + 1) * side, x * side : (x + 1) * side].mean(dtype=np.float64)
        assert found[c, y, x] == np.float32(mean) if dtype == "float32" else np.floor(mean + 0.5)

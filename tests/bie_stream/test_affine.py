"""The native sampling is held to SciPy, and DALI to the native sampling.

Natively places are computed in float64, and pixels in float32: to 1e-6 of the range of the pixels. DALI computes
places in float32, on a CPU by adding up along a row: after a row of 96 pixels, in a window of up to 270, they are off
by no more than 1e-3 pixels.
"""

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from bie_stream import affine, normalise
from bie_stream.augment import Augment, View, draw

CROP = (96, 96)
SHAPES = np.array([[300, 420]] * 5 + [[110, 100]] * 2 + [[96, 96]] * 2)
FREE = Augment(rotate_deg=180, scale=(0.5, 2.0))

Pixels = npt.NDArray[Any]

needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")


def _fields(dtype: str = "uint16", channels: int = 3) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [(rng.random((channels, *shape)) * 255).astype(dtype) for shape in SHAPES]


def _view(augment: Augment = FREE, shapes: npt.NDArray[np.int64] = SHAPES) -> View:
    return draw(augment, np.arange(len(shapes)), shapes, CROP, seed=1, epoch=0)


def _sampled(fields: list[Pixels], view: View, channels: tuple[int, ...] = (0, 1, 2), by: float = 1.0) -> Pixels:
    """[B, C, Y, X], divided by `by`."""
    assert view.matrix is not None
    out = np.full((len(fields), len(channels), *CROP), np.nan, np.float32)
    shift, scale = np.zeros(len(channels), np.float32), np.full(len(channels), 1 / by, np.float32)
    for image, *rest in zip(out, fields, view.matrix, affine.centre(view, CROP), strict=True):
        field, matrix, about = rest
        affine.sample(field, np.array(channels), matrix, about, shift, scale, image)
    return out


def _seen(image: Pixels, turn: npt.NDArray[np.float64]) -> Pixels:
    """A square image [Y, X] through one matrix."""
    out = np.empty((1, *image.shape), np.float32)
    about = (np.array(image.shape) - 1) / 2
    none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    affine.sample(image[None], np.array([0]), turn, about, none, one, out)
    return out[0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_samples_as_scipy_does(dtype: str) -> None:
    fields, view = _fields(dtype), _view()
    assert view.matrix is not None
    images = _sampled(fields, view, channels=(2, 0))
    offset = np.indices(CROP).reshape(2, -1) - (np.array(CROP)[:, None] - 1) / 2
    for image, field, matrix, about in zip(images, fields, view.matrix, affine.centre(view, CROP), strict=True):
        places = matrix @ offset + about[:, None]
        expected = [ndimage.map_coordinates(field[c].astype(float), places, order=1, mode="nearest") for c in (2, 0)]
        np.testing.assert_allclose(image.reshape(2, -1), expected, rtol=0, atol=255e-6)


def test_swap_and_mirrors_alone_give_the_bits_of_the_plain_way() -> None:
    shapes = np.tile((120, 130), (40, 1))
    view = _view(Augment(scale=(1, 1 + 1e-15)), shapes)
    assert view.matrix is not None
    assert len(np.unique(view.matrix.round().reshape(-1, 4), axis=0)) == 8
    exact = View(view.top, view.left, view.swap, view.flip_y, view.flip_x, view.matrix.round())
    field = _fields()[0][:, :120, :130].copy()
    by = normalise.Normalisation(np.full((1, 3), 90, np.float32), np.full((1, 3), 0.37, np.float32))
    shift, scale = by.shift.ravel(), by.scale.ravel()
    got, expected = np.empty((2, 3, *CROP), np.float32)
    for b, about in enumerate(affine.centre(view, CROP)):
        assert exact.matrix is not None
        affine.sample(field, np.arange(3), exact.matrix[b], about, shift, scale, got)
        image = field[:, view.top[b] :, view.left[b] :][:, : CROP[0], : CROP[1]]
        image = image.transpose(0, 2, 1) if view.swap[b] else image
        image = image[:, :: -1 if view.flip_y[b] else 1, :: -1 if view.flip_x[b] else 1]
        normalise.apply(image, by, out=expected)
        np.testing.assert_array_equal(got, expected)


def test_a_channel_that_is_absent_is_written_as_zeros_and_those_beside_it_as_ever() -> None:
    fields = _fields()
    view = _view(Augment(rotate_deg=180), np.array([field.shape[1:] for field in fields]))
    got, expected = _sampled(fields, view, channels=(2, -1, 0)), _sampled(fields, view, channels=(2, 0))
    assert not got[:, 1].any()
    np.testing.assert_array_equal(got[:, [0, 2]], expected)


def test_a_positive_angle_turns_anticlockwise() -> None:
    image = np.arange(25, dtype=np.float32).reshape(5, 5)
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])  # R of `View` at 90 degrees
    np.testing.assert_array_equal(_seen(image, quarter), np.rot90(image))
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((61, 61)), 4).astype(np.float32)
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    expected = ndimage.rotate(smooth, 30, order=1, reshape=False, mode="nearest")
    np.testing.assert_allclose(_seen(smooth, turn), expected, atol=1e-5)


def test_a_scale_above_one_shows_things_larger() -> None:
    y, x = np.indices((81, 81)) - 40
    dot = np.exp(-(y**2 + x**2) / 50).astype(np.float32)
    np.testing.assert_allclose(_seen(dot, np.eye(2) / 2), np.exp(-(y**2 + x**2) / 200), atol=0.02)


def test_the_window_is_all_that_an_image_is_made_of() -> None:
    view, fields = _view(), _fields()
    assert view.matrix is not None
    about = affine.centre(view, CROP)
    corner, size = affine.window(view.matrix, about, SHAPES, CROP)
    assert (corner >= 0).all()
    assert (corner + size <= SHAPES).all()
    whole = _sampled(fields, view)
    for field, (top, left), (height, width) in zip(fields, corner, size, strict=True):
        kept = field[:, top : top + height, left : left + width].copy()
        field[:] = 0
        field[:, top : top + height, left : left + width] = kept
    np.testing.assert_array_equal(_sampled(fields, view), whole)
    spare = size - 2 * np.abs(view.matrix).sum(axis=2) * 47.5
    assert spare.max() < 3  # pixels


@needs_dali
@pytest.mark.parametrize("smooth", [0, 2])
def test_dali_takes_the_same_places(smooth: float) -> None:
    from nvidia.dali import fn, pipeline_def, types

    fields = [ndimage.gaussian_filter(field, (0, smooth, smooth)) for field in _fields()]
    view = _view()
    assert view.matrix is not None
    about = affine.centre(view, CROP)
    corner, size = affine.window(view.matrix, about, SHAPES, CROP)
    matrix = affine.dali_matrix(view.matrix, about, corner, CROP)

    @pipeline_def(batch_size=len(SHAPES), num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        x = fn.external_source(source=[fields], ndim=3)
        x = fn.slice(x, fn.external_source(source=[corner]), fn.external_source(source=[size]), axes=[1, 2])
        x = fn.expand_dims(fn.reshape(fn.cast(x, dtype=types.FLOAT), layout="FHW"), axes=3, new_axis_names="C")
        x = fn.warp_affine(x, matrix=fn.external_source(source=[matrix]), size=CROP)
        return fn.squeeze(x, axes=3)

    (output,) = graph().run()
    steepest = max(max(np.abs(np.diff(field.astype(float), axis=axis)).max() for axis in (1, 2)) for field in fields)
    np.testing.assert_allclose(output.as_array(), _sampled(fields, view), rtol=0, atol=1e-3 * steepest)

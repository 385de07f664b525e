"""Blur and defocus are held to SciPy within 1e-5 of an image of deviation 1."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from bie_stream import finish
from bie_stream.augment import NO_AUGMENT, Augment, Floats, View, draw

ALL = Augment(gain=0.5, offset=0.3, drop_channel=0.2, noise=0.1, blur_px=1.5, defocus_px=4)


def _images(count: int = 6, channels: int = 3, size: tuple[int, int] = (40, 33)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, channels, *size)).astype(np.float32))


def _view(augment: Augment, ids: npt.NDArray[np.int64], channels: int = 3) -> View:
    return draw(augment, ids, np.full((len(ids), 2), 40), (40, 33), seed=5, epoch=2, present=np.ones(channels, bool))


def _floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def _area(radius: float, extent: int, fine: int = 64) -> npt.NDArray[np.float64]:
    """How much of each pixel lies within a circle, counted on a fine grid."""
    at = (np.arange((2 * extent + 1) * fine) + 0.5) / fine - extent - 0.5
    inside = (np.hypot(at[:, None], at) <= radius).reshape(2 * extent + 1, fine, 2 * extent + 1, fine)
    return inside.mean(axis=(1, 3)) / (np.pi * radius**2)


def test_what_is_off_leaves_the_images_as_and_where_they_are() -> None:
    images = _images()
    for augment in (Augment(quarter_turn=False), NO_AUGMENT):
        assert finish.apply(images, _view(augment, np.arange(6))) is images
    assert torch.equal(images, _images())


def test_gain_and_offset_are_per_channel() -> None:
    images, gain, offset = _images(2, 2), _floats(1, 2, 0.5, 0).reshape(2, 2), _floats(0, 1, -1, 0).reshape(2, 2)
    finish.scale(images, gain, offset)
    expected = _images(2, 2).numpy() * gain[:, :, None, None] + offset[:, :, None, None]
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert not images[1, 1].any()


def test_blur_is_a_gaussian_of_each_samples_sigma() -> None:
    images, sigma = _images(), _floats(0.7, 0, 2.5, 1.2, 0.1, 0.4)
    finish.blur(images, sigma)
    for image, raw, by in zip(images.numpy(), _images().numpy(), sigma, strict=True):
        expected = [ndimage.gaussian_filter(plane.astype(float), by, mode="mirror", truncate=4) for plane in raw]
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5)


def test_defocus_spreads_each_point_over_a_disc() -> None:
    images, radius = _images(), _floats(0, 1, 3.3, 0.5, 2.5, 4)
    finish.defocus(images, radius)
    for image, raw, by in zip(images.numpy(), _images().numpy(), radius, strict=True):
        reach = int(np.ceil(by))
        kernel = np.array([[min(max(by + 0.5 - np.hypot(y, x), 0), 1) for x in range(-reach, reach + 1)]
                           for y in range(-reach, reach + 1)])  # fmt: skip
        expected = [ndimage.convolve(plane.astype(float), kernel / kernel.sum(), mode="mirror") for plane in raw]
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("radius", [1.0, 2.2, 4.5, 8.0])
def test_a_disc_covers_nearly_what_a_circle_covers(radius: float) -> None:
    extent = int(np.ceil(radius))
    (kernel,) = finish.disc(_floats(radius), extent)
    assert kernel.sum() == pytest.approx(1)
    assert np.abs(kernel - _area(radius, extent)).max() < 0.12 / (np.pi * radius**2)  # of the weight of a whole pixel


def test_what_a_step_leaves_alone_keeps_its_bits() -> None:
    images = _images()
    finish.blur(images, _floats(0, 2, 0.1, 0, 1, 0))
    finish.defocus(images, _floats(0, 2, 0.5, 0, 0, 0.2))
    changed = (images != _images()).any(dim=3).any(dim=2).any(dim=1)
    assert changed.tolist() == [False, True, False, False, True, False]


def test_a_kernel_may_be_larger_than_the_image() -> None:
    images = _images(size=(5, 9))
    finish.blur(images, np.full(6, 16, np.float32))
    finish.defocus(images, np.full(6, 16, np.float32))
    assert torch.isfinite(images).all()
    assert images.std(dim=(2, 3)).max() < 0.2


def test_an_even_image_stays_as_bright_as_it_is() -> None:
    images = torch.full((2, 1, 20, 20), 3.0)
    finish.blur(images, _floats(1.3, 3))
    finish.defocus(images, _floats(2.7, 5))
    np.testing.assert_allclose(images, 3, rtol=1e-6)


def test_an_image_does_not_depend_on_the_batch_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finish.apply(_images(), _view(ALL, np.arange(6)))
    some = np.array([4, 1, 1])
    part = finish.apply(_images()[some], _view(ALL, some))
    np.testing.assert_allclose(part, whole[some], rtol=0, atol=1e-6)
    monkeypatch.setattr(finish, "_AT_ONCE", 2)
    np.testing.assert_allclose(finish.apply(_images(), _view(ALL, np.arange(6))), whole, rtol=0, atol=1e-6)


def test_noise_comes_after_the_lens_and_stays_sharp() -> None:
    view = _view(Augment(noise=1, blur_px=3, defocus_px=4), np.arange(6))
    assert view.noise is not None
    images = finish.apply(torch.zeros(6, 3, 40, 33), view)
    np.testing.assert_allclose(images.std(dim=(2, 3)), view.noise.std, rtol=0.1)
    assert abs(np.corrcoef(images[0, 0, :, 1:].ravel(), images[0, 0, :, :-1].ravel())[0, 1]) < 0.15


def test_a_dropped_channel_is_zero_to_the_end() -> None:
    view = _view(ALL, np.arange(40))
    assert view.gain is not None
    images = finish.apply(_images(40), view)
    dropped = (images == 0).all(dim=3).all(dim=2).numpy()
    assert 5 < dropped.sum() < 60
    np.testing.assert_array_equal(dropped, view.gain == 0)


@pytest.mark.parametrize("off", ["gain", "offset", "noise", "blur_px", "defocus_px"])
def test_every_setting_has_its_effect(off: str) -> None:
    settings: dict[str, Any] = {"gain": 0.5, "offset": 0.3, "noise": 0.1, "blur_px": 1.5, "defocus_px": 4}
    whole = finish.apply(_images(), _view(Augment(**settings), np.arange(6)))
    less = finish.apply(_images(), _view(Augment(**{**settings, off: 0.0}), np.arange(6)))
    assert (whole - less).abs().amax(dim=(1, 2, 3)).max() > 0.01

"""The noise is held to Philox in NumPy bit for bit, and to Box and Muller in float64 within 1e-5."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bie_stream import noise
from bie_stream.augment import Augment, Noise, draw
from bie_stream.philox import philox

KEY = (4_000_000_000, 77)
COUNTER = np.array([[1, 2, 3], [2**32 - 1, 2**31, 2**32 - 2], [7, 0, 0]])

Uniform = Callable[[torch.Tensor, tuple[int, int], int], torch.Tensor]


def _uniform(counter: npt.NDArray[np.int64], quarter: int) -> npt.NDArray[np.float32]:
    """[B, 4, quarter], by `bie_stream.philox`."""
    whole = [[q, *of_sample] for of_sample in counter.tolist() for q in range(quarter)]
    words = philox(np.array(whole, np.uint64), KEY).reshape(len(counter), quarter, 4).transpose(0, 2, 1)
    return (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)


def _of(ids: npt.NDArray[np.int64], *, seed: int = 3, epoch: int = 0, view: int = 0, channels: int = 2) -> Noise:
    shapes = np.full((len(ids), 2), 64)
    drawn = draw(
        Augment(noise=1), ids, shapes, (64, 64), seed=seed, epoch=epoch, view=view, present=np.ones(channels, bool)
    )
    assert drawn.noise is not None
    return Noise(np.ones_like(drawn.noise.std), drawn.noise.counter, drawn.noise.key)


def _added(to: Noise, side: int = 64) -> npt.NDArray[np.float32]:
    images = torch.zeros(*to.std.shape, side, side)
    noise.add(images, to)
    return images.numpy()


@pytest.mark.parametrize("uniform", [noise.uniform_in_torch, noise.uniform_on_cpu])
def test_both_ways_to_the_random_bits_give_those_of_philox(uniform: Uniform) -> None:
    got = uniform(torch.from_numpy(COUNTER), KEY, 1001).numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, _uniform(COUNTER, 1001))


@pytest.mark.parametrize("pixels", [400, 399, 397, 1])
def test_the_numbers_are_those_of_box_and_muller(pixels: int) -> None:
    got = noise.normal(torch.from_numpy(COUNTER), KEY, pixels).numpy()
    u0, u1, u2, u3 = np.moveaxis(_uniform(COUNTER, -(-pixels // 4)).astype(np.float64), 1, 0)
    first, second = np.sqrt(-2 * np.log(u0)), np.sqrt(-2 * np.log(u1))
    turn, other = 2 * np.pi * u2, 2 * np.pi * u3
    quarters = [first * np.cos(turn), second * np.cos(other), first * np.sin(turn), second * np.sin(other)]
    np.testing.assert_allclose(got, np.concatenate(quarters, axis=1)[:, :pixels], rtol=0, atol=1e-5)


def test_the_numbers_are_gaussian_and_white() -> None:
    images = _added(_of(np.arange(60), channels=4))
    count = images.size
    assert abs(images.mean()) < 5 / np.sqrt(count)
    assert abs(images.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((images**3).mean()) < 5 * np.sqrt(15 / count)
    assert abs((images**4).mean() - 3) < 5 * np.sqrt(96 / count)
    for beyond, share in [(1, 0.317311), (2, 0.045500), (3, 0.0026998), (4, 6.334e-5)]:
        assert abs((np.abs(images) > beyond).mean() - share) < 5 * np.sqrt(share / count)
    neighbours = [(images[..., 1:], images[..., :-1]), (images[..., 1:, :], images[..., :-1, :]),
                  (images[:, 1:], images[:, :-1]), (images[1:], images[:-1])]  # fmt: skip
    assert all(abs((one * other).mean()) < 5 / np.sqrt(one.size) for one, other in neighbours)


def test_the_noise_of_a_sample_does_not_depend_on_the_batch_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _added(_of(np.arange(20)))
    np.testing.assert_array_equal(_added(_of(np.array([17, 3, 3]))), whole[[17, 3, 3]])
    monkeypatch.setattr(noise, "_AT_ONCE_CPU", 7 * 2 * 64 * 64)
    np.testing.assert_array_equal(_added(_of(np.arange(20))), whole)


def test_noise_differs_by_sample_seed_epoch_and_view() -> None:
    ids = np.arange(3)
    each = [
        _added(_of(ids)), _added(_of(ids, seed=4)), _added(_of(ids, seed=3 + 2**32)), _added(_of(ids, epoch=1)),
        _added(_of(ids, view=1)), _added(_of(ids + 2**32)),
    ]  # fmt: skip
    flat = np.concatenate(each).reshape(18, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(18)).max() < 5.5 / np.sqrt(flat.shape[1])


def test_noise_is_added_by_the_deviation_of_each_channel() -> None:
    of = _of(np.arange(2))
    by = Noise(np.array([[0.5, 0], [2, 1]], np.float32), of.counter, of.key)
    images = torch.full((2, 2, 64, 64), 3.0)
    noise.add(images, by)
    np.testing.assert_allclose(images, 3 + by.std[:, :, None, None] * _added(of), atol=1e-6)
    assert (images[0, 1] == 3).all()

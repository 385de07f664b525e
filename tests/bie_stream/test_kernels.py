import numpy as np
import numpy.typing as npt
import pytest
import torch

from bie_stream.kernels import crop_into
from bie_stream.memory import LINE
from bie_stream.normalise import Normalisation, apply

CROP = (24, 24)
# Rows that are whole lines of memory, and rows that are not: of another width, or begun in the middle of a line.
CROPS = [
    ((64, 64), 0),
    ((32, 32), 0),
    ((64, 64), 3),
    (CROP, 0),
    ((24, 31), 0),
    ((33, 64), 0),
    ((1, 1), 0),
    ((17, 17), 1),
]
SHIFT, SCALE = np.array([90.5, 3.0], np.float32), np.array([0.37, -1.25], np.float32)


def _samples(dtype: str, shapes: list[tuple[int, int, int]]) -> list[npt.NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    if dtype == "float32":
        return [rng.normal(100, 40, shape).astype(dtype) for shape in shapes]
    return [rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True) for shape in shapes]


def _memory(shape: tuple[int, ...], dtype: str, beyond: int) -> npt.NDArray[np.generic]:
    size = np.dtype(dtype).itemsize
    memory = np.full(int(np.prod(shape)) + LINE, 77, dtype)
    first = -memory.ctypes.data % LINE // size + beyond
    return memory[first : first + int(np.prod(shape))].reshape(shape)


def _both(
    samples: list[npt.NDArray[np.generic]], channels: list[int], per_image: bool, out_dtype: str, crop: tuple[int, int],
    beyond: int = 0,
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:  # fmt: skip
    """The images of the kernel, and those that NumPy makes step by step; rows in another order than the samples.

    Args:
        beyond: where the memory of the batch begins, in numbers after the begin of a line.
    """
    rng, count = np.random.default_rng(1), len(samples)
    swap, flip_y, flip_x = rng.random((3, count)) < 0.5
    if crop[0] != crop[1]:
        swap[:] = False
    top, left = (np.array([rng.integers(0, s.shape[axis] - crop[axis - 1] + 1) for s in samples]) for axis in (1, 2))
    rows = rng.permutation(count)
    by = Normalisation(SHIFT[None], SCALE[None], per_image)
    got = _memory((count, 2, *crop), out_dtype, beyond)
    crop_into(
        np.array([s.ctypes.data for s in samples]), np.array([s.shape for s in samples]), np.empty(0, samples[0].dtype),
        np.array(channels), top, left, swap, flip_y, flip_x, np.broadcast_to(SHIFT, (count, 2)),
        np.broadcast_to(SCALE, (count, 2)), per_image, rows, got,
    )  # fmt: skip
    expected = np.empty((count, 2, *crop), np.float32)
    for b, sample in enumerate(samples):
        image = sample[channels, top[b] : top[b] + crop[0], left[b] : left[b] + crop[1]]
        image = image.transpose(0, 2, 1) if swap[b] else image
        image = image[:, :: -1 if flip_y[b] else 1, :: -1 if flip_x[b] else 1]
        apply(image, by, expected[rows[b]])
    return got, expected


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("crop", "beyond"), CROPS)
def test_one_pass_gives_the_bits_of_crop_turn_mirror_and_normalisation_step_by_step(
    dtype: str, crop: tuple[int, int], beyond: int
) -> None:
    samples = _samples(dtype, [(3, 70 + n % 5, 69 + n % 3) for n in range(40)])
    got, expected = _both(samples, [2, 0], False, "float32", crop, beyond)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("crop", [CROP, (32, 32)])
def test_images_of_mean_0_and_variance_1_are_those_of_numpy(dtype: str, crop: tuple[int, int]) -> None:
    got, expected = _both(_samples(dtype, [(2, 40, 40)] * 20), [1, 0], True, "float32", crop)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("crop", "beyond"), CROPS)
def test_bfloat16_is_rounded_as_torch_rounds(dtype: str, crop: tuple[int, int], beyond: int) -> None:
    got, expected = _both(_samples(dtype, [(2, 70, 70)] * 40), [1, 0], False, "uint16", crop, beyond)
    assert torch.equal(torch.from_numpy(got).view(torch.bfloat16), torch.from_numpy(expected).to(torch.bfloat16))


@pytest.mark.parametrize("out_dtype", ["float32", "uint16"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(("crop", "beyond"), [((32, 32), 0), (CROP, 1)])
def test_a_channel_that_is_absent_is_written_as_zeros_and_those_beside_it_as_ever(
    out_dtype: str, per_image: bool, crop: tuple[int, int], beyond: int
) -> None:
    samples = _samples("uint16", [(3, 40, 40)] * 8)
    for channels, absent in [([-1, 2], 0), ([2, -1], 1)]:
        got, _ = _both(samples, channels, per_image, out_dtype, crop, beyond)
        expected, _ = _both(samples, [2, 2], per_image, out_dtype, crop, beyond)
        assert not got[:, absent].any()
        np.testing.assert_array_equal(got[:, 1 - absent], expected[:, 1 - absent])


def test_bfloat16_keeps_what_is_not_finite() -> None:
    sample = np.array([[[np.nan, np.inf, -np.inf, 3.4e38, 1e-40, -0.0]]], np.float32)
    got = np.zeros((1, 1, 1, 6), np.uint16)
    none = np.zeros(1, np.int64), np.zeros(1, np.int64), *np.zeros((3, 1), bool)
    crop_into(
        np.array([sample.ctypes.data]), np.array([sample.shape]), np.empty(0, np.float32), np.zeros(1, np.int64), *none,
        np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), False, np.zeros(1, np.int64), got,
    )  # fmt: skip
    found, expected = torch.from_numpy(got).view(torch.bfloat16), torch.from_numpy(sample).to(torch.bfloat16)[None]
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())

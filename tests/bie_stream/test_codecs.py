import io

import numpy as np
import pytest

from bie_stream import codecs
from bie_stream.errors import SampleError


def _image(dtype: str = "uint16", shape: tuple[int, ...] = (3, 5, 7)) -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 255).astype(dtype)


def _saved(pixels: np.ndarray) -> memoryview:
    file = io.BytesIO()
    np.save(file, pixels)
    return memoryview(file.getvalue())


@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_what_goes_in_comes_out(dtype: str) -> None:
    pixels = _image(dtype)
    back = codecs.decode(memoryview(codecs.encode(pixels)))
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_numpy_reads_and_writes_the_same_bytes(dtype: str) -> None:
    pixels = _image(dtype)
    assert codecs.encode(pixels) == bytes(_saved(pixels))
    np.testing.assert_array_equal(np.load(io.BytesIO(codecs.encode(pixels))), pixels)


def test_a_strided_view_is_written_as_it_looks() -> None:
    pixels = _image(shape=(7, 5, 3)).transpose(2, 1, 0)[:, ::-1, ::2]
    np.testing.assert_array_equal(codecs.decode(memoryview(codecs.encode(pixels))), pixels)


def test_decoding_copies_nothing_and_cannot_be_written_to() -> None:
    payload = codecs.encode(_image())
    back = codecs.decode(memoryview(payload))
    assert not back.flags.writeable
    assert np.shares_memory(back, np.frombuffer(payload, np.uint8))


@pytest.mark.parametrize(
    "payload",
    [
        memoryview(b""),
        memoryview(b"\x93NUMPY"),
        memoryview(b"not an array of pixels at all" * 9),
        _saved(_image())[:-1],
        _saved(_image())[:100],
        memoryview(bytes(_saved(_image())) + b"\0\0"),
        _saved(_image("float64")),
        _saved(_image("int16")),
        _saved(_image(shape=(5, 7))),
        _saved(np.asfortranarray(_image())),
    ],
    ids=["empty", "magic only", "text", "cut", "cut header", "too long", "float64", "int16", "2-D", "fortran order"],
)
def test_what_is_no_whole_array_of_pixels_is_refused(payload: memoryview) -> None:
    with pytest.raises(SampleError, match="not a whole npy array of pixels"):
        codecs.decode(payload)


def test_objects_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.full((1, 2, 2), None, dtype=object), allow_pickle=True)
    with pytest.raises(SampleError):
        codecs.decode(memoryview(file.getvalue()))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of numpy, about old headers
def test_a_damaged_header_gives_pixels_or_a_sample_error_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    whole = codecs.encode(_image())
    refused = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for place in rng.integers(0, 128, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            assert codecs.decode(memoryview(bytes(damaged))).ndim == 3
        except SampleError:
            refused += 1
    assert refused > 1000

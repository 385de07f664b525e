import contextlib
import importlib.util
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile

from bie_stream import codecs
from bie_stream.codecs import Codec, Form
from bie_stream.errors import DatasetError, SampleError, SourceError

needs_imagecodecs = pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is None, reason="imagecodecs is not installed"
)
needs_blosc2 = pytest.mark.skipif(importlib.util.find_spec("blosc2") is None, reason="blosc2 is not installed")
TIF, JPH = (pytest.param(codec, marks=needs_imagecodecs) for codec in ("tif", "jph"))
BLOSC2 = pytest.param("blosc2", marks=needs_blosc2)
CODECS = ["npy", TIF, JPH, BLOSC2]
COMPRESSED = CODECS[1:]
SHAPES = [(1, 1, 1), (1, 33, 47), (2, 1, 5), (3, 33, 47), (4, 5, 1), (9, 64, 64)]


def _image(dtype: str = "uint16", shape: tuple[int, ...] = (3, 5, 7)) -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 255).astype(dtype)


def _full_range(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every bit is used; of float32 also those of NaN, infinity and minus zero."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(0).bytes(size), dtype).reshape(shape)


def _saved(pixels: np.ndarray) -> memoryview:
    file = io.BytesIO()
    np.save(file, pixels)
    return memoryview(file.getvalue())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", codecs.DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", [_full_range, lambda dtype, shape: np.zeros(shape, dtype)], ids=["noise", "zeros"])
def test_what_goes_in_comes_out_to_the_last_bit(
    codec: Codec, dtype: str, shape: tuple[int, ...], make: Callable[..., np.ndarray]
) -> None:
    if codec == "jph" and dtype == "float32":
        pytest.skip("jph does not take float32")
    pixels = make(dtype, shape)
    payload = codecs.encode(pixels, codec)
    for expected in (None, Form(shape, dtype)):
        back = codecs.decode(memoryview(payload), codec, expected)
        assert (back.dtype, back.shape) == (pixels.dtype, pixels.shape)
        assert back.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_pixels_give_the_same_bytes_now_and_in_another_process(codec: Codec) -> None:
    pixels = _image(shape=(2, 40, 50))
    payload = codecs.encode(pixels, codec)
    assert codecs.encode(pixels.copy(), codec) == payload
    program = (
        "import sys, numpy as np; from bie_stream import codecs;"
        "pixels = (np.random.default_rng(0).random((2, 40, 50)) * 255).astype('uint16');"
        f"sys.stdout.buffer.write(codecs.encode(pixels, {codec!r}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == payload


@pytest.mark.parametrize("codec", CODECS)
def test_a_strided_view_is_written_as_it_looks(codec: Codec) -> None:
    pixels = _image(shape=(7, 5, 3)).transpose(2, 1, 0)[:, ::-1, ::2]
    np.testing.assert_array_equal(codecs.decode(memoryview(codecs.encode(pixels, codec)), codec), pixels)


@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_numpy_reads_and_writes_the_same_bytes_as_npy(dtype: str) -> None:
    pixels = _image(dtype)
    assert codecs.encode(pixels, "npy") == bytes(_saved(pixels))
    np.testing.assert_array_equal(np.load(io.BytesIO(codecs.encode(pixels, "npy"))), pixels)


@needs_imagecodecs
@pytest.mark.parametrize("dtype", codecs.DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tifffile_reads_tif_as_one_image_of_many_samples(dtype: str, shape: tuple[int, ...]) -> None:
    pixels = _full_range(dtype, shape)
    with tifffile.TiffFile(io.BytesIO(codecs.encode(pixels, "tif"))) as file:
        assert len(file.pages) == 1
        found = file.asarray().reshape(*shape[1:], shape[0])
    assert np.moveaxis(found, -1, 0).tobytes() == pixels.tobytes()


@needs_imagecodecs
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_openjph_and_openjpeg_read_jph_as_a_tall_image(dtype: str, shape: tuple[int, ...]) -> None:
    import imagecodecs

    pixels = _full_range(dtype, shape)
    payload = codecs.encode(pixels, "jph")
    for read in (imagecodecs.htj2k_decode, imagecodecs.jpeg2k_decode):
        np.testing.assert_array_equal(read(payload), pixels.reshape(-1, shape[2]))


@needs_blosc2
@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_blosc2_reads_its_frame_without_our_code(dtype: str) -> None:
    import blosc2

    pixels = _full_range(dtype, (3, 33, 47))
    found = blosc2.ndarray_from_cframe(codecs.encode(pixels, "blosc2"))
    assert (found.dtype, found.shape) == (pixels.dtype, pixels.shape)
    assert found[:].tobytes() == pixels.tobytes()


@pytest.mark.parametrize("codec", [TIF, JPH])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
def test_dali_decodes_the_images_of_any_number_of_channels(codec: Codec, channels: int) -> None:
    dali = pytest.importorskip("nvidia.dali")
    pixels = _full_range("uint16", (channels, 33, 47))

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]  # DALI has no types
    def graph() -> object:
        payload = dali.fn.external_source(name="payload", dtype=dali.types.UINT8, ndim=1)
        return dali.fn.decoders.image(payload, output_type=dali.types.ANY_DATA, dtype=dali.types.UINT16)

    pipeline = graph()
    pipeline.build()
    pipeline.feed_input("payload", [np.frombuffer(codecs.encode(pixels, codec), np.uint8)])
    image = pipeline.run()[0].at(0)
    found = image.reshape(pixels.shape) if codec == "jph" else np.moveaxis(image, -1, 0)
    np.testing.assert_array_equal(found, pixels)


def test_decoding_npy_copies_nothing_and_cannot_be_written_to() -> None:
    payload = codecs.encode(_image(), "npy")
    back = codecs.decode(memoryview(payload), "npy")
    assert not back.flags.writeable
    assert np.shares_memory(back, np.frombuffer(payload, np.uint8))


def test_jph_refuses_float32_and_says_who_takes_it() -> None:
    with pytest.raises(SourceError, match=r"jph takes uint8 and uint16, not float32; .* npy, tif, blosc2"):
        codecs.encode(_image("float32"), "jph")


@pytest.mark.parametrize(("codec", "package"), [("tif", "imagecodecs"), ("jph", "imagecodecs"), ("blosc2", "blosc2")])
def test_a_missing_package_is_named_with_what_installs_it(
    codec: Codec, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    codecs._extra.cache_clear()
    whole = bytes.fromhex("ff4fff51002940000000000700000005") + bytes(8) + bytes.fromhex("0000000700000005")
    whole += bytes(8) + bytes.fromhex("00010f0101") + b"\xff\xd9"  # a JPEG 2000 header of 1 x 5 x 7 uint16
    for use in (lambda: codecs.encode(_image(), codec), lambda: codecs.decode(memoryview(whole), codec)):
        with pytest.raises(DatasetError, match=rf"{package}: pip install 'bie-stream\[codecs\]'") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_npy_needs_no_package_of_the_extra() -> None:
    program = (
        "import sys, numpy as np; from bie_stream import codecs;"
        "codecs.decode(memoryview(codecs.encode(np.zeros((1, 2, 3), 'uint8'), 'npy')), 'npy');"
        "assert not {'imagecodecs', 'blosc2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "other", [Form((3, 7, 5), "uint16"), Form((1, 15, 7), "uint16"), Form((3, 5, 7), "uint8"), Form((), "uint16")]
)
def test_another_shape_or_dtype_than_the_table_says_is_refused(codec: Codec, other: Form) -> None:
    payload = memoryview(codecs.encode(_image(), codec))
    with pytest.raises(SampleError, match=r"uint16 \[3, 5, 7\], the table says"):
        codecs.decode(payload, codec, other)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_bomb_is_refused_before_memory_is_taken(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = memoryview(codecs.encode(np.zeros((2, 512, 512), np.uint16), codec))
    assert len(payload) < 10_000
    monkeypatch.setattr(codecs, "MAX_BYTES", 2**20 - 1)
    with pytest.raises(SampleError, match="is more than 1048575 bytes"):
        codecs.decode(payload, codec)
    assert codecs.decode(payload, codec, Form((2, 512, 512), "uint16")).shape == (2, 512, 512)


@needs_imagecodecs
def test_a_strip_that_inflates_to_more_than_its_image_takes_no_more_memory() -> None:
    import tracemalloc
    import zlib

    file = io.BytesIO()
    bomb = zlib.compress(bytes(2**26), 9)
    tifffile.imwrite(file, iter([bomb]), shape=(8, 8), dtype="uint8", compression="zlib", rowsperstrip=8, metadata=None)
    tracemalloc.start()
    try:
        codecs.decode(memoryview(file.getvalue()), "tif")
    except SampleError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 2**22


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: whole[:5], lambda whole: whole[: len(whole) // 2], lambda whole: whole[:-1],
     lambda whole: b"not an array of pixels at all" * 9, lambda whole: bytes(_saved(_image()))],
    ids=["empty", "five bytes", "half", "all but one byte", "text", "npy"],
)  # fmt: skip
def test_what_is_cut_short_or_of_another_kind_is_refused(codec: Codec, damage: Callable[[bytes], bytes]) -> None:
    whole = codecs.encode(_image(shape=(2, 64, 64)), codec)
    with pytest.raises(SampleError, match=f"not a whole {codec} array of pixels"):
        codecs.decode(memoryview(damage(whole)), codec)


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
def test_what_is_no_whole_npy_array_of_pixels_is_refused(payload: memoryview) -> None:
    with pytest.raises(SampleError, match="not a whole npy array of pixels"):
        codecs.decode(payload, "npy")


@needs_imagecodecs
def test_a_tiff_of_another_layout_is_refused() -> None:
    pixels = _image(shape=(3, 16, 16))
    layouts: list[dict[str, Any]] = [
        {"photometric": "minisblack"},  # three pages
        {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"},
        {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16)},
    ]
    for layout in layouts:
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, metadata=None, **layout)
        with pytest.raises(SampleError):
            codecs.decode(memoryview(file.getvalue()), "tif", Form((3, 16, 16), "uint16"))


def test_objects_in_npy_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.full((1, 2, 2), None, dtype=object), allow_pickle=True)
    with pytest.raises(SampleError):
        codecs.decode(memoryview(file.getvalue()), "npy")


@needs_blosc2
def test_objects_in_blosc2_are_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    import blosc2

    payloads = [blosc2.pack_array2(_image()), blosc2.pack_array(_image()), blosc2.pack_tensor(_image())]
    with_note = blosc2.asarray(_image(), chunks=(3, 5, 7), blocks=(1, 5, 7))
    with_note.schunk.vlmeta["note"] = {"any": "thing"}
    payloads.append(with_note.to_cframe())

    asked: list[object] = []
    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *given, **_: asked.append(given))
    for payload in payloads:  # refused or read, without it
        with contextlib.suppress(SampleError):
            np.testing.assert_array_equal(codecs.decode(memoryview(bytes(payload)), "blosc2"), _image())
    assert asked == []
    np.testing.assert_array_equal(codecs.decode(memoryview(codecs.encode(_image(), "blosc2")), "blosc2"), _image())


@needs_blosc2
def test_blosc2_with_another_compressor_or_filter_is_refused() -> None:
    import blosc2

    pixels = _image(shape=(2, 64, 64))
    for settings in ({"codec": blosc2.Codec.LZ4}, {"filters": [blosc2.Filter.BITSHUFFLE]}):
        how = blosc2.CParams(**{"codec": blosc2.Codec.ZSTD, "filters": [blosc2.Filter.SHUFFLE], **settings})
        payload = blosc2.asarray(pixels, cparams=how, chunks=pixels.shape, blocks=(1, 64, 64)).to_cframe()
        with pytest.raises(SampleError, match="another compressor than zstd, or another filter"):
            codecs.decode(memoryview(payload), "blosc2")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of numpy, about old headers
@pytest.mark.parametrize("codec", CODECS)
def test_damaged_bytes_give_pixels_or_a_sample_error_and_nothing_else(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    pixels = _image(shape=(3, 33, 47))
    whole, form = codecs.encode(pixels, codec), Form(pixels.shape, "uint16")
    refused = 0
    for number in range(3000 if codec == "npy" else 1000):
        damaged = bytearray(whole)
        reach = 128 if codec == "npy" else (200, len(whole))[number % 2]
        for place in rng.integers(0, reach, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            assert codecs.decode(memoryview(bytes(damaged)), codec, form).shape == form.shape
        except SampleError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("codec", CODECS)
def test_many_threads_decode_at_once(codec: Codec) -> None:
    images = [np.random.default_rng(i).integers(0, 4096, (3, 64, 64), np.uint16) for i in range(4)]
    payloads = [memoryview(codecs.encode(image, codec)) for image in images]
    wrong: list[int] = []

    def check(number: int) -> None:
        for _ in range(30):
            if not np.array_equal(codecs.decode(payloads[number], codec), images[number]):
                wrong.append(number)

    threads = [threading.Thread(target=check, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("dtype", codecs.DTYPES)
@pytest.mark.parametrize("shape", [(3, 100, 500), (1, 7, 9), (2, 33, 40_000), (4, 512, 512), (2, 64, 512)])
def test_rows_of_a_blosc2_payload_are_those_of_the_whole_and_only_their_bands_are_decoded(
    dtype: str, shape: tuple[int, int, int]
) -> None:
    blosc2 = pytest.importorskip("blosc2")
    rng = np.random.default_rng(0)
    pixels = (rng.random(shape) * 200).astype(dtype)
    pixels[:, : shape[1] // 2] = 0  # bands that hold one value are stored in another way
    payload, form = memoryview(codecs.encode(pixels, "blosc2")), Form(shape, dtype)
    np.testing.assert_array_equal(codecs.decode(payload, "blosc2", form), pixels)
    array = blosc2.ndarray_from_cframe(bytes(payload))
    assert array.chunks == shape
    band = array.blocks
    assert band[0] == 1
    assert band[2] == shape[2]
    assert band[1] == min(shape[1], max(1, 65536 // (shape[2] * pixels.itemsize)))
    for first, last in [(0, shape[1]), (0, 1), (shape[1] - 1, shape[1]), (shape[1] // 3, shape[1] // 3 + 2)]:
        channels = rng.permutation(shape[0])[:2]
        part, begin = codecs.decode_rows(payload, form, channels, first, last)
        np.testing.assert_array_equal(part[:, first - begin : last - begin], pixels[channels, first:last])
        assert part.shape[1] <= last - first + 2 * band[1]

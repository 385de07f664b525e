from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from command_line import ROOT

from bie_stream import codecs
from bie_stream.errors import SourceError
from shardgen.codec_choice import MAX_SAMPLES, Measured, choose, decide, measure

IMAGES = ROOT.parent / "shared" / "data" / "idr0036_hoechst" / "images"


def _noise(dtype: str, samples: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    size = 2 * 64 * 64 * np.dtype(dtype).itemsize
    return [np.frombuffer(rng.bytes(size), dtype).reshape(2, 64, 64) for _ in range(samples)]


@pytest.mark.skipif(not IMAGES.is_dir(), reason="the images of idr0036 are not beside this checkout")
def test_on_real_images_the_choice_follows_the_rule_and_ratios_are_those_of_the_files() -> None:
    pytest.importorskip("imagecodecs")
    pytest.importorskip("blosc2")
    fields = [tifffile.imread(path)[None] for path in sorted(IMAGES.glob("*.tif"))[:12]]
    choice = choose(fields)
    assert choice == decide(choice.table)
    assert choice.why.startswith(choice.codec)
    assert {m.codec for m in choice.table} == set(codecs.CODECS)
    for found in choice.table:
        payload = sum(len(codecs.encode(image, found.codec)) for image in fields)
        assert found.ratio == sum(image.nbytes for image in fields) / payload
    ratios = {m.codec: m.ratio for m in choice.table}
    assert 0.99 < ratios["npy"] < 1
    assert ratios["jph"] > ratios["blosc2"] > ratios["tif"] > 1.5


def _table(*rows: tuple[codecs.Codec, float, float]) -> tuple[Measured, ...]:
    return tuple(Measured(codec, ratio, 100.0, speed) for codec, ratio, speed in rows)


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([("npy", 1.0, 20_000), ("tif", 2.0, 300), ("jph", 2.8, 130), ("blosc2", 2.3, 1000)], "blosc2"),
        ([("npy", 1.0, 20_000), ("tif", 2.0, 600), ("blosc2", 1.9, 1000)], "tif"),
        ([("npy", 1.0, 20_000), ("tif", 2.0, 499), ("blosc2", 1.24, 1000)], "npy"),
        ([("npy", 1.0, 20_000)], "npy"),
    ],
    ids=["the smallest that is fast", "size before speed", "slow, or saves too little", "nothing else installed"],
)
def test_the_smallest_codec_that_is_fast_and_saves_enough_is_chosen(
    rows: list[tuple[codecs.Codec, float, float]], chosen: str
) -> None:
    choice = decide(_table(*rows))
    assert choice.codec == chosen
    assert choice.why.startswith(f"{chosen}: ")


@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_pure_noise_stays_npy(dtype: str) -> None:
    choice = choose(_noise(dtype))
    assert choice.codec == "npy"
    assert ("jph" in {m.codec for m in choice.table}) <= (dtype != "float32")


def test_no_more_samples_are_read_than_are_looked_at() -> None:
    read = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            read.append(1)
            yield np.zeros((1, 2, 2), np.uint8)

    choose(endless())
    assert len(read) <= MAX_SAMPLES + 1


def test_no_samples_are_refused() -> None:
    with pytest.raises(SourceError, match="no samples"):
        measure([])

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from shardgen import statistics
from shardgen.statistics import PERCENTILES, ChannelCounts, PlateSums, plate_statistics


def pixels(dtype: str, seed: int = 0, size: tuple[int, int] = (97, 101)) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(3, 40, size).astype(np.float32)
    return rng.gamma(2.0, np.iinfo(dtype).max / 12, size).clip(0, np.iinfo(dtype).max).astype(dtype)


def counted(dtype: str, *arrays: np.ndarray[Any, Any]) -> ChannelCounts:
    counts = ChannelCounts(dtype)
    for array in arrays:
        counts.add(array)
    return counts


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integer_pixels_are_described_exactly(dtype: str) -> None:
    arrays = [pixels(dtype, seed) for seed in range(3)]
    found, every = counted(dtype, *arrays).statistics(), np.concatenate([a.ravel() for a in arrays])
    assert found.mean == pytest.approx(every.mean(dtype=np.float64), rel=1e-14)
    assert found.std == pytest.approx(every.std(dtype=np.float64), rel=1e-12)
    assert (found.minimum, found.maximum) == (every.min(), every.max())
    for p in PERCENTILES:
        assert found.percentiles[f"{p:g}"] == np.percentile(every, p, method="inverted_cdf"), p


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 4000])
def test_percentiles_of_few_pixels_are_exact_too(n: int) -> None:
    values = np.arange(n, dtype=np.uint16)
    found = counted("uint16", values[None]).statistics()
    for p in PERCENTILES:
        rank = math.ceil(Fraction(str(p)) * n / 100)  # np.percentile takes one too many where p · n rounds up
        assert found.percentiles[f"{p:g}"] == rank - 1, p


def test_the_variance_of_bright_flat_pixels_does_not_cancel() -> None:
    values = np.full((512, 512), 65535, np.uint16)
    values[0, 0] = 65534
    assert counted("uint16", values).statistics().std == pytest.approx(values.std(dtype=np.longdouble), rel=1e-9)
    assert counted("uint8", np.full((3, 3), 7, np.uint8)).statistics().std == 0


def test_float_pixels_are_described_within_one_percent() -> None:
    values = pixels("float32")
    found = counted("float32", values).statistics()
    assert found.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-10)
    assert found.std == pytest.approx(values.std(dtype=np.float64), rel=1e-10)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    for p in PERCENTILES:
        assert found.percentiles[f"{p:g}"] == pytest.approx(
            np.percentile(values, p, method="inverted_cdf"), rel=0.01
        ), p


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_merged_shards_equal_the_whole(dtype: str) -> None:
    first, second = [pixels(dtype, s) for s in (0, 1)], [pixels(dtype, s) for s in (2, 3)]
    shards = [[counted(dtype, first[0]).dump(), counted(dtype, second[0]).dump()],
              [counted(dtype, first[1]).dump(), counted(dtype, second[1]).dump()]]  # fmt: skip
    for order in (shards, shards[::-1]):
        merged = [ChannelCounts(dtype) for _ in range(2)]
        for shard in order:
            for channel, dumped in zip(merged, shard, strict=True):
                channel.merge(dumped)
        assert [m.statistics() for m in merged] == [counted(dtype, *p).statistics() for p in (first, second)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_part_of_a_field_counts_as_its_copy(dtype: str) -> None:
    part = pixels(dtype)[3:70:2, 5:90]
    np.testing.assert_array_equal(counted(dtype, part).counts, counted(dtype, part.copy()).counts)


def test_more_pixels_than_32_bits_count_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_MOST_RECENT", 97 * 101 + 5)
    arrays = [pixels("uint16", seed) for seed in range(5)]
    expected = np.bincount(np.concatenate([a.ravel() for a in arrays]), minlength=65536)
    np.testing.assert_array_equal(counted("uint16", *arrays).counts, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_each_plate_is_described_on_its_own_however_its_fields_are_spread_over_shards(dtype: str) -> None:
    fields = [(plate, pixels(dtype, seed)) for seed, plate in enumerate(["B", "B", "A", "B", "A", "A", "C"])]
    dumped = []
    for shard in (fields[:4], fields[4:]):
        counts = [ChannelCounts(dtype)]
        plates = PlateSums(counts)
        for plate, field in shard:
            plates.turn_to(plate)
            counts[0].add(field)
        dumped.append(json.loads(json.dumps(plates.dump())))
    found = plate_statistics(dumped)
    assert list(found) == ["A", "B", "C"]
    assert found == plate_statistics(dumped[::-1])
    for name, (channel,) in found.items():
        every = np.concatenate([field.ravel() for plate, field in fields if plate == name])
        assert channel.mean == pytest.approx(every.mean(dtype=np.float64), rel=1e-12)
        assert channel.std == pytest.approx(every.std(dtype=np.float64), rel=1e-10)


def test_sums_of_more_squares_than_64_bits_hold_are_exact() -> None:
    counts = ChannelCounts("uint16")
    counts._counts[[65535, 3]] = 2**40, 5
    assert counts.sums() == (2**40 + 5, 65535 * 2**40 + 15, 65535**2 * 2**40 + 45)

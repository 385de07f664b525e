import numpy as np
import pytest

from bie_stream.mixture import Mixture
from bie_stream.order import Balanced, Blocked, Order, Sequential, Shuffled
from bie_stream.shuffle_quality import ShuffleQuality, measure

N, BATCH = 20_000, 64
PLATES = np.arange(N) * 20 // N
SHARDS = np.arange(N) // 100


def _measure(order: Order) -> ShuffleQuality:
    return measure(order, BATCH, PLATES, SHARDS, seed=1)


def test_another_shuffle_is_as_good_as_the_ideal_one() -> None:
    quality = measure(Shuffled(N), BATCH, PLATES, SHARDS, seed=1, epoch=3)
    assert quality.plate_entropy == pytest.approx(1, abs=0.02)
    assert quality.rank_shift == pytest.approx(1, abs=0.03)
    assert quality.shards == pytest.approx(200 * (1 - 0.995**BATCH), rel=0.02)


def test_the_order_of_the_rows_mixes_nothing() -> None:
    quality = _measure(Sequential(N))
    assert quality.plate_entropy < 0.02
    assert quality.rank_shift < 0.01
    assert quality.shards < 2


def test_more_open_shards_mix_better() -> None:
    few, some, many = (_measure(Blocked(np.full(200, 100), block)) for block in (2, 8, 32))
    assert 0.1 < few.plate_entropy < some.plate_entropy < many.plate_entropy < 1
    assert few.shards < 4 < some.shards < 11 < many.shards < 35
    assert few.rank_shift == pytest.approx(1, abs=0.15)  # of 200 shards in a random order


def test_entropy_is_that_of_the_plates_in_a_batch() -> None:
    """Sixteen of each of four plates in every batch: ln 4. By chance it is less, by 3 / (2 · 64) to first order."""
    quality = measure(Balanced(np.arange(N) % 4), BATCH, np.arange(N) % 4, SHARDS)
    assert quality.plate_entropy == pytest.approx(np.log(4) / (np.log(4) - 3 / 128), abs=0.01)


class _InOrder:
    def __init__(self, n: int) -> None:
        self.n = n

    def ids(self, positions: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        return positions


def test_rank_shift_is_the_distance_to_the_row_by_that_of_random_places() -> None:
    """Two halves read side by side: on the mean a row is a quarter of the dataset away, at random it is a third."""
    halves = Mixture([_InOrder(N // 2), _InOrder(N // 2)])
    assert _measure(halves).rank_shift == pytest.approx(0.75, abs=0.02)


def test_datasets_of_a_mixture_follow_each_other() -> None:
    """The buckets alternate, and every second step of 512 would be of one bucket."""
    mixture = Mixture([Shuffled(N // 4), Shuffled(N - N // 4)], [1, 1], ["a", "b"], epoch_samples=512 * BATCH)
    quality = measure(mixture, BATCH, np.minimum(PLATES, 5), SHARDS)  # half of the batches of five plates, half of one
    share = np.array([1, 1, 1, 1, 1, 15]) / 20
    assert quality.plate_entropy == pytest.approx(np.log(5) / 2 / -(share * np.log(share)).sum(), abs=0.03)


def test_rows_that_come_more_often_than_others_are_no_worse_mixed() -> None:
    assert _measure(Mixture([Shuffled(N // 4), Shuffled(N - N // 4)], [50, 1])).rank_shift == pytest.approx(1, abs=0.05)


def test_one_plate_cannot_be_mixed_better() -> None:
    assert measure(Shuffled(N), BATCH, np.zeros(N, int), SHARDS).plate_entropy == 1


def test_it_reads_as_a_sentence() -> None:
    expected = "in-batch plate entropy 0.97 of an ideal shuffle, rank shift 0.93, 4.1 shards a batch"
    assert str(ShuffleQuality(0.97, 0.93, 4.1)) == expected

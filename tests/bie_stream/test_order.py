import numpy as np
import pytest

from bie_stream.order import batch_ids, permute, steps_per_epoch

FROZEN_16 = [3, 14, 6, 12, 1, 8, 4, 10, 5, 2, 13, 11, 15, 9, 7, 0]
FROZEN_LARGE = [1457372735, 1599410729, 5800319851]


def _order(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n, dtype=np.int64), n, seed, epoch)


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 1023, 1024, 1025, 4097, 65_537])
def test_an_epoch_is_a_bijection(n: int) -> None:
    np.testing.assert_array_equal(np.sort(_order(n)), np.arange(n))


def test_the_order_of_version_1_is_frozen() -> None:
    """A change here breaks the resume of every run that exists."""
    assert _order(16, seed=7, epoch=3).tolist() == FROZEN_16
    assert permute(np.array([0, 1, 10**9]), 10**10, seed=2**40 + 1, epoch=0).tolist() == FROZEN_LARGE


def test_a_position_has_its_id_whatever_else_is_asked() -> None:
    whole = _order(1000, seed=5)
    asked = np.array([999, 3, 3, 512])
    np.testing.assert_array_equal(permute(asked, 1000, 5, 0), whole[asked])


def test_seeds_and_epochs_have_unlike_orders() -> None:
    orders = [_order(1000, seed, epoch) for seed in (0, 1, 2**32) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # one is expected by chance
        assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("n", [2, 3, 6, 16, 40])
def test_each_position_gets_each_id_equally_often(n: int) -> None:
    seeds = 4000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), _order(n, seed)] += 1
    assert np.abs(counts - seeds / n).max() < 4.5 * np.sqrt(seeds * (1 / n) * (1 - 1 / n))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_world_size_cuts_the_same_global_batches(world_size: int, shuffle: bool) -> None:
    order = _order(50, seed=1, epoch=2) if shuffle else np.arange(50)
    for step in range(steps_per_epoch(50, 8, drop_last=True)):
        parts = [
            batch_ids(50, 8, step, seed=1, epoch=2, shuffle=shuffle, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert {len(ids) for ids, _ in parts} == {8 // world_size}
        np.testing.assert_array_equal(np.concatenate([ids for ids, _ in parts]), order[step * 8 : step * 8 + 8])
        assert all(valid.all() for _, valid in parts)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_last_batch_is_filled_up_with_rows_that_are_not_valid(world_size: int, shuffle: bool) -> None:
    assert steps_per_epoch(10, 4, drop_last=False) == 3
    parts = [
        batch_ids(10, 4, 2, seed=0, epoch=0, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    ids, valid = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    assert valid.tolist() == [True, True, False, False]
    assert ids[~valid].tolist() == [0, 0]
    np.testing.assert_array_equal(ids[valid], (_order(10) if shuffle else np.arange(10))[8:])


@pytest.mark.parametrize(("n", "dropped", "kept"), [(8, 2, 2), (9, 2, 3), (3, 0, 1), (4, 1, 1)])
def test_steps_count_the_partial_batch_only_where_it_is_kept(n: int, dropped: int, kept: int) -> None:
    assert steps_per_epoch(n, 4, drop_last=True) == dropped
    assert steps_per_epoch(n, 4, drop_last=False) == kept

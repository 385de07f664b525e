import pickle
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from bie_stream.errors import DatasetError
from bie_stream.order import Balanced, Blocked, Order, Part, Sequential, Shuffled, cut, permute

FROZEN_16 = [3, 14, 6, 12, 1, 8, 4, 10, 5, 2, 13, 11, 15, 9, 7, 0]
FROZEN_LARGE = [1457372735, 1599410729, 5800319851]
FROZEN_BLOCKED = [3, 2, 9, 11, 4, 0, 12, 14, 1, 6, 15, 13, 5, 8, 7, 10]
FROZEN_BALANCED = [15, 3, 10, 14, 2, 11, 13, 3, 9, 12, 2, 8, 4, 13, 10, 0]

Make = Callable[[int, np.random.Generator], Order]


def _pieces(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.bincount(rng.integers(0, rng.integers(1, 12), n))


KINDS: dict[str, Make] = {
    "sequential": lambda n, rng: Sequential(n),
    "shuffled": lambda n, rng: Shuffled(n),
    "blocked": lambda n, rng: Blocked(_pieces(n, rng), int(rng.integers(1, 9))),
    "balanced": lambda n, rng: Balanced(rng.integers(0, rng.integers(1, 12), n)),
}


def _order(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n, dtype=np.int64), n, seed, epoch)


def _epoch(order: Order, batch_size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """[steps, batch_size] ids."""
    steps = range(order.steps(batch_size))
    return np.array([order.batch(step, batch_size=batch_size, seed=seed, epoch=epoch).ids for step in steps])


def _plans(count: int = 1000) -> Iterator[tuple[int, int, int, np.random.Generator]]:
    """Number of samples, samples of a global batch, ranks; and random numbers for the rest."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        world_size, share = int(rng.integers(1, 9)), int(rng.integers(1, 13))
        yield int(rng.integers(1, 300)), world_size * share, world_size, rng


def _joined(*parts: Part) -> np.ndarray:
    """[4, samples]: id, valid, dataset, visit."""
    return np.hstack([np.stack([part.ids, part.valid, part.dataset, part.visit]) for part in parts])


def _chi_square(counts: np.ndarray) -> float:
    """In standard deviations from what is expected of counts that are even but for chance."""
    degrees = counts.size - 1
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum() - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 1023, 1024, 1025, 4097, 65_537])
def test_an_epoch_is_a_bijection(n: int) -> None:
    np.testing.assert_array_equal(np.sort(_order(n)), np.arange(n))


def test_the_order_of_version_1_is_frozen() -> None:
    """A change here breaks the resume of every run that exists: of large numbers too, and of every kind of order."""
    assert _order(16, seed=7, epoch=3).tolist() == FROZEN_16
    assert permute(np.array([0, 1, 10**9]), 10**10, seed=2**40 + 1, epoch=0).tolist() == FROZEN_LARGE
    assert _epoch(Shuffled(16), 4, seed=7, epoch=3).flatten().tolist() == FROZEN_16
    assert _epoch(Blocked(np.array([5, 2, 6, 3]), 2), 4, seed=7, epoch=3).flatten().tolist() == FROZEN_BLOCKED
    assert _epoch(Balanced(np.arange(16) // 6), 4, seed=7, epoch=3).flatten().tolist() == FROZEN_BALANCED


def test_a_position_has_its_id_whatever_else_is_asked() -> None:
    whole = _order(1000, seed=5)
    asked = np.array([999, 3, 3, 512])
    np.testing.assert_array_equal(permute(asked, 1000, 5, 0), whole[asked])


def test_positions_of_different_orders_can_be_asked_together() -> None:
    n, epoch, part = np.array([7, 1000, 1, 16]), np.array([0, 2, 5, 3]), np.array([1, 0, 9, 0])
    positions = n // 2
    together = permute(positions, n, 7, epoch, part)
    alone = [permute(positions[i : i + 1], int(n[i]), 7, int(epoch[i]), int(part[i]))[0] for i in range(4)]
    assert together.tolist() == alone


def test_seeds_epochs_and_parts_have_unlike_orders() -> None:
    which = [(seed, epoch, part) for seed in (0, 1, 2**32) for epoch in (0, 1) for part in (0, 1)]
    orders = [permute(np.arange(1000), 1000, *one) for one in which]
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


@pytest.mark.parametrize("kind", KINDS)
def test_in_1000_random_plans_the_parts_of_all_ranks_are_the_global_batch(kind: str) -> None:
    for n, batch_size, world_size, rng in _plans():
        order = KINDS[kind](n, rng)
        if not (steps := order.steps(batch_size)):
            continue
        seed, epoch, step = (int(rng.integers(limit)) for limit in (100, 100, steps))
        whole, *parts = (
            order.batch(step, batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world_size=size)
            for rank, size in [(0, 1), *((rank, world_size) for rank in range(world_size))]
        )
        assert {len(part.ids) for part in parts} == {batch_size // world_size}
        np.testing.assert_array_equal(_joined(*parts), _joined(whole))


@pytest.mark.parametrize("kind", ["shuffled", "blocked"])
def test_in_1000_random_plans_each_sample_comes_once_an_epoch(kind: str) -> None:
    for n, batch_size, _, rng in _plans():
        order, epoch = KINDS[kind](n, rng), int(rng.integers(100))
        ids = _epoch(order, batch_size, epoch=epoch).flatten()
        assert len(ids) == n // batch_size * batch_size
        assert len(np.unique(ids)) == len(ids)
        assert order.sizes == (n,)
        if len(ids):
            assert 0 <= ids.min() <= ids.max() < n


def test_in_1000_random_plans_evaluation_gives_each_sample_once_in_order_and_fills_up_the_last_batch() -> None:
    for n, batch_size, _, _ in _plans():
        order = Sequential(n)
        parts = [order.batch(step, batch_size=batch_size, seed=0, epoch=0) for step in range(order.steps(batch_size))]
        ids, valid = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "valid"))
        assert ids[valid].tolist() == list(range(n))
        assert len(ids) - n < batch_size
        assert not valid[n:].any()
        assert not ids[n:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_same_in_another_process_and_whatever_came_before(kind: str) -> None:
    order = KINDS[kind](200, np.random.default_rng(1))
    asked: dict[str, Any] = {"batch_size": 8, "seed": 3, "epoch": 5}
    batches = [order.batch(step, **asked) for step in range(10)]
    later = pickle.loads(pickle.dumps(order))
    for step in reversed(range(10)):
        np.testing.assert_array_equal(_joined(later.batch(step, **asked)), _joined(batches[step]))


@pytest.mark.parametrize(("n", "dropped", "kept"), [(8, 2, 2), (9, 2, 3), (3, 0, 1), (4, 1, 1)])
def test_steps_count_the_partial_batch_only_in_evaluation(n: int, dropped: int, kept: int) -> None:
    assert Shuffled(n).steps(4) == Blocked(np.array([n])).steps(4) == Balanced(np.zeros(n, int)).steps(4) == dropped
    assert Sequential(n).steps(4) == kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [-1, 3])
def test_a_step_that_the_epoch_has_not_is_an_error_not_a_wrong_batch(kind: str, step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step} of an epoch of 3 steps"):
        KINDS[kind](12, np.random.default_rng(0)).batch(step, batch_size=4, seed=0, epoch=0)


def _touched(pieces: np.ndarray, batches: np.ndarray) -> list[np.ndarray]:
    """The pieces that each batch touches."""
    ends = np.cumsum(pieces)
    return [np.unique(np.searchsorted(ends, ids, side="right")) for ids in batches]


def _fetches(batches: list[np.ndarray], room: int) -> int:
    """How many pieces are fetched through a cache that forgets the one that was not used for longest."""
    cache: OrderedDict[int, None] = OrderedDict()
    count = 0
    for piece in (int(piece) for touched in batches for piece in touched):
        count += piece not in cache
        cache[piece] = None
        cache.move_to_end(piece)
        if len(cache) > room:
            cache.popitem(last=False)
    return count


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
@pytest.mark.parametrize("block", [4, 16])
def test_a_blocked_batch_touches_few_pieces_and_a_small_cache_fetches_each_once(sizes: str, block: int) -> None:
    rng = np.random.default_rng(0)
    pieces = np.full(200, 128) if sizes == "equal" else rng.integers(64, 193, 200)
    touched = _touched(pieces, _epoch(Blocked(pieces, block), 64, seed=2))
    counts = [len(pieces) for pieces in touched]
    assert np.mean(counts) < block + 2
    assert max(counts) <= block + (2 if sizes == "equal" else 4)
    assert _fetches(touched, block + 5) <= 200 + 2 * block


def test_a_blocked_epoch_needs_its_pieces_one_by_one() -> None:
    """Also where every lane is a whole number of pieces, which would all end at once if they began at once."""
    touched = [
        set(pieces.tolist()) for pieces in _touched(np.full(192, 128), _epoch(Blocked(np.full(192, 128), 16), 64))
    ]
    assert max(len(after - before) for before, after in pairwise(touched)) <= 1


def test_each_piece_has_its_own_order_in_each_blocked_epoch() -> None:
    order, offsets = Blocked(np.full(4, 100), 1), []
    for epoch in range(2):
        ids = order.ids(np.arange(400), seed=0, epoch=epoch)
        offsets += [ids[ids // 100 == piece] % 100 for piece in range(4)]
    assert all(np.sort(one).tolist() == list(range(100)) for one in offsets)
    assert max((one == other).sum() for one, other in combinations(offsets, 2)) < 10


def test_blocked_epochs_put_other_pieces_together() -> None:
    order = Blocked(np.full(100, 10), 4)
    touched = [_touched(np.full(100, 10), _epoch(order, 4, epoch=epoch)) for epoch in (0, 1)]
    first, second = ({pair for pieces in batches for pair in combinations(pieces.tolist(), 2)} for batches in touched)
    assert len(first & second) < 0.2 * len(first)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_hardly_any_piece_of_a_blocked_epoch(world_size: int) -> None:
    pieces = np.full(160, 100)
    order, batch_size = Blocked(pieces, 16), 64
    fetched = 0
    for rank in range(world_size):
        parts = [
            order.batch(step, batch_size=batch_size, seed=0, epoch=0, rank=rank, world_size=world_size).ids
            for step in range(order.steps(batch_size))
        ]
        fetched += len(np.unique(np.concatenate(_touched(pieces, np.array(parts)))))
    assert fetched <= 160 + world_size


def test_each_position_of_a_blocked_epoch_gets_each_id_equally_often() -> None:
    counts = np.zeros((12, 12))
    order = Blocked(np.full(4, 3), 2)
    for seed in range(3000):
        counts[np.arange(12), order.ids(np.arange(12), seed=seed, epoch=0)] += 1
    assert abs(_chi_square(counts)) < 5


@pytest.mark.parametrize("block", [1, 3, 50, 1000])
def test_pieces_may_be_empty_and_fewer_than_the_block(block: int) -> None:
    order = Blocked(np.array([0, 5, 0, 0, 40, 1, 0]), block)
    assert np.sort(order.ids(np.arange(46), seed=0, epoch=0)).tolist() == list(range(46))


def test_large_shards_are_cut_into_pieces() -> None:
    assert cut(np.array([5, 12, 0, 4]), 5).tolist() == [5, 5, 5, 2, 4]


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="block 0: at least one piece"):
        Blocked(np.array([5]), 0)


def test_in_1000_random_plans_each_batch_and_part_holds_all_groups_alike() -> None:
    for n, batch_size, world_size, rng in _plans():
        groups = rng.integers(0, rng.integers(1, 12), n) ** 2  # some numbers are no group's
        order, known = Balanced(groups), np.unique(groups)
        for step in range(order.steps(batch_size)):
            rank, world = (0, 1) if step % 2 else (int(rng.integers(world_size)), world_size)
            part = order.batch(step, batch_size=batch_size, seed=n, epoch=step % 3, rank=rank, world_size=world)
            counts = (groups[part.ids] == known[:, None]).sum(axis=1)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("sizes", "batch_size"), [((40, 7, 1, 13), 8), ((5, 5, 5), 4), ((30, 20, 10, 5, 1), 3)])
def test_a_group_is_gone_through_wholly_before_any_of_its_samples_comes_again(
    sizes: tuple[int, ...], batch_size: int
) -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = Balanced(groups)
    parts = [
        order.batch(step, batch_size=batch_size, seed=1, epoch=epoch)
        for epoch in range(12) for step in range(order.steps(batch_size))
    ]  # fmt: skip
    ids, visits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "visit"))
    assert len({*zip(ids.tolist(), visits.tolist(), strict=True)}) == len(ids)
    for group in range(len(sizes)):
        members = np.flatnonzero(groups == group)
        seen = ids[groups[ids] == group]
        passes = [seen[start : start + len(members)] for start in range(0, len(seen), len(members))]
        assert all(np.sort(one).tolist() == members.tolist() for one in passes[:-1])
        assert len(seen) / 12 / len(members) == pytest.approx(order.passes(batch_size)[group], rel=0.1)


def test_each_pass_of_a_group_has_its_own_order() -> None:
    epochs = [_epoch(Balanced(np.arange(96) % 2), 96, epoch=epoch)[0] for epoch in range(3)]
    zeros = [ids[ids % 2 == 0] for ids in epochs]
    assert max((zeros[i] == zeros[i - 1]).sum() for i in range(3)) < 10


def test_groups_of_equal_size_give_each_sample_once_an_epoch() -> None:
    order = Balanced(np.arange(96) % 6)
    for epoch in range(5):
        assert np.sort(_epoch(order, 8, epoch=epoch).flatten()).tolist() == list(range(96))


def test_all_groups_meet_each_other_in_the_small_batches_of_a_run() -> None:
    groups, meetings = np.arange(4000) % 8, np.zeros((8, 8))
    for ids in _epoch(Balanced(groups), 2):
        meetings[tuple(np.sort(groups[ids]))] += 1
    assert meetings.trace() == 0
    assert abs(_chi_square(meetings[np.triu_indices(8, 1)])) < 4


@pytest.mark.parametrize(
    ("make", "megabytes"),
    [
        (lambda n: Sequential(n), 1),
        (lambda n: Shuffled(n), 1),
        (lambda n: Blocked(np.full(n // 1000, 1000)), 1),
        (lambda n: Balanced(np.arange(n, dtype=np.int32) // 100_000), 250),  # 80 stay: a row number each
    ],
    ids=KINDS,
)
def test_ten_million_samples_take_no_time_and_little_memory(make: Callable[[int], Order], megabytes: int) -> None:
    make(1000).batch(0, batch_size=256, seed=0, epoch=0)  # compiled
    tracemalloc.start()
    start = time.process_time()
    part = make(10**7).batch(7, batch_size=256, seed=0, epoch=0)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(part.ids)) == 256
    assert seconds < 1.5
    assert peak < megabytes * 1e6

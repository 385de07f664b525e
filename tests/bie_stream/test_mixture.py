import pickle
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from bie_stream.errors import DatasetError
from bie_stream.mixture import Mixture, Turns
from bie_stream.order import Blocked, Part, Shuffled

FROZEN = [
    (0, 0), (0, 1), (1, 0), (0, 5), (0, 4), (1, 2), (0, 4), (0, 6),
    (1, 1), (0, 5), (0, 1), (1, 0), (2, 0), (2, 4), (2, 3), (2, 5),
]  # fmt: skip


def _epoch(mixture: Mixture, batch_size: int, seed: int = 0, epoch: int = 0) -> list[Part]:
    steps = range(mixture.steps(batch_size))
    return [mixture.batch(step, batch_size=batch_size, seed=seed, epoch=epoch) for step in steps]


def _joined(parts: Sequence[Part]) -> np.ndarray:
    """[4, samples]: id, valid, dataset, visit."""
    return np.hstack([np.stack([part.ids, part.valid, part.dataset, part.visit]) for part in parts])


def _plans(count: int = 1000) -> Iterator[tuple[Mixture, int, int, np.random.Generator]]:
    """A mixture, samples of a global batch, ranks."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        sizes = rng.integers(1, 40, rng.integers(1, 5))
        orders = [Shuffled(int(n)) if n % 2 else Blocked(np.array([n // 2, n - n // 2]), 2) for n in sizes]
        weights = rng.integers(1, 20, len(sizes)).tolist()
        names = [f"{channels} channels" for channels in rng.integers(1, 4, len(sizes))]
        world_size = int(rng.integers(1, 5))
        yield Mixture(orders, weights, names), world_size * int(rng.integers(1, 9)), world_size, rng


def test_the_mixture_of_version_1_is_frozen() -> None:
    """A change here breaks the resume of every run that exists."""
    mixture = Mixture([Shuffled(7), Shuffled(3), Blocked(np.array([4, 2]), 2)], [2, 1, 1], ["a", "a", "b"])
    got = _joined(_epoch(mixture, 4, seed=7, epoch=3))
    assert list(zip(got[2].tolist(), got[0].tolist(), strict=True)) == FROZEN


def test_in_1000_random_plans_the_parts_of_all_ranks_are_the_global_batch_and_of_one_bucket() -> None:
    for mixture, batch_size, world_size, rng in _plans():
        if not (steps := mixture.steps(batch_size)):
            continue
        asked: dict[str, Any] = {"batch_size": batch_size, "seed": int(rng.integers(9)), "epoch": int(rng.integers(9))}
        step = int(rng.integers(steps))
        whole = mixture.batch(step, **asked)
        parts = [mixture.batch(step, **asked, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(part.ids) for part in parts} == {batch_size // world_size}
        np.testing.assert_array_equal(_joined(parts), _joined([whole]))
        assert whole.valid.all()
        assert len({mixture.buckets[dataset] for dataset in whole.dataset}) == 1


def test_in_1000_random_plans_each_sample_comes_once_in_a_pass_of_its_dataset() -> None:
    for mixture, batch_size, _, _ in _plans():
        if not mixture.steps(batch_size):
            continue
        ids, _, datasets, visits = _joined([part for epoch in (0, 1) for part in _epoch(mixture, batch_size, 1, epoch)])
        for dataset, n in enumerate(mixture.sizes):
            seen, visit = ids[datasets == dataset], visits[datasets == dataset]
            assert visit.tolist() == (np.arange(len(seen)) // n).tolist()
            passes = [seen[start : start + n] for start in range(0, len(seen), n)]
            assert all(np.sort(one).tolist() == list(range(n)) for one in passes[:-1])
            assert all(len(np.unique(one)) == len(one) for one in passes[-1:])


def test_buckets_and_datasets_have_their_share_at_any_moment_of_a_run() -> None:
    weights, names = np.array([0.1, 0.15, 0.35, 0.4]), np.array(["a", "b", "b", "a"])
    mixture = Mixture([Shuffled(n) for n in (30, 50, 20, 100)], weights.tolist(), names.tolist())
    parts = [part for epoch in range(20) for part in _epoch(mixture, 8, epoch=epoch)]
    bucket = np.array([names[part.dataset[0]] for part in parts])
    batches = np.arange(1, len(parts) + 1)
    for name in ("a", "b"):
        assert np.abs(np.cumsum(bucket == name) - batches * weights[names == name].sum()).max() < 1
        of_bucket = _joined([part for part in parts if names[part.dataset[0]] == name])[2]
        for dataset in np.flatnonzero(names == name):
            share = weights[dataset] / weights[names == name].sum()
            assert np.abs(np.cumsum(of_bucket == dataset) - np.arange(1, len(of_bucket) + 1) * share).max() < 1
    passes = np.bincount(_joined(parts)[2]) / mixture.sizes / 20
    np.testing.assert_allclose(passes, mixture.passes(8), rtol=0.02)


def test_by_default_each_dataset_is_gone_through_once_an_epoch() -> None:
    mixture = Mixture([Shuffled(48), Shuffled(16), Shuffled(32)])
    np.testing.assert_allclose(mixture.passes(8), 1)
    for epoch in range(3):
        ids, _, dataset, visit = _joined(_epoch(mixture, 8, epoch=epoch))
        assert len({*zip(dataset.tolist(), ids.tolist(), strict=True)}) == len(ids) == 96
        assert set(visit.tolist()) == {epoch}


def test_a_mixture_of_one_dataset_is_that_dataset() -> None:
    for epoch in range(3):
        mixed = _joined(_epoch(Mixture([Shuffled(60)]), 12, seed=4, epoch=epoch))[0]
        np.testing.assert_array_equal(mixed, Shuffled(60).ids(np.arange(60), seed=4, epoch=epoch))


def test_datasets_of_the_same_size_and_passes_of_the_same_dataset_have_unlike_orders() -> None:
    mixture = Mixture([Shuffled(200), Shuffled(200)])
    orders = []
    for epoch in range(2):
        ids, _, dataset, _ = _joined(_epoch(mixture, 40, epoch=epoch))
        orders += [ids[dataset == number] for number in (0, 1)]
    assert max((orders[i] == orders[j]).sum() for i in range(4) for j in range(i)) < 10


def test_an_epoch_may_have_another_number_of_samples_and_the_next_goes_on_where_it_ended() -> None:
    sizes = [Shuffled(50), Shuffled(70)]
    short, long = Mixture(sizes, [1, 3], epoch_samples=40), Mixture(sizes, [1, 3], epoch_samples=80)
    assert (short.steps(8), long.steps(8)) == (5, 10)
    np.testing.assert_array_equal(
        _joined([part for epoch in range(4) for part in _epoch(short, 8, epoch=epoch)]),
        _joined([part for epoch in range(2) for part in _epoch(long, 8, epoch=epoch)]),
    )


def test_a_batch_is_the_same_in_another_process_and_whatever_came_before() -> None:
    mixture = Mixture([Shuffled(50), Shuffled(70)], [1, 3], ["a", "b"])
    batches = _epoch(mixture, 8, epoch=2)
    later = pickle.loads(pickle.dumps(mixture))
    for step in reversed(range(len(batches))):
        np.testing.assert_array_equal(
            _joined([later.batch(step, batch_size=8, seed=0, epoch=2)]), _joined([batches[step]])
        )


def test_turns_are_taken_by_weight_to_within_one_at_any_moment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        parts = rng.dirichlet(rng.choice([0.1, 1, 100], rng.integers(1, 13)))
        weights = 1 + rng.multinomial(1000 - len(parts), parts)
        who, earlier = Turns(weights).at(np.arange(3000))
        counts = np.cumsum(who[:, None] == np.arange(len(weights)), axis=0)
        exact = np.arange(1, 3001)[:, None] * weights / weights.sum()
        assert np.abs(counts - exact).max() < 1
        np.testing.assert_array_equal(earlier, counts[np.arange(3000), who] - 1)


@pytest.mark.parametrize(
    ("weights", "turns"), [([2], [0, 0, 0]), ([1, 1, 1], [0, 1, 2, 0, 1, 2]), ([0.75, 0.25], [0, 0, 0, 1, 0, 0, 0, 1])]
)
def test_simple_weights_make_a_simple_sequence(weights: list[float], turns: list[int]) -> None:
    assert Turns(weights).at(np.arange(len(turns)))[0].tolist() == turns


def test_the_smallest_weight_has_a_turn_too_and_the_sequence_has_no_end() -> None:
    turns = Turns([1, 1e-9])
    who, earlier = turns.at(np.arange(10**12, 10**12 + 600_000))
    assert (who == 1).sum() in (1, 2)
    assert earlier[who == 0].tolist() == list(range(earlier[0], earlier[0] + (who == 0).sum()))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": [1]}, "a mixture of 2 datasets has 1 weights and 2 buckets"),
        ({"buckets": ["a"]}, "2 datasets has 2 weights and 1 buckets"),
        ({"orders": [Shuffled(3), Shuffled(0)], "weights": [1, 1]}, "dataset 1 of a mixture has no samples"),
        ({"weights": [1, 0]}, r"weights \(1, 0\) of a mixture must be positive"),
        ({"weights": [1, float("nan")]}, "must be positive"),
        ({"weights": [1, float("inf")]}, "must be positive"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Mixture(**{"orders": [Shuffled(3), Shuffled(4)], **asked})


def test_a_step_that_the_epoch_has_not_is_an_error_not_a_wrong_batch() -> None:
    with pytest.raises(IndexError, match="step 3 of an epoch of 3 steps"):
        Mixture([Shuffled(12)]).batch(3, batch_size=4, seed=0, epoch=0)


def test_ten_million_samples_take_no_time_and_little_memory() -> None:
    Mixture([Shuffled(9)]).batch(0, batch_size=3, seed=0, epoch=0)  # compiled
    tracemalloc.start()
    start = time.process_time()
    mixture = Mixture([Shuffled(6_543_210), Shuffled(2_456_789), Shuffled(1_000_001)], None, ["a", "a", "b"])
    part = mixture.batch(7, batch_size=256, seed=0, epoch=0)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(part.ids) == 256
    assert seconds < 0.5
    assert peak < 20e6

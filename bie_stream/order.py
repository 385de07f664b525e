"""Which samples, when: values that give any batch of a run by (seed, epoch, step, rank, world size). No state, no I/O.

    Sequential   each sample in order, for evaluation
    Shuffled     each sample once an epoch, from anywhere
    Blocked      each sample once an epoch, from few shards at a time: for data that are fetched
    Balanced     every plate as often as any other
    Mixture      several datasets by weight, in `bie_stream.mixture`

All rest on one bijection of 0..n-1: position → sample id. It is a Feistel network over the next power of four
(Luby and Rackoff 1988) whose round function is Philox, walked until it lands below n (Black and Rogaway 2002),
so any position is found without making, storing or shipping a list.
Rank r takes the r-th equal part of a global batch. Another world size cuts the same global batches differently, and
nothing else changes.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from bie_stream.compiled import compiled
from bie_stream.errors import DatasetError
from bie_stream.philox import key_of, philox_word

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_SAMPLES, _GROUPS = 1, 4  # streams of the seed; 2 and 3 are those of augmentation
_ROUNDS = 6  # four leave the order of a handful of samples measurably uneven


@dataclass(frozen=True)
class Part:
    """One rank's part of a global batch: B = batch_size / world_size samples.

    Attributes:
        ids: [B] int64, rows of the dataset.
        valid: [B] bool, False where a row (of id 0) only fills up the last batch of an evaluation.
        dataset: [B] int64, which dataset of a mixture; otherwise 0.
        visit: [B] int64, another number each time that the same sample comes in a run: what its augmentation is drawn
            by. The epoch, where no sample comes twice in one.
    """

    ids: Ints
    valid: npt.NDArray[np.bool_]
    dataset: Ints
    visit: Ints

    @classmethod
    def of(cls, ids: Ints, visit: Ints | int, dataset: Ints | int = 0) -> Self:
        """All rows valid."""
        return cls(ids, np.ones(len(ids), bool), np.full_like(ids, dataset), np.full_like(ids, visit))


class Order(Protocol):
    """The batches of a run."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of samples of each dataset."""

    def steps(self, batch_size: int) -> int:
        """Global batches in one epoch; the same on every rank by construction."""

    def batch(
        self, step: int, *, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Part:  # fmt: skip
        """One rank's part of one global batch.

        Args:
            step: in 0..steps-1.
            batch_size: samples in a global batch, a multiple of `world_size`.

        Raises:
            IndexError: the epoch has no such step.
        """


@dataclass(frozen=True)
class Sequential:
    """Each of n samples in order; the last batch is filled up with rows that are not valid."""

    n: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.n,)

    def steps(self, batch_size: int) -> int:
        return -(-self.n // batch_size)

    def batch(
        self, step: int, *, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Part:  # fmt: skip
        ids = step * batch_size + slots(step, self.steps(batch_size), batch_size, rank, world_size)
        valid = ids < self.n
        return replace(Part.of(np.where(valid, ids, 0), epoch), valid=valid)


@dataclass(frozen=True)
class Shuffled:
    """Each of n samples once an epoch, in a random order; a last partial batch is left out."""

    n: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.n,)

    def steps(self, batch_size: int) -> int:
        return self.n // batch_size

    def batch(
        self, step: int, *, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Part:  # fmt: skip
        positions = step * batch_size + slots(step, self.steps(batch_size), batch_size, rank, world_size)
        return Part.of(self.ids(positions, seed=seed, epoch=epoch), epoch)

    def ids(self, positions: Ints, *, seed: int, epoch: int) -> Ints:
        """Samples at these positions of one epoch, [P] → [P]; all n positions together give each once."""
        return permute(positions, self.n, seed, epoch)


class Blocked:
    """Each sample once an epoch, from few pieces of the dataset at a time; a last partial batch is left out.

    A piece is a run of rows that is fetched together: a shard, or part of a large one (see `cut`). The pieces of an
    epoch stand in a random order, cut into `block` lanes of equal length, and the samples of each piece in a random
    order. All lanes are read side by side, one sample of each in turn. So `block` pieces are open at a time, and new
    ones are needed one by one, never a whole window of them at once. A batch touches about block + batch_size / piece
    of them; a cache for a few more fetches each once in an epoch, and 2 · block of them twice.

    A global batch is sorted by lane. If the world size divides `block`, and `block` the batch size or the other way
    round, each rank so has lanes of its own, and a piece is fetched by one rank, not by all.

    Args:
        pieces: [U] number of samples of each piece, in the order of the rows.
        block: how many are read at a time. More mix better, and need a larger cache.

    Raises:
        DatasetError: `block` is below 1.
    """

    def __init__(self, pieces: Ints, block: int = 32) -> None:
        if block < 1:
            raise DatasetError(f"block {block}: at least one piece of a dataset must be read at a time")
        self.n = int(pieces.sum())
        self.pieces, self._starts = pieces.astype(np.int64), np.cumsum(pieces) - pieces
        self._lanes = max(1, min(block, self.n))

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.n,)

    def steps(self, batch_size: int) -> int:
        return self.n // batch_size

    def batch(
        self, step: int, *, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Part:  # fmt: skip
        own = slots(step, self.steps(batch_size), batch_size, rank, world_size)
        positions = step * batch_size + np.arange(batch_size)
        by_lane = np.argsort(positions % self._lanes, kind="stable")
        return Part.of(self.ids(positions[by_lane[own]], seed=seed, epoch=epoch), epoch)

    def ids(self, positions: Ints, *, seed: int, epoch: int) -> Ints:
        """Samples at these positions of one epoch, [P] → [P]; all n positions together give each once."""
        pieces, ends = _laid_out(self, seed, epoch)
        places = self._along(positions)
        nth = np.searchsorted(ends, places, side="right")
        piece, size = pieces[nth], self.pieces[pieces[nth]]
        return self._starts[piece] + permute(places - (ends[nth] - size), size, seed, epoch, piece)

    def _along(self, positions: Ints) -> Ints:
        """Places in the row of all pieces: those of a lane follow each other, from a start that differs by lane."""
        row, lane = np.divmod(positions, self._lanes)
        short, longer = divmod(self.n, self._lanes)  # the first lanes have one sample more
        start, length = lane * short + np.minimum(lane, longer), short + (lane < longer)
        stagger = lane * (self.n // len(self.pieces)) // self._lanes
        return start + (row + stagger) % length


@lru_cache(maxsize=16)  # worked out once an epoch, not once a batch; a mixture has several
def _laid_out(blocked: Blocked, seed: int, epoch: int) -> tuple[Ints, Ints]:
    """The pieces [U] in the order of an epoch, and how many samples there are up to the end of each."""
    count = len(blocked.pieces)
    pieces = permute(np.arange(count), count, seed, epoch, stream=_GROUPS)
    return pieces, np.cumsum(blocked.pieces[pieces])


def cut(sizes: Ints, most: int) -> Ints:
    """Shards [S] of these numbers of samples, cut into pieces [U] of at most so many."""
    counts = -(-sizes // most)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.minimum(most, np.repeat(sizes, counts) - nth * most)


class Balanced:
    """Every group (a plate, say) as often as any other, whatever its size.

    The numbers of two groups in a batch differ by one at most, and so they do in each rank's part. So the look of no
    plate weighs more than that of another, neither in a loss nor in the statistics of a batch.
    Each group is gone through in a random order of its own, over and over, across the ends of epochs: none of its
    samples comes again before all of them have come. An epoch is n // batch_size batches; of a large group some samples
    wait for the next one, and a small group comes more than once (`passes` says how often): one of a handful of samples
    is better left out of the dataset. With groups of equal size every sample comes as often as any other.

    Args:
        groups: [n] integers from 0, the group of each sample.
    """

    def __init__(self, groups: npt.NDArray[np.integer]) -> None:
        self.n = len(groups)
        counts = np.bincount(groups)
        self._sizes = counts[counts > 0]
        self._starts = np.cumsum(self._sizes) - self._sizes
        narrow = groups.astype(np.min_scalar_type(len(counts)))  # 16 bits are sorted by radix
        self._members = np.argsort(narrow, kind="stable")

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.n,)

    def steps(self, batch_size: int) -> int:
        return self.n // batch_size

    def passes(self, batch_size: int) -> npt.NDArray[np.float64]:
        """How many times an epoch goes through each group, [G]."""
        return self.steps(batch_size) * batch_size / len(self._sizes) / self._sizes

    def batch(
        self, step: int, *, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Part:  # fmt: skip
        steps, groups = self.steps(batch_size), len(self._sizes)
        turns = (epoch * steps + step) * batch_size + slots(step, steps, batch_size, rank, world_size)
        rounds, seat = np.divmod(turns, groups)  # in each round every group has one turn
        # The groups sit in one order until a round ends with a batch, so that no batch has turns of two orders.
        group = permute(seat, groups, seed, turns // math.lcm(batch_size, groups), stream=_GROUPS)
        size = self._sizes[group]
        visit, place = np.divmod(rounds, size)
        return Part.of(self._members[self._starts[group] + permute(place, size, seed, visit, group)], visit)


def slots(step: int, steps: int, batch_size: int, rank: int, world_size: int) -> Ints:
    """The places of one rank's part in a global batch, [batch_size / world_size].

    Raises:
        IndexError: the epoch has no such step.
    """
    if not 0 <= step < steps:
        raise IndexError(f"step {step} of an epoch of {steps} steps")
    share = batch_size // world_size
    return np.arange(rank * share, (rank + 1) * share)


def permute(
    positions: Ints, n: Ints | int, seed: int, epoch: Ints | int, part: Ints | int = 0, stream: int = _SAMPLES
) -> Ints:  # fmt: skip
    """What stands at these positions of random orders of 0..n-1.

    Args:
        positions: [P] int64, each in 0..n-1.
        n: how many there are; one number, or [P].
        epoch, part: which order: below 2**32 each; one number, or [P].

    Returns:
        [P] int64, each in 0..n-1; all n positions of one order together give each exactly once.
    """
    ids = positions.astype(np.uint64)
    each = [np.full_like(ids, value) for value in (n, epoch, part)]
    _walk(ids, *each, *key_of(seed, stream))
    return ids.astype(np.int64)


@compiled
def _walk(ids: Words, n: Words, epoch: Words, part: Words, k0: int, k1: int) -> None:
    for i in range(len(ids)):
        half_bits = np.uint64(1)
        while np.uint64(1) << (half_bits + half_bits) < n[i]:
            half_bits += np.uint64(1)
        ids[i] = _feistel(ids[i], half_bits, epoch[i], part[i], np.uint64(k0), np.uint64(k1))
        while ids[i] >= n[i]:  # the network covers fewer than 4n values, so few walks are longer than a few turns
            ids[i] = _feistel(ids[i], half_bits, epoch[i], part[i], np.uint64(k0), np.uint64(k1))


@compiled
def _feistel(
    value: np.uint64, half_bits: np.uint64, epoch: np.uint64, part: np.uint64, k0: np.uint64, k1: np.uint64
) -> np.uint64:  # fmt: skip
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (philox_word(right, np.uint64(turn), epoch, part, k0, k1) & mask)
    return (left << half_bits) | right

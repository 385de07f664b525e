"""Several datasets in one run: batches of one bucket each, datasets by weight, all by (seed, epoch, step)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bie_stream.compiled import compiled
from bie_stream.errors import DatasetError
from bie_stream.order import Ints, Part, slots

_PARTS = 504_000  # to which weights count: thousandths, thirds, sevenths and ninths of it are whole


class Exact(Protocol):
    """An order of one dataset in which each sample comes once an epoch: `Shuffled`, `Blocked`."""

    @property
    def n(self) -> int: ...

    def ids(self, positions: Ints, *, seed: int, epoch: int) -> Ints: ...


class Mixture:
    """Datasets by weight. Every batch is of one bucket: of datasets that can stand in one batch, by their channels.

    The buckets take turns by the sums of their weights, and in a batch the datasets of its bucket by theirs: at any
    moment of a run each bucket has had its share of the batches, and each dataset its share of the samples of its
    bucket, to within one. So has each dataset in a batch, and in each rank's part of it, to within two.
    Each dataset is gone through in its own order, over and over, across the ends of epochs: each of its samples comes
    once in a pass, whatever its weight, and the number of the pass stands where otherwise the epoch does.
    An epoch is as many batches as all samples fill, or as `epoch_samples` do.

    Args:
        orders: of each of D datasets.
        weights: [D] positive numbers; 3, 1 is the same as 0.75, 0.25. None for the datasets' numbers of samples.
        buckets: [D] their names; None for one bucket.
        epoch_samples: None for the number of all samples.

    Raises:
        DatasetError: there is no weight or bucket for each dataset, a weight is not positive, or a dataset is empty.
    """

    def __init__(
        self, orders: Sequence[Exact], weights: Sequence[float] | None = None, buckets: Sequence[str] | None = None,
        epoch_samples: int | None = None,
    ) -> None:  # fmt: skip
        self.orders = tuple(orders)
        self.weights = tuple(self.sizes if weights is None else weights)
        self.buckets = tuple([""] * len(self.orders) if buckets is None else buckets)
        if not len(self.orders) == len(self.weights) == len(self.buckets) > 0:
            raise DatasetError(
                f"a mixture of {len(self.orders)} datasets has {len(self.weights)} weights and {len(self.buckets)} "
                "buckets; give each dataset one of both"
            )
        if not all(0 < weight < np.inf for weight in self.weights):
            raise DatasetError(f"weights {self.weights} of a mixture must be positive; leave out what has none")
        if not all(self.sizes):
            raise DatasetError(f"dataset {self.sizes.index(0)} of a mixture has no samples; leave it out")
        self._epoch_samples = sum(self.sizes) if epoch_samples is None else epoch_samples
        self._turns, self._within = _turns_by_bucket(self.weights, self.buckets)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(order.n for order in self.orders)

    def steps(self, batch_size: int) -> int:
        return self._epoch_samples // batch_size

    def passes(self, batch_size: int) -> npt.NDArray[np.float64]:
        """How many times an epoch goes through each dataset, [D]."""
        share = np.array(self.weights) / sum(self.weights)
        return self.steps(batch_size) * batch_size * share / np.array(self.sizes)

    def batch(
        self, step: int, *, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Part:  # fmt: skip
        steps = self.steps(batch_size)
        own = slots(step, steps, batch_size, rank, world_size)
        bucket, batches = self._turns.at(np.array([epoch * steps + step]))
        datasets, turns = self._within[bucket[0]]
        which, taken = turns.at(batches * batch_size + own)
        dataset = datasets[which]
        ids, visit = np.empty_like(own), np.empty_like(own)
        for number in np.unique(dataset):
            here = dataset == number
            ids[here], visit[here] = self._walk(int(number), taken[here], seed)
        return Part.of(ids, visit, dataset)

    def _walk(self, number: int, taken: Ints, seed: int) -> tuple[Ints, Ints]:
        """The samples of one dataset that come after so many others of it, and the passes in which they come."""
        order = self.orders[number]
        passes, positions = np.divmod(taken, order.n)
        ids = np.empty_like(taken)
        for pass_ in np.unique(passes):
            now = passes == pass_
            own_seed = seed ^ (number << 40)  # datasets of one size have unlike orders
            ids[now] = order.ids(positions[now], seed=own_seed, epoch=int(pass_))
        return ids, passes


def _turns_by_bucket(weights: Sequence[float], buckets: Sequence[str]) -> tuple["Turns", list[tuple[Ints, "Turns"]]]:
    """Whose turn it is among the buckets; and of each bucket its datasets, and whose turn it is among them."""
    of_each = np.array(weights, float)
    members = [np.flatnonzero(np.array(buckets) == name) for name in dict.fromkeys(buckets)]
    return Turns([of_each[some].sum() for some in members]), [(some, Turns(of_each[some])) for some in members]


class Turns:
    """Who is next of K that take turns by weight: at any moment each has had its share, to within one turn.

    A turn goes to the one that should have its next one soonest, of those that have had less than their share
    (Steiner and Yeomans, Management Science 39, 1993). When all shares are whole, the same begins again.

    Args:
        weights: [K] positive; they count to one part in half a million.
    """

    def __init__(self, weights: npt.ArrayLike) -> None:
        parts = np.asarray(weights, float) / np.sum(weights) * _PARTS
        shares = np.maximum(1, np.rint(parts).astype(np.int64))
        self._shares = shares // np.gcd.reduce(shares)
        self._who, self._earlier = _schedule(self._shares)

    def at(self, turns: Ints) -> tuple[Ints, Ints]:
        """Who has these turns, [P] from 0; and how many that one has had before."""
        cycle, turn = np.divmod(turns, len(self._who))
        who = self._who[turn]
        return who, cycle * self._shares[who] + self._earlier[turn]


@compiled
def _schedule(shares: Ints) -> tuple[Ints, Ints]:
    """For each of sum(shares) turns, who has it, and how many that one has had before."""
    turns = shares.sum()
    who, earlier, counts = np.empty(turns, np.int64), np.empty(turns, np.int64), np.zeros_like(shares)
    for turn in range(turns):
        soonest = np.inf
        for i in range(len(shares)):
            due = (counts[i] + 1) / shares[i]
            if due < soonest and counts[i] * turns < shares[i] * (turn + 1):
                who[turn], soonest = i, due
        earlier[turn] = counts[who[turn]]
        counts[who[turn]] += 1
    return who, earlier

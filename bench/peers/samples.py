"""A plain torch DataLoader over anything that gives a crop by number: batches are filled in one copy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.peers.sample import View, draw, finish
from bench.works import Pixels, Work

_ENDLESS = 2**40

Cut = Callable[[int, View], Pixels]


class Samples(Dataset[torch.Tensor]):
    """`cut(n, view)` gives the crop [C, Y, X] of sample n of `count`."""

    def __init__(self, cut: Cut, count: int, work: Work) -> None:
        self._cut, self._count, self._work = cut, count, work

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, numbers: list[int]) -> torch.Tensor:
        batch = np.empty((len(numbers), *self._work.deliverable[1:]), np.float32)
        for out, number in zip(batch, numbers, strict=True):
            view = draw(self._work)
            finish(self._cut(number, view), view.step, self._work, out)
        return torch.from_numpy(batch)


def loader(cut: Cut, count: int, work: Work, workers: int) -> Iterator[torch.Tensor]:
    """Shuffled batches without end: one exact permutation after the other."""
    samples = Samples(cut, count, work)
    order = RandomSampler(samples, num_samples=_ENDLESS)
    return iter(DataLoader(samples, work.batch, sampler=order, num_workers=workers, collate_fn=_as_it_is))


def _as_it_is(batch: Any) -> Any:
    return batch

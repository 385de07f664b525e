"""How well an order mixes, measured on batches of it and set beside an ideal shuffle."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bie_stream.order import Ints, Order, Shuffled

_BATCHES = 256
_GOLDEN = (5**0.5 - 1) / 2  # its multiples fall evenly between whole numbers


@dataclass(frozen=True)
class ShuffleQuality:
    """1 is an ideal shuffle. As text, a sentence for a person.

    Attributes:
        plate_entropy: mean entropy of the plates in a batch, by that of batches of an ideal shuffle; above 1 where
            batches hold plates more evenly than chance.
        rank_shift: mean distance between a sample's place in the epoch and its row, by that of the same rows in random
            places (a third of the dataset, where all rows come alike); 0 for the order of the rows.
        shards: mean number of shards that a batch touches.
    """

    plate_entropy: float
    rank_shift: float
    shards: float

    def __str__(self) -> str:
        return (
            f"in-batch plate entropy {self.plate_entropy:.2f} of an ideal shuffle, rank shift {self.rank_shift:.2f}, "
            f"{self.shards:.1f} shards a batch"
        )


def measure(
    order: Order, batch_size: int, plates: npt.NDArray[np.integer], shards: npt.NDArray[np.integer],
    *, seed: int = 0, epoch: int = 0,
) -> ShuffleQuality:  # fmt: skip
    """Measures some global batches, spread over an epoch; the ideal by as many of as many samples.

    Args:
        order: with one step at least.
        plates, shards: [N] integers, of each row; of a mixture, those of its datasets one after the other, none in two.
    """
    batches = _batches(order, batch_size, seed, epoch)
    ideal = _batches(Shuffled(len(plates)), batch_size, seed, epoch)
    most = np.mean([_entropy(plates[rows]) for _, rows in ideal])
    entropy = np.mean([_entropy(plates[rows]) for _, rows in batches])
    return ShuffleQuality(
        plate_entropy=float(entropy / most) if most else 1.0,
        rank_shift=_rank_shift(batches, len(plates)),
        shards=float(np.mean([len(np.unique(shards[rows])) for _, rows in batches])),
    )


def _batches(order: Order, batch_size: int, seed: int, epoch: int) -> list[tuple[float, Ints]]:
    """When each batch comes, as a share of the epoch, and its rows, those of later datasets after those of earlier."""
    steps, first = order.steps(batch_size), np.cumsum([0, *order.sizes])
    # One of each stretch of the epoch, each elsewhere in it: steps at equal distances could be all of one bucket.
    stretch = np.arange(_BATCHES)
    chosen = (stretch + stretch * _GOLDEN % 1) / _BATCHES * steps
    found = []
    for step in np.unique(chosen.astype(int)).tolist():
        part = order.batch(step, batch_size=batch_size, seed=seed, epoch=epoch)
        found.append(((step + 0.5) / steps, (first[part.dataset] + part.ids)[part.valid]))
    return found


def _entropy(plates: npt.NDArray[np.integer]) -> float:
    share = np.unique(plates, return_counts=True)[1] / len(plates)
    return float(-(share * np.log(share)).sum())


def _rank_shift(batches: list[tuple[float, Ints]], n: int) -> float:
    """|place − row|, by its mean over all places: (r² + (1 − r)²) / 2 for the row at share r of the dataset."""
    places = np.concatenate([np.full(len(rows), when) for when, rows in batches])
    at = np.concatenate([rows for _, rows in batches]) / n
    return float(np.abs(places - at).mean() / ((at**2 + (1 - at) ** 2) / 2).mean())

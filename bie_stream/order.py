"""Which samples, when: pure functions of (seed, epoch, step, rank, world size). No state, no I/O.

One epoch is a bijection of 0..n-1: position → sample id. It is a Feistel network over the next power of four
(Luby and Rackoff 1988) whose round function is Philox, walked until it lands below n (Black and Rogaway 2002),
so any position is found without making, storing or shipping a list.
A global batch is a run of positions; rank r takes the r-th equal part of it. Another world size cuts the same
global batches differently, and nothing else changes.
"""

import numpy as np
import numpy.typing as npt

from bie_stream.philox import key_of, philox

_ORDER_STREAM = 1
_ROUNDS = 6  # four leave the order of a handful of samples measurably uneven


def permute(positions: npt.NDArray[np.int64], n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Sample ids at these positions of one epoch's order.

    Args:
        positions: [P] int64, each in 0..n-1.
        n: number of samples.

    Returns:
        [P] int64, each in 0..n-1; all positions together give each id exactly once.
    """
    half_bits = max(1, -(-max(n - 1, 1).bit_length() // 2))
    ids = positions.astype(np.uint64)
    outside = np.ones(len(ids), dtype=bool)
    while outside.any():  # the network covers fewer than 4n values, so few walks are longer than a few turns
        ids[outside] = _feistel(ids[outside], half_bits, seed, epoch)
        outside[outside] = ids[outside] >= n
    return ids.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    counter = np.zeros((len(values), 4), dtype=np.uint64)
    for turn in range(_ROUNDS):
        counter[:, 0], counter[:, 1], counter[:, 2] = right, turn, epoch
        left, right = right, left ^ (philox(counter, key_of(seed, _ORDER_STREAM))[:, 0] & mask)
    return (left << np.uint64(half_bits)) | right


def steps_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    """Global batches in one epoch; the same on every rank by construction."""
    return n // batch_size if drop_last else -(-n // batch_size)


def batch_ids(
    n: int, batch_size: int, step: int, *, seed: int, epoch: int, shuffle: bool, rank: int = 0, world_size: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """This rank's part of one global batch.

    Returns:
        ids [batch_size / world_size] int64, and valid [same] bool: False where the last batch of an epoch is
        filled up (with id 0) because the samples ran out.
    """
    share = batch_size // world_size
    positions = step * batch_size + rank * share + np.arange(share, dtype=np.int64)
    valid = positions < n
    ids = np.where(valid, positions, 0)
    if shuffle:
        ids[valid] = permute(positions[valid], n, seed, epoch)
    return ids, valid

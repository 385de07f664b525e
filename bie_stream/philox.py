"""Random bits as a pure function of a counter: Philox4x32-10.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3;
constants and known answers as published with Random123. No state: the same (counter, key) gives the same
bits on every machine, in any order, for any number of threads or ranks.
"""

import numpy as np
import numpy.typing as npt

from bie_stream.compiled import compiled

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int], rounds: int = 10) -> npt.NDArray[np.uint64]:
    """Four 32-bit words for each counter.

    Args:
        counter: [N, 4], each entry below 2**32.
        key: two numbers below 2**32.

    Returns:
        [N, 4] uint64, each entry below 2**32, uniform.
    """
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(rounds):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (right >> _HALF) ^ c1 ^ np.uint64(k0),
            right & _LOW,
            (left >> _HALF) ^ c3 ^ np.uint64(k1),
            left & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


@compiled
def philox_word(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> np.uint64:  # fmt: skip
    """The first word of `philox` for one counter, inside compiled functions; all arguments below 2**32."""
    for _ in range(10):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _HALF) ^ c1 ^ k0, right & _LOW, (left >> _HALF) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return c0


def key_of(seed: int, stream: int) -> tuple[int, int]:
    """The key of one stream of a seed: streams keep order, augmentation and splits independent of each other."""
    return seed & 0xFFFFFFFF, (stream ^ (seed >> 32)) & 0xFFFFFFFF

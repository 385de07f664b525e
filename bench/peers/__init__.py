"""Who is measured, and how each is asked: `bench/peers/<module>.py` has

    prepare(pixels, folder, work)     [N, C, Y, X] uint16 → a dataset on disk, in the form that suits it best
    batches(folder, work, workers)    that folder → batches [B, C, crop, crop] float32, without end

and imports its packages at the top: it is imported only in a process of its own, under the interpreter that has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.works import Codec

_OURS: Mapping[Codec, str] = {"npy": "npy in tar", "tif": "deflated TIFF in tar", "jph": "HTJ2K in tar", "blosc2": "Blosc2 (zstd 1) in tar"}


@dataclass(frozen=True)
class Peer:
    """One loader or ceiling.

    Attributes:
        module: in bench.peers, with `batches`.
        store: module whose `prepare` writes what it reads.
        payloads: codec of a work → what it reads in its place, raw pixels or its best lossless compression;
            it has no part in works of other codecs.
        whole: it reads or decodes the whole sample to cut out a crop.
        counts: workers or threads that are tried.
        packages: that are installed for it in an environment of its own; none: it needs only the project's.
        pinned: they go with the versions of constraints.txt.
        ours: every count is a row, and an epoch is seen before the clock starts: it checks each payload once.
        ceiling: it is no loader; `moves` says what it delivers where that is not the batch.
        moves: bytes per sample as a function of work, by name, see `bench.report`.
    """

    title: str
    module: str
    store: str
    payloads: Mapping[Codec, str]
    whole: bool
    unit: str = "workers"
    counts: tuple[int, ...] = (0, 1, 2, 4)
    packages: tuple[str, ...] = ()
    pinned: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    ceiling: bool = False

"""Who is measured, and how each is asked: `bench/peers/<module>.py` has

    prepare(pixels, folder, work)     [N, C, Y, X] uint16 → a dataset on disk, in the form that suits the peer best
    batches(folder, work, workers)    that folder → batches [B, C, crop, crop] float32, without end

and imports its packages at the top: it is imported only in a process of its own, under the interpreter that has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bench.works import Codec

Kind = Literal["ours", "peer", "ceiling"]


class Form(NamedTuple):
    """What a peer reads: the module whose `prepare` writes it, and what to call it."""

    store: str
    title: str


@dataclass(frozen=True)
class Peer:
    """One loader or ceiling.

    Attributes:
        module: in bench.peers, with `batches`.
        forms: codec of a work → raw pixels, or its best lossless compression, of the same samples;
            it has no part in works of other codecs.
        whole: it reads or decodes the whole sample to cut out a crop.
        counts: workers or threads that are tried; of ours each is a row, of others the best one.
        packages: installed for it in an environment of its own; none: it needs only the project's.
        pinned: they go with the versions of constraints.txt.
        delivers: batches; a ceiling may do something simpler, to which nothing is compared.
    """

    title: str
    module: str
    forms: Mapping[Codec, Form]
    kind: Kind = "peer"
    whole: bool = True
    unit: Literal["workers", "threads"] = "workers"
    counts: tuple[int, ...] = (0, 1, 2, 4)
    packages: tuple[str, ...] = ()
    pinned: bool = True
    delivers: bool = True
    options: Mapping[str, str] = field(default_factory=dict)


_THREADS = (1, 2, 4)
_TAR_NPY, _TAR_TIF, _TAR_JPH = (Form("shards", f"{what} in tar") for what in ("npy", "deflated TIFF", "HTJ2K"))
_TAR_BLOSC2 = Form("shards", "Blosc2 (zstd 1) in tar")
_TARS: Mapping[Codec, Form] = {"npy": _TAR_NPY, "tif": _TAR_TIF, "jph": _TAR_JPH, "blosc2": _TAR_BLOSC2}
_RAW_AND_BLOSC2: Mapping[Codec, Form] = {"npy": _TAR_NPY, "blosc2": _TAR_BLOSC2}

PEERS: Mapping[str, Peer] = {
    "native": Peer(
        "bie_stream, native", "ours", _TARS, "ours", whole=False, unit="threads", counts=_THREADS,
        options={"backend": "native"},
    ),
    "bie-dali": Peer(
        "bie_stream, DALI", "ours", _TARS, "ours", whole=False, unit="threads", counts=_THREADS,
        options={"backend": "dali"},
    ),
    "webdataset": Peer("webdataset", "webdataset", _TARS),
    "dali": Peer(
        "DALI readers.webdataset", "dali",
        {"npy": _TAR_NPY, "tif": _TAR_TIF, "blosc2": Form("tiff_shards", "zstd TIFF in tar")},
        unit="threads", counts=_THREADS,
    ),
    "litdata": Peer(
        "litdata", "litdata",
        {"npy": Form("litdata", "raw in chunks"), "blosc2": Form("litdata", "Blosc2 in chunks")},
        packages=("litdata",),
    ),
    "mosaic": Peer(
        "MosaicML streaming", "mosaic",
        {"npy": Form("mosaic", "raw in MDS"), "blosc2": Form("mosaic", "Blosc2 in MDS")},
        packages=("mosaicml-streaming",), pinned=False,
    ),
    "spdl": Peer(
        "SPDL", "spdl", _RAW_AND_BLOSC2, whole=False, unit="threads", counts=_THREADS, packages=("spdl",),
    ),
    "grain": Peer(
        "grain", "grain",
        {"npy": Form("grain", "raw in ArrayRecord"), "blosc2": Form("grain", "Blosc2 in ArrayRecord")},
        unit="threads", packages=("grain", "array-record"),
    ),
    "tiff": Peer(
        "torch + tifffile", "tiff",
        {"npy": Form("tiff", "plain TIFF, mapped"), "tif": Form("tiff", "deflated TIFF"),
         "blosc2": Form("tiff", "zstd TIFF")},
        whole=False,
    ),
    "zarr": Peer(
        "torch + zarr", "zarr_array",
        {"npy": Form("zarr_array", "raw chunks"), "blosc2": Form("zarr_array", "Blosc (zstd 1) chunks")},
    ),
    "memmap": Peer("torch + np.memmap", "memmap", _RAW_AND_BLOSC2, whole=False),
    "kernel": Peer(
        "bare kernel", "kernel", {codec: Form("", "array in memory") for codec in _TARS}, "ceiling", whole=False,
        unit="threads", counts=_THREADS,
    ),
    "memcpy": Peer(
        "memcpy of batches", "memcpy", {"npy": Form("", "array in memory")}, "ceiling", whole=False,
        unit="threads", counts=(1, 2), delivers=False,
    ),
    "page-read": Peer(
        "page-cache read of samples", "page_read", {"npy": _TAR_NPY}, "ceiling", unit="threads", counts=(1, 2),
        delivers=False,
    ),
}  # fmt: skip

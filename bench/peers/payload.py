"""A sample as bytes, for peers that store bytes: raw pixels, or a Blosc2 frame as in our own payloads."""

import numpy as np

from bench.peers.sample import decode
from bench.works import Pixels, Work


def encode(image: Pixels, work: Work) -> bytes:
    """Without a header where nothing is compressed: the work knows the shape."""
    if work.codec == "npy":
        return image.tobytes()
    import blosc2

    how = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.SHUFFLE], typesize=2, nthreads=1)
    blocks = (1, *image.shape[1:])
    return bytes(
        blosc2.asarray(np.ascontiguousarray(image), cparams=how, chunks=image.shape, blocks=blocks).to_cframe()
    )


def pixels_of(data: bytes, work: Work) -> Pixels:
    """The sample [C, Y, X]."""
    if work.codec == "npy":
        return np.frombuffer(data, np.uint16).reshape(work.shape)
    return decode(data, "blosc2")

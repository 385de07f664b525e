"""One pixel array ↔ bytes. Lossless: what the microscope wrote is what comes out.

`npy` is NumPy's own format, version 1.0: a 128-byte header, then the pixels as they lie in memory.
It is the fastest to read, and WebDataset, DALI and NumPy all read it without our code.
"""

import functools
import io
import tokenize
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from bie_stream.errors import SampleError

Codec = Literal["npy"]
Dtype = Literal["uint8", "uint16", "float32"]
Pixels = npt.NDArray[np.generic]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def encode(pixels: Pixels) -> bytes:
    """Bytes of one [C, Y, X] array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode(payload: memoryview) -> Pixels:
    """The [C, Y, X] array in these bytes: a read-only view, no copy.

    Raises:
        SampleError: the bytes are not a whole array of pixels.
    """
    try:
        start = 10 + int.from_bytes(payload[8:10], "little")
        shape, dtype = _header(bytes(payload[:start]))
        return np.frombuffer(payload, dtype, offset=start).reshape(shape)
    except (ValueError, SyntaxError, IndexError, tokenize.TokenError) as error:
        raise SampleError(f"not a whole npy array of pixels: {error}") from error


@functools.lru_cache(maxsize=256)
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("npy version is not 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or len(shape) != 3 or dtype.name not in DTYPES:
        raise ValueError(f"shape {shape}, dtype {dtype}, expected [C, Y, X] of {', '.join(DTYPES)} in C order")
    return shape, dtype

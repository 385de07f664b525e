"""Functions compiled by Numba: without the GIL, and kept on disk, so that only a machine's first use takes a second."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], reorder_sums: bool = False) -> Callable[..., Any]:
    """The function, compiled for the types that it is first called with.

    Args:
        reorder_sums: sums of floats may be taken in another order, which machines with other vectors do differently.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "nsz"} if reorder_sums else False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(**options)(function)

"""Furniture: `compiled` makes machine code of a function of numbers and numpy arrays, by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

FAST = {"contract", "nsz"}  # nothing that lets a sum be taken in another order, or hides a nan


def compiled(
    function: Callable[..., Any], parallel: bool = False, sums: bool = False
) -> Callable[..., Any]:
    """Return the function compiled when it is first called; the code is kept beside its file or in a cache.

    A multiplication and an addition may be one, and a division by zero is infinite. Arrays are read and
    written without a look at their bounds.  parallel: lets `numba.prange` use several threads.
    sums: lets a sum be taken in the order that is fastest, the same one every time on a machine.
    """
    fast = FAST | ({"reassoc"} if sums else set())
    settings: dict[str, Any] = {"error_model": "numpy", "fastmath": fast, "parallel": parallel}
    try:
        made: Callable[..., Any] = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # there is no folder to keep it in
        made = numba.njit(**settings)(function)
    return made

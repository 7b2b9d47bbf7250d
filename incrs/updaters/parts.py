"""Furniture: which GRU makes which number (`Parts`), and which thread makes it (`Divided`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from incrs.updaters.compiling import compiled

CHUNK = 1 << 12
"""What has more numbers than this is divided among threads."""

Array = np.ndarray[Any, np.dtype[Any]]


class Parts(NamedTuple):
    """Which generator makes which of N numbers; no generator is named twice.

    parts: (S, 4) int64: the first number of a part, its rows, the numbers in a row, and the generator of
    the first of them; the generators of a row follow each other.
    ends: (S, k) int64: how many of a part's rows, in front, go through which step.
    """

    parts: Array
    ends: Array

    def repeated(self, values: Tensor) -> Tensor:
        """Return the parameters behind each number, (R, N), of those of the generators (R, P)."""
        found: list[Tensor] = []
        run = 0  # generators that each make as many numbers, one after the other
        for s, (_, rows, dim, first) in enumerate(self.parts.tolist()):
            following = self.parts[s + 1, 1:].tolist() if s + 1 < len(self.parts) else None
            if dim == 1 and following == [rows, 1, first + 1]:
                run += 1
            elif run:
                found.append(values[:, first - run : first + 1].repeat_interleave(rows, 1))
                run = 0
            else:
                found.append(values[:, first : first + dim].repeat(1, rows))
        return torch.cat(found, 1)


class Divided(NamedTuple):
    """`Parts` by threads: those of thread t begin at bounds[t] (threads + 1,).

    What comes out does not depend on which thread does what.
    """

    bounds: Array
    parts: Array
    ends: Array

    @staticmethod
    def of(given: Parts, learning: bool) -> Divided:
        """Divide parts among as many threads as PyTorch has, in parts of CHUNK numbers where they can be.

        learning: False cuts by rows, too, so that generators are named again, and there is no gradient.
        """
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if threads < 2:
            return Divided(np.array([0, len(given.parts)]), *given)
        rows, dim = given.parts[:, 1], given.parts[:, 2]
        wide = rows == 1
        length = np.where(wide, dim, rows)  # of what is cut: numbers, or rows
        each = np.where(wide, CHUNK, rows if learning else CHUNK // dim).clip(1)
        pieces = -(-length // each)
        which = np.repeat(np.arange(len(pieces)), pieces)
        at = (np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * each[which]
        parts, ends, wide = given.parts[which], given.ends[which], wide[which]
        size = np.minimum(each[which], length[which] - at)
        parts[:, 0] += np.where(wide, at, at * dim[which])
        parts[:, 1], parts[:, 2] = np.where(wide, 1, size), np.where(wide, size, dim[which])
        parts[:, 3] += np.where(wide, at, 0)
        ends = np.where(wide[:, None], ends, ends - at[:, None])
        owner = _owners(parts[:, 1] * parts[:, 2], threads)
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(threads + 1))
        return Divided(bounds, parts[order], ends[order])


@compiled
def _owners(sizes, threads):  # type: ignore[no-untyped-def]
    """Return which thread does each part: the one with the least to do so far."""
    loads, owner = np.zeros(threads, np.int64), np.zeros(len(sizes), np.int64)
    for s in range(len(sizes)):
        t = np.argmin(loads)
        owner[s], loads[t] = t, loads[t] + sizes[s]
    return owner

"""Furniture: rows of several tables side by side in packs of equal size, for one operation on all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST = 512
"""A pack has at most so many places."""


class Way(NamedTuple):
    """Where rows lie in packs, and back.

    there: (packs * size,) which of all rows, one table behind the other, lies there; anyone where none
    does.  holes: the places where none does.  back: (rows,) where each of them went.
    rows: how many each table has.
    """

    there: Tensor
    holes: Tensor
    back: Tensor
    rows: tuple[int, ...]


class Packs(NamedTuple):
    """Which rows lie where; a pack has rows of one table, or none in its last places.

    size: of a pack.  owners: (packs,) the table.  counts: how many packs are needed in the last of the
    steps, how many in the one before it at the latest, ...; they lie in that order.
    ways: of every step, with the packs and the rows that it or a later one needs.
    """

    size: int
    owners: Tensor
    counts: tuple[int, ...]
    ways: tuple[Way, ...]

    @staticmethod
    @lru_cache(maxsize=64)
    def of(
        rows: tuple[int, ...],
        least: int,
        needed: tuple[tuple[int, ...], ...] = (),
        steps: int = 1,
    ) -> Packs:
        """Return packs, of `least` places or more, for tables with so many rows.

        needed: of each table how many rows in front the steps need, the last as many or fewer, the first
        all; (): all in every step.
        """
        ends = [own or (rows[i],) * steps for i, own in enumerate(needed or [()] * len(rows))]
        runs = []  # (step, table, from, to)
        for step in reversed(range(steps)):
            for i, own in enumerate(ends):
                at = own[step + 1] if step + 1 < steps else 0
                if at < own[step]:
                    runs.append((step, i, at, own[step]))
        typical = sum(rows) // max(1, 2 * len(runs))
        size = min(MOST, max(least, 1 << max(0, typical.bit_length() - 1)), max(rows))
        each = [-(-(stop - at) // size) for _, _, at, stop in runs]
        counts = [0] * steps
        for (step, *_), packs in zip(runs, each, strict=True):
            counts[steps - 1 - step] += packs
        starts, place = np.cumsum([0, *rows]), 0
        places = np.empty(starts[-1], np.int64)  # of all rows
        for (_, i, at, stop), packs in zip(runs, each, strict=True):
            places[starts[i] + at : starts[i] + stop] = np.arange(place, place + stop - at)
            place += packs * size
        number = np.arange(starts[-1]) - np.repeat(starts[:-1], rows)  # in its table
        ways = []
        for step in range(steps):
            of_step = [own[step] for own in ends]
            back = places[number < np.repeat(of_step, rows)]
            there = np.full(sum(counts[: steps - step]) * size, -1)
            there[back] = np.arange(len(back))
            holes = np.flatnonzero(there < 0)
            there[holes] = 0
            first, second, third = map(torch.from_numpy, (there, holes, back))
            ways.append(Way(first, second, third, tuple(of_step)))
        owners = torch.from_numpy(np.repeat([i for _, i, _, _ in runs], each))
        return Packs(size, owners, tuple(counts), tuple(ways))

    def packed(self, x: Tensor) -> Tensor:
        """Return rows (S, rows, d), one table behind the other, as (S, packs, size, d)."""
        there, holes, back, _ = self.ways[0]
        sent: Tensor = _Sent.apply(x, there, holes, back, holes[:0])
        return sent.unflatten(1, (-1, self.size))

    def unpacked(self, x: Tensor, step: int = 0) -> Tensor:
        """Return what a step needs, (S, packs, size, d), as rows (S, rows, d)."""
        there, holes, back, _ = self.ways[step]
        sent: Tensor = _Sent.apply(x.flatten(1, 2), back, holes[:0], there, holes)
        return sent


class _Sent(torch.autograd.Function):
    """x (S, n, d) -> (S, m, d): the rows `there` (m,), zeros at `holes`; `back` and `gaps` undo it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, there: Tensor, holes: Tensor, back: Tensor, gaps: Tensor
    ) -> Tensor:
        ctx.save_for_backward(back, gaps)
        return sent(x, there, holes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        return sent(gradients[0], *ctx.saved_tensors), None, None, None, None


def sent(x: Tensor, there: Tensor, holes: Tensor) -> Tensor:
    """Return the rows `there` (m,) of x (S, n, d), with zeros at `holes`: (S, m, d)."""
    found = x.index_select(1, there.to(x.device))
    return found.index_fill_(1, holes.to(x.device), 0) if len(holes) else found

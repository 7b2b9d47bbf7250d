"""Furniture: rows of several tables side by side in packs of equal size, for one operation on all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 512
"""A pack has at most so many places."""


class Packs(NamedTuple):
    """Which rows lie where; a pack has rows of one table, or none in its last places.

    size: of a pack.  there: (packs * size,) which of all rows, one table behind the other, lies there;
    where none does, the number behind the last.  back: (rows,) where each of them went.
    owners: (packs,) the table.  counts: how many packs are needed in the last of the steps, how many in
    the one before it at the latest, ...; they lie in that order.
    """

    size: int
    there: Tensor
    back: Tensor
    owners: Tensor
    counts: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=64)
    def of(
        rows: tuple[int, ...],
        least: int,
        needed: tuple[tuple[int, ...], ...] = (),
        steps: int = 1,
    ) -> Packs:
        """Return packs, of `least` places or more, for tables with so many rows.

        needed: of each table how many rows in front the steps need, the last as many or fewer; (): all.
        """
        starts = np.cumsum([0, *rows])
        runs = []  # (step, table, from, to)
        for step in range(steps, 0, -1):
            for i, ends in enumerate(needed or [()] * len(rows)):
                ends = ends or (rows[i],) * steps
                at = ends[step] if step < steps else 0
                if at < ends[step - 1]:
                    runs.append((step, i, starts[i] + at, starts[i] + ends[step - 1]))
        typical = int(starts[-1]) // max(1, 2 * len(runs))
        size = min(MOST, max(least, 1 << max(0, typical.bit_length() - 1)), max(rows))
        each = [int(-(-(stop - at) // size)) for _, _, at, stop in runs]
        there, back = np.full(sum(each) * size, starts[-1]), np.empty(starts[-1], np.int64)
        place, counts = 0, [0] * steps
        for (step, _, at, stop), packs in zip(runs, each, strict=True):
            there[place : place + stop - at] = np.arange(at, stop)
            back[at:stop] = np.arange(place, place + stop - at)
            place += packs * size
            counts[steps - step] += packs
        owners = np.repeat([i for _, i, _, _ in runs], each)
        first, second, third = map(torch.from_numpy, (there, back, owners))
        return Packs(size, first, second, third, tuple(counts))

    def packed(self, x: Tensor) -> Tensor:
        """Return rows (S, rows, d), one table behind the other, as (S, packs, size, d)."""
        there, back = self.there.to(x.device), self.back.to(x.device)
        sent: Tensor = _Sent.apply(x, there, back)
        return sent.unflatten(1, (-1, self.size))

    def unpacked(self, x: Tensor) -> Tensor:
        """Return (S, packs, size, d) as rows (S, rows, d), one table behind the other."""
        there, back = self.there.to(x.device), self.back.to(x.device)
        sent: Tensor = _Sent.apply(x.flatten(1, 2), back, there)
        return sent


class _Sent(torch.autograd.Function):
    """x (S, n, d) -> (S, m, d): the rows `there` (m,), row n being zeros; `back` (n,) is the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return F.pad(x, (0, 0, 0, 1)).index_select(1, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return F.pad(gradients[0], (0, 0, 0, 1)).index_select(1, back), None, None

"""Hands out a log in time order: (D_0 .. D_t, D_{t+1}), and loaders that gather batches.

for history, following in stream.pairs():
...                                  # history[-1] is D_t; following is D_{t+1} or None
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import overload

import lightning as L
import torch

from incrs.data.base import Source
from incrs.period import Batch, Period, Role


class History(Sequence[Period]):
    """D_0 .. D_t, each loaded when it is asked for; asking for a later one is an IndexError."""

    def __init__(self, stream: PeriodStream, length: int):
        self._stream, self._length = stream, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, t: int) -> Period: ...
    @overload
    def __getitem__(self, t: slice) -> list[Period]: ...
    def __getitem__(self, t: int | slice) -> Period | list[Period]:
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(self._length))]
        if not -self._length <= t < self._length:
            raise IndexError(
                f"period {t} has not happened yet: the stream stands at period {self._length - 1}"
            )
        return self._stream._load(t % self._length)


class BatchLoader:
    """Cuts a period into batches gathered from its packed rows; a new order in every epoch.

    period: the rows.  size: rows in a batch, the last one may be shorter.  seed: of the orders, or
    None to keep the rows' own order.  Lightning asks for `len` and iterates once an epoch.
    """

    def __init__(self, period: Period, size: int, seed: int | None = None):
        self.period, self.size = period, size
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.period) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        rows, count = self.period.rows, len(self.period)
        if self._generator is None:
            for start in range(0, count, self.size):
                yield rows.take(slice(start, start + self.size))
            return
        order = torch.randperm(count, generator=self._generator)
        for where in order.split(self.size):
            yield rows.take(where)


class PeriodStream(L.LightningDataModule):
    """The periods of a source in time order; a period is handed out only once it has come.

    source: a prepared Source.  batch_size: rows in a batch of training.
    """

    def __init__(self, source: Source, batch_size: int):
        super().__init__()
        self.schema, self.roles = source.schema, list(source.roles)
        self.batch_size = batch_size
        self._load = lru_cache(maxsize=self.warmup + 2)(source.read)

    @property
    def warmup(self) -> int:
        """The number of pretrain periods: the first fit is on all of them."""
        return self.roles.count(Role.PRETRAIN)

    def pairs(self, start: int | None = None) -> Iterator[tuple[History, Period | None]]:
        """Yield (D_0 .. D_t, D_{t+1}) from t = `start`, by default the last pretrain period.

        After the last period D_{t+1} is None: the log ends there, its model serves tomorrow.
        """
        first = self.warmup - 1 if start is None else start
        for t in range(first, len(self.roles)):
            last = t + 1 == len(self.roles)
            yield History(self, t + 1), None if last else self._load(t + 1)

    def loader(self, period: Period, seed: int | None = None) -> BatchLoader:
        """Return batches of the period: shuffled by `seed`, or in the rows' order for scoring."""
        return BatchLoader(period, self.batch_size, seed)

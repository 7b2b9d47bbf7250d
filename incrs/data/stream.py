"""Hands out a log in time order: (D_0 .. D_t, D_{t+1}), and loaders that gather batches.

for history, following in stream.pairs():
...                                  # history[-1] is D_t; following is D_{t+1} or None
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol, overload

import lightning as L
import torch

from incrs import together
from incrs.data.base import Source
from incrs.period import Batch, Period, Role, Stored, joined
from incrs.roster import Roster


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


class Supply(Protocol):
    """What a task adds to the rows that are trained on.

    columns: of `Batch.fields`, whose values are never read as unknown.
    """

    columns: Sequence[int]

    def inputs(self) -> list[object]:
        """Return tensors and plain values that say all that it adds now, but for the draws."""

    def marked(self, period: Period) -> Period:
        """Return the period with what its rows as a whole say of each."""

    def drawn(self, rows: Batch, count: int, own: slice, random: torch.Generator) -> Batch:
        """Return a batch's rows `own` of `count` with what is drawn for each; `own` changes no draw."""


class BatchLoader:
    """Cuts a period into batches gathered from its packed rows; a new order in every epoch.

    period: the rows, as rows of the tables.  size: rows in a batch, the last one may be shorter.
    seed: of the orders, or None to keep the rows' own order.  unknown_rate: share of all fields'
    values that a shuffled batch has replaced by 0, the unknown, so that its row is trained.
    translate: applied to the rows, whole or, where they stay on disk, part by part. Those on disk are
    shuffled in two ways: their parts, and the rows of as many parts as the buffer holds.
    supply: what a task adds to shuffled batches, None for nothing.
    Lightning asks for `len` and iterates once an epoch. Several processes get a slice each of every
    batch, which has no rows where a batch has fewer than there are processes.
    """

    def __init__(
        self,
        period: Period,
        size: int,
        seed: int | None = None,
        unknown_rate: float = 0.0,
        translate: Callable[[Batch], Batch] | None = None,
        supply: Supply | None = None,
    ):
        if supply is not None:
            period = supply.marked(period)
        self.period, self.size, self._supply = period, size, supply
        self._unknown = unknown_rate
        self._translate = translate or (lambda rows: rows)
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._whole = None
        if isinstance(period.content, Batch):
            self._whole = self._translate(period.content)

    def __len__(self) -> int:
        return -(-len(self.period) // self.size)

    def positions(self) -> torch.Tensor:
        """Return the rows that this process gets to see when they come in their own order."""
        batches = torch.arange(len(self.period)).split(self.size)
        return torch.cat([batch[_mine(len(batch))] for batch in batches])

    def __iter__(self) -> Iterator[Batch]:
        blocks = self._blocks() if self._whole is None else iter([self._whole])
        if self._generator is None:
            for rows in blocks:
                for start in range(0, len(rows.label), self.size):
                    own = _mine(min(self.size, len(rows.label) - start))
                    yield rows.take(slice(start + own.start, start + own.stop))
            return
        rest: Batch | None = None  # what did not fill a batch yet
        for block, last in _marked(blocks):
            rows = block if rest is None else joined([rest, block])
            order = torch.randperm(len(rows.label), generator=self._generator)
            parts = list(order.split(self.size))
            rest = None
            if not last and len(parts[-1]) < self.size:
                rest = rows.take(parts.pop())
            for where in parts:
                own = _mine(len(where))
                yield self._supplied(rows.take(where[own]), len(where), own)

    def _blocks(self) -> Iterator[Batch]:
        """Yield the rows on disk: shuffled parts, as many as the buffer holds, or whole batches in order."""
        content = self.period.content
        assert isinstance(content, Stored)
        if self._generator is None:
            yield from map(
                self._translate, self._even(map(content.read, range(len(content.sizes))))
            )
            return
        held: list[Batch] = []
        order = torch.randperm(len(content.sizes), generator=self._generator).tolist()
        for i in order:
            held.append(self._translate(content.read(i)))
            if sum(len(part.label) for part in held) >= content.buffer:
                yield joined(held)
                held = []
        if held:
            yield joined(held)

    def _even(self, parts: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the parts' rows in order, in blocks of whole batches."""
        rest: Batch | None = None
        for part, last in _marked(parts):
            rows = part if rest is None else joined([rest, part])
            whole = len(rows.label) if last else len(rows.label) // self.size * self.size
            if whole:
                yield rows.take(slice(0, whole))
            rest = rows.take(slice(whole, None)) if whole < len(rows.label) else None

    def _supplied(self, rows: Batch, count: int, own: slice) -> Batch:
        """Return a batch with some of its values unknown, and with what the task adds; as `_forgetful`."""
        if self._supply is None or self._generator is None:
            return self._forgetful(rows, count, own)
        columns = list(self._supply.columns)
        kept = rows.fields[:, columns]
        rows = self._forgetful(rows, count, own)
        rows.fields[:, columns] = kept
        return self._supply.drawn(rows, count, own, self._generator)

    def _forgetful(self, rows: Batch, count: int, own: slice) -> Batch:
        """Return a batch of its own with some of its fields' values unknown.

        rows: those at `own` of a batch of `count`, whose unknown values do not depend on `own`.
        """
        width = rows.fields.shape[1]
        cells = round(self._unknown * count * width)
        if cells:
            where = torch.randint(count * width, (cells,), generator=self._generator)
            where = where - own.start * width
            where = where[(where >= 0) & (where < rows.fields.numel())]
            rows.fields.view(-1)[where] = 0
        return rows


class AlignedLoader:
    """Goes through several periods at once: tuples of batches, one of each period, a new order each epoch.

    periods: as BatchLoader's. The last one is cut into the fewest batches of at most `size` rows, the
    others into as many; a period's batches are equally large but for the last one. Where a period has
    too few rows for so many, None stands for the batches that it lacks.
    seed, translate, supply: as BatchLoader's; every period has an order of its own.
    """

    def __init__(
        self,
        periods: Sequence[Period],
        size: int,
        seed: int,
        translate: Callable[[Batch], Batch] | None = None,
        supply: Supply | None = None,
    ):
        self._count = -(-len(periods[-1]) // size)
        sizes = [max(1, -(-len(period) // max(1, self._count))) for period in periods]
        self._loaders = [
            BatchLoader(period, rows, seed + i, 0.0, translate, supply)
            for i, (period, rows) in enumerate(zip(periods, sizes, strict=True))
        ]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Batch | None, ...]]:
        return itertools.zip_longest(*(x if len(x) else () for x in self._loaders))


def _mine(count: int) -> slice:
    """Return which of `count` rows of a batch are this process's."""
    each, more = divmod(count, together.processes())
    rank = together.rank()
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def _marked(items: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield each item and whether it is the last."""
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following


class PeriodStream(L.LightningDataModule):
    """The periods of a source in time order; a period is handed out only once it has come.

    source: a prepared Source.  batch_size: rows in a batch of training.  roster: which ids have rows
    in the tables; the loaders translate.  unknown_rate: share of the fields' values that training
    reads as unknown, in [0, 1).
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        roster: Roster | None = None,
        unknown_rate: float = 0.0,
    ):
        super().__init__()
        self.schema, self.roles = source.schema, list(source.roles)
        self.batch_size, self.unknown_rate = batch_size, unknown_rate
        self.supply: Supply | None = None  # of a task that adds to what is trained on
        self.roster = Roster(source.schema) if roster is None else roster
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
        rate = 0.0 if seed is None else self.unknown_rate
        supply = None if seed is None else self.supply
        return BatchLoader(period, self.batch_size, seed, rate, self.roster.translate, supply)

    def aligned(self, periods: Sequence[Period], seed: int) -> AlignedLoader:
        """Return tuples of the periods' batches, shuffled by `seed`; no value is read as unknown."""
        return AlignedLoader(periods, self.batch_size, seed, self.roster.translate, self.supply)

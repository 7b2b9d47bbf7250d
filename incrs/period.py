"""What a period of the log is: `Batch` (rows as tensors), `Period` (the rows of one day), `Role`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


class Role(StrEnum):
    """What a period may be used for: warm-up, choosing settings, or the numbers that are reported."""

    PRETRAIN = "pretrain"
    TUNE = "tune"
    TEST = "test"


class Batch(NamedTuple):
    """B rows of a click log.

    fields: (B, F) int32, one id per single-valued field, local to its vocabulary; 0 = unknown.
    lists: name -> (B, L) int32 ids, 0 = padding: history, genres, ...
    numbers: (B, N) float32, standardised on the pretrain periods; N may be 0.
    scenario: (B,) int64 in [0, S).
    label: (B,) float32, 0 or 1.
    outcome: (B, K) int8, 0 or 1, what the user did with the row's item, each of the schema's behaviours;
    None where the log does not say. As the label it is what happened, and no model's input.
    """

    fields: Tensor
    lists: dict[str, Tensor]
    numbers: Tensor
    scenario: Tensor
    label: Tensor
    outcome: Tensor | None = None

    def take(self, where: Tensor | slice) -> Batch:
        """Return the rows at `where`: int64 positions, a bool mask (both (n,)), or a slice."""

        def rows(x: Tensor) -> Tensor:
            if isinstance(where, slice) or where.dtype == torch.bool:
                return x[where]
            return x.index_select(0, where)

        lists = {name: rows(ids) for name, ids in self.lists.items()}
        return Batch(
            rows(self.fields),
            lists,
            rows(self.numbers),
            rows(self.scenario),
            rows(self.label),
            None if self.outcome is None else rows(self.outcome),
        )


def joined(parts: Sequence[Batch]) -> Batch:
    """Return the rows of several batches, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    outcomes = [part.outcome for part in parts if part.outcome is not None]
    return Batch(
        fields=torch.cat([part.fields for part in parts]),
        lists={name: torch.cat([part.lists[name] for part in parts]) for name in parts[0].lists},
        numbers=torch.cat([part.numbers for part in parts]),
        scenario=torch.cat([part.scenario for part in parts]),
        label=torch.cat([part.label for part in parts]),
        outcome=torch.cat(outcomes) if len(outcomes) == len(parts) else None,
    )


class Stored(NamedTuple):
    """Rows that stay on disk and are read part by part: the i-th has sizes[i] rows.

    buffer: how many rows may be in memory at once, to be shuffled.
    """

    sizes: Sequence[int]
    read: Callable[[int], Batch]
    buffer: int


@dataclass(frozen=True)
class Period:
    """D_t: the rows of one period in time order; never changed once made.

    index: position in the stream, from 0.  name: what people call it, e.g. `2022-05-02`.
    content: the rows, in memory or, where they are too many for that, on disk.
    truth: (n,) float64 true click probabilities where the log is synthetic, else None. It is no
    part of `content`, so no model ever meets it.
    """

    index: int
    name: str
    role: Role
    content: Batch | Stored
    truth: Tensor | None = None

    @property
    def rows(self) -> Batch:
        """All rows, in memory."""
        return self.content if isinstance(self.content, Batch) else joined(list(self.parts()))

    def parts(self) -> Iterator[Batch]:
        """Yield the rows part by part, each part short enough for memory."""
        if isinstance(self.content, Batch):
            yield self.content
        else:
            yield from map(self.content.read, range(len(self.content.sizes)))

    def __len__(self) -> int:
        if isinstance(self.content, Batch):
            return self.content.label.shape[0]
        return sum(self.content.sizes)

    def take(self, where: Tensor | slice) -> Period:
        """Return the same period with only the rows at `where` (as `Batch.take`)."""
        truth = None if self.truth is None else self.truth[where]
        nothing = isinstance(where, slice) and where.stop == 0
        whole = next(self.parts()) if nothing else self.rows
        return replace(self, content=whole.take(where), truth=truth)

    @staticmethod
    def concat(periods: Sequence[Period]) -> Period:
        """Join periods in the order given; index, name and role are those of the last one."""
        if len(periods) == 1:
            return periods[0]
        truths = [period.truth for period in periods if period.truth is not None]
        truth = torch.cat(truths) if len(truths) == len(periods) else None
        batches = [p.content for p in periods if isinstance(p.content, Batch)]
        if len(batches) == len(periods):
            return replace(periods[-1], content=joined(batches), truth=truth)
        sources: list[tuple[int, Callable[[], Batch]]] = []
        for period in periods:
            if isinstance(period.content, Batch):
                sources.append((len(period), partial(_same, period.content)))
            else:
                sizes, read, _ = period.content
                sources += [(size, partial(read, i)) for i, size in enumerate(sizes)]
        buffer = max(p.content.buffer for p in periods if isinstance(p.content, Stored))
        content = Stored([size for size, _ in sources], lambda i: sources[i][1](), buffer)
        return replace(periods[-1], content=content, truth=truth)


def _same(rows: Batch) -> Batch:
    return rows

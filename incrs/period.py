"""What a period of the log is: `Batch` (rows as tensors), `Period` (the rows of one day), `Role`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
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
    """

    fields: Tensor
    lists: dict[str, Tensor]
    numbers: Tensor
    scenario: Tensor
    label: Tensor

    def take(self, where: Tensor | slice) -> Batch:
        """Return the rows at `where`: int64 positions, a bool mask (both (n,)), or a slice."""

        def rows(x: Tensor) -> Tensor:
            if isinstance(where, slice) or where.dtype == torch.bool:
                return x[where]
            return x.index_select(0, where)

        lists = {name: rows(ids) for name, ids in self.lists.items()}
        return Batch(
            rows(self.fields), lists, rows(self.numbers), rows(self.scenario), rows(self.label)
        )


@dataclass(frozen=True)
class Period:
    """D_t: the rows of one period in time order; never changed once made.

    index: position in the stream, from 0.  name: what people call it, e.g. `2022-05-02`.
    truth: (n,) float64 true click probabilities where the log is synthetic, else None. It is no
    part of `rows`, so no model ever meets it.
    """

    index: int
    name: str
    role: Role
    rows: Batch
    truth: Tensor | None = None

    def __len__(self) -> int:
        return self.rows.label.shape[0]

    def take(self, where: Tensor | slice) -> Period:
        """Return the same period with only the rows at `where` (as `Batch.take`)."""
        truth = None if self.truth is None else self.truth[where]
        return replace(self, rows=self.rows.take(where), truth=truth)

    @staticmethod
    def concat(periods: Sequence[Period]) -> Period:
        """Join periods in the order given; index, name and role are those of the last one."""
        if len(periods) == 1:
            return periods[0]
        parts = [period.rows for period in periods]
        lists = {name: torch.cat([part.lists[name] for part in parts]) for name in parts[0].lists}
        rows = Batch(
            fields=torch.cat([part.fields for part in parts]),
            lists=lists,
            numbers=torch.cat([part.numbers for part in parts]),
            scenario=torch.cat([part.scenario for part in parts]),
            label=torch.cat([part.label for part in parts]),
        )
        truths = [period.truth for period in periods if period.truth is not None]
        truth = torch.cat(truths) if len(truths) == len(periods) else None
        return replace(periods[-1], rows=rows, truth=truth)

"""What every item looks like: the values of the columns that follow it, by the item's id."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from incrs.data.base import Schema
from incrs.models.base import Items
from incrs.period import Batch, Period


class Catalogue:
    """The items met so far as they were in the last row that each was in; it grows period by period.

    schema: of the log; its `of_item` says which columns follow the item.
    """

    def __init__(self, schema: Schema):
        follow = schema.of_item or ()
        fields = [str(schema.item), *(f for f in schema.fields if f in follow and f != schema.item)]
        self.columns = tuple(map(schema.column, fields))
        self.numeric = tuple(j for j, name in enumerate(schema.numbers) if name in follow)
        self._lists = [name for name in schema.lists if name in follow]
        self._width = len(schema.fields)
        self._met = np.zeros(1, bool)
        self._values: list[NDArray[np.generic]] = []  # (I, ...) each, see _of

    def see(self, period: Period) -> None:
        """Take note of D_t, called once for each period in order."""
        for rows in period.parts():
            item = self._grow(rows)
            for held, values in zip(self._values, self._of(rows), strict=True):
                held[item] = values  # of an item's rows the last one is written last
            self._met[item] = True

    def with_new_of(self, period: Period) -> Catalogue:
        """Return the catalogue with the items that are new in D_{t+1}, as they are where each is first."""
        more = copy.copy(self)
        more._met, more._values = self._met.copy(), [held.copy() for held in self._values]
        for rows in period.parts():
            item, first = np.unique(more._grow(rows), return_index=True)
            new = ~more._met[item]
            for held, values in zip(more._values, more._of(rows), strict=True):
                held[item[new]] = values[first[new]]
            more._met[item] = True
        return more

    def items(self, at: Tensor, translate: Callable[[Batch], Batch]) -> Items:
        """Return candidates `at` (B, C) out of the catalogue, with the values that tables' rows have."""
        fields, numbers, *lists = map(torch.from_numpy, self._values)
        fields[:, 0] = torch.arange(len(fields))
        wide = torch.zeros(len(fields), self._width, dtype=torch.int32)
        wide[:, list(self.columns)] = fields
        none = torch.empty(0)
        rows = Batch(wide, dict(zip(self._lists, lists, strict=True)), none, none.long(), none)
        rows = translate(rows)
        fields = rows.fields[:, list(self.columns)].contiguous()
        return Items(at, fields, self.columns, rows.lists, numbers, self.numeric)

    def _of(self, rows: Batch) -> list[NDArray[np.generic]]:
        """Return the values of the columns that follow the item: fields, numbers, then the lists."""
        lists = [rows.lists[name] for name in self._lists]
        columns = (rows.fields[:, list(self.columns)], rows.numbers[:, list(self.numeric)], *lists)
        return [column.cpu().numpy() for column in columns]

    def _grow(self, rows: Batch) -> NDArray[np.int64]:
        """Make room for the rows' items; return their ids (n,)."""
        item = rows.fields[:, self.columns[0]].long().cpu().numpy()
        more = max(0, int(item.max(initial=0)) + 1 - len(self._met))
        self._met = np.pad(self._met, (0, more))
        before = self._values or [np.zeros((1, *x.shape[1:]), x.dtype) for x in self._of(rows)]
        missing = len(self._met) - len(before[0])
        self._values = [np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in before]
        return item

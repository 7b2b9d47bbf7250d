"""Which ids have a row of their own in the tables, and which row: it follows the log period by period.

roster.see(period)          # what D_t holds is known from now on
ids = roster.admit()        # vocabulary -> the ids that have a row, in the rows' order
rows = roster.translate(b)  # ids of the log -> rows of the tables; an id without a row becomes 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.period import Batch, Period


class Roster:
    """The ids that have rows, in every vocabulary; row 0 is always the unknown's.

    schema: of the log; its vocabularies' sizes count for `fixed` alone.
    vocabulary: `growing` gives an id its row with the first period trained on that holds it, so that
    an id not met before is served as unknown, as in production. `fixed` gives all ids of the log a row
    from the start, the papers' protocol: an id not met before is served with its initial row.
    admission: appearances before an id gets its row, at least 1. An appearance is a row of the log
    that holds the id in a field, or in a list whose vocabulary no field has.
    expiry: an id that so many periods in a row did not hold gives its row back, and must be admitted
    again; None: never.

    ids: vocabulary -> (rows,) int64, the id of every row, ids[0] = 0.  selective: whether there is
    admission or expiry; else row and id are the same number.
    known: vocabulary -> how many ids have appeared, 0 included.
    The schema's closed vocabularies have all their rows from the start, whatever the settings.
    """

    def __init__(
        self,
        schema: Schema,
        vocabulary: Literal["growing", "fixed"] = "growing",
        admission: int = 1,
        expiry: int | None = None,
    ):
        if vocabulary not in ("growing", "fixed"):
            raise Mistake(f"vocabulary={vocabulary}: give growing or fixed")
        for name, value in (("admission", admission), ("expiry", expiry)):
            if not (value is None and name == "expiry") and (type(value) is not int or value < 1):
                null = ", or null for never" if name == "expiry" else ""
                raise Mistake(f"{name}={value}: give a whole number from 1{null}")
        if vocabulary == "fixed" and (admission, expiry) != (1, None):
            raise Mistake(
                f"vocabulary=fixed gives every id a row at once: set vocabulary=growing for "
                f"admission={admission}, expiry={'null' if expiry is None else expiry}"
            )
        self.fixed, self.admission, self.expiry = vocabulary == "fixed", admission, expiry
        self.ids = {name: torch.zeros(1, dtype=torch.int64) for name in schema.vocabularies}
        if self.fixed:
            self.ids = {name: torch.arange(size) for name, size in schema.vocabularies.items()}
        self.known = dict.fromkeys(schema.vocabularies, 1)
        self._closed = schema.closed()
        for name in self._closed:
            self.ids[name] = torch.arange(schema.vocabularies[name])
            self.known[name] = schema.vocabularies[name]
        self._fields, self._lists = dict(schema.fields), dict(schema.lists)
        self._of_history = schema.of_history()  # what was in a row of its own before
        self.selective = admission > 1 or expiry is not None
        self._row_of: dict[str, Tensor] = {}
        # for admission and expiry alone, (known,) each: appearances, period of the last one
        self._count = {name: torch.zeros(1, dtype=torch.int64) for name in self.ids}
        self._last = {name: torch.zeros(1, dtype=torch.int64) for name in self.ids}

    def see(self, period: Period) -> None:
        """Take note of the ids of D_t; called once for each period, in order."""
        fresh: dict[str, list[Tensor]] = {name: [] for name in self.ids}
        for rows in period.parts():
            for name, ids in self._appearances(rows):
                self.known[name] = max(self.known[name], int(ids.max()) + 1 if len(ids) else 1)
                if self.selective:
                    fresh[name].append(torch.bincount(ids, minlength=self.known[name]))
        if not self.selective:
            return
        for name, parts in fresh.items():
            count, last = (_longer(x[name], self.known[name]) for x in (self._count, self._last))
            for part in parts:
                count[: len(part)] += part
                last[: len(part)][part > 0] = period.index
            if self.expiry is not None:
                count[period.index - last >= self.expiry] = 0
            self._count[name], self._last[name] = count, last

    def _appearances(self, rows: Batch) -> list[tuple[str, Tensor]]:
        """Return (vocabulary, ids) of every field, and of every list with a vocabulary of its own."""
        found = [(v, rows.fields[:, j]) for j, v in enumerate(self._fields.values())]
        shared = set(self._fields.values())
        found += [
            (field.vocabulary, rows.lists[name].flatten())
            for name, field in self._lists.items()
            if field.vocabulary not in shared
            and name not in self._of_history
            and field.vocabulary not in self._closed
        ]
        return found

    def admit(self) -> dict[str, Tensor]:
        """Give and take rows by what was seen so far; return `ids`.

        Rows that stay keep their order, new ones come behind them in the order of their ids.
        """
        if self.fixed:
            return self.ids
        for name, held in self.ids.items():
            if name in self._closed:
                continue
            if not self.selective:
                self.ids[name] = torch.arange(self.known[name])
                continue
            live = self._count[name] >= self.admission
            live[0] = True
            kept = held[live[held]]
            live[kept] = False
            self.ids[name] = torch.cat([kept, live.nonzero().flatten()])
            self._row_of.pop(name, None)
        return self.ids

    def translate(self, rows: Batch) -> Batch:
        """Return the batch with rows of the tables in place of the log's ids, 0 where there is none.

        In a list such ids count as padding.
        """
        if self.fixed:
            return rows
        fields = rows.fields
        if self.selective:
            columns = [
                self._rows_of(v)[fields[:, j].clamp(max=len(self._rows_of(v)) - 1)]
                for j, v in enumerate(self._fields.values())
            ]
            fields = torch.stack(columns, 1) if columns else fields
            lists = {}
            for name, ids in rows.lists.items():
                row_of = self._rows_of(self._lists[name].vocabulary)
                lists[name] = row_of[ids.clamp(max=len(row_of) - 1)]
            return rows._replace(fields=fields, lists=lists)
        sizes = [len(self.ids[v]) for v in self._fields.values()]
        fields = _within(fields, torch.tensor(sizes, dtype=fields.dtype))
        lists = {
            name: _within(ids, torch.tensor(len(self.ids[self._lists[name].vocabulary])))
            for name, ids in rows.lists.items()
        }
        return rows._replace(fields=fields, lists=lists)

    def _rows_of(self, vocabulary: str) -> Tensor:
        """Return (known + 1,) int32, the row of each id, 0 = none; the last stands for later ids."""
        if vocabulary not in self._row_of:
            ids = self.ids[vocabulary]
            row_of = torch.zeros(max(self.known[vocabulary], int(ids.max()) + 1) + 1).int()
            row_of[ids] = torch.arange(len(ids), dtype=torch.int32)
            self._row_of[vocabulary] = row_of
        row_of = self._row_of[vocabulary]
        return row_of

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the roster of the next period depends on, as flat tensors."""
        state = {}
        for name in self.ids:
            state[f"known.{name}"] = torch.tensor(self.known[name])
            state[f"ids.{name}"] = self.ids[name]
            if self.selective:
                state[f"count.{name}"], state[f"last.{name}"] = self._count[name], self._last[name]
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` returned; under `fixed` the log may have gained ids since."""
        self._row_of = {}
        for name in self.ids:
            self.known[name] = int(state[f"known.{name}"])
            if not self.fixed:
                self.ids[name] = state[f"ids.{name}"]
            if self.selective:
                self._count[name], self._last[name] = state[f"count.{name}"], state[f"last.{name}"]


def _longer(x: Tensor, size: int) -> Tensor:
    """Return x with zeros behind it, (size,)."""
    return torch.cat([x, x.new_zeros(size - len(x))])


def _within(ids: Tensor, sizes: Tensor) -> Tensor:
    """Return ids (n, F) with 0 in place of those at or beyond sizes, (F,) or one for all."""
    beyond = ids >= sizes
    return ids.masked_fill(beyond, 0) if bool(beyond.any()) else ids

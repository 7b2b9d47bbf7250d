"""Furniture: `Renumbering` counts the rows of tables anew as a step's batches hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from incrs.models.base import Backbone, Tables
from incrs.period import Batch
from incrs.updaters.compiling import compiled

SMALL = 128
"""Tables of at most so many rows are generated whole; of larger ones, the rows of the batch alone."""

Needed = Mapping[str, Sequence[int]]
"""Name of a table -> for every batch, how many of the rows in front it or a later one holds."""

Batches = Sequence[Batch | None]


def large(backbone: Backbone) -> dict[str, tuple[Tables, str]]:
    """Return those of the backbone's tables that have more than SMALL rows."""
    tables = backbone.tables()
    return {
        name: (of, vocabulary)
        for name, (of, vocabulary) in tables.items()
        if len(backbone.get_parameter(name)) > SMALL and vocabulary not in of.whole
    }


def rows_of_gates(
    backbone: Backbone, tables: Mapping[str, tuple[Tables, str]], rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return which rows the gates have where tables have these rows: name of a buffer -> (u,)."""
    of = {vocabulary: rows[name] for name, (_, vocabulary) in tables.items()}
    return {name: of[v] for name, (_, v) in backbone.gates().items() if v in of}


class Renumbering:
    """Counts the rows of a backbone's large tables anew, as the batches of a step hold them.

    tables: name -> where it is and its vocabulary; ids of other vocabularies stay as they are.
    """

    def __init__(self, backbone: Backbone):
        self.tables = large(backbone)
        self._rows = {v: len(backbone.get_parameter(name)) for name, (_, v) in self.tables.items()}
        self._seen: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(
        self, batches: Batches
    ) -> tuple[tuple[Batch | None, ...], dict[str, Tensor], Needed]:
        """Return the batches in the new numbers, which rows those are, (u,), and who needs them.

        Rows come in the order of the last batch that holds them, the last one's first; row 0, the
        unknown's and in lists the padding, stays 0.
        """
        if not self.tables:
            return tuple(batches), {}, {}
        of, _ = next(iter(self.tables.values()))
        columns = list(of.fields.values())
        made = [
            None if b is None else b._replace(fields=b.fields.clone(), lists=dict(b.lists))
            for b in batches
        ]
        device = next((b.label.device for b in batches if b is not None), torch.device("cpu"))
        rows: dict[str, Tensor] = {}
        needed: dict[str, list[int]] = {}
        for vocabulary in self._rows:
            held = [j for j, v in enumerate(columns) if v == vocabulary]
            named = [name for name, v in {**of.lists, **of.beside}.items() if v == vocabulary]
            ids = [
                [x.flatten() for x in (b.fields[:, held], *(b.lists[name] for name in named))]
                if b
                else []
                for b in reversed(made)
            ]
            zero = torch.zeros(1, dtype=torch.int32, device=device)
            parts = [torch.cat([zero, *some]) for some in ids]
            rows[vocabulary], places, counts = self._first_seen(vocabulary, parts)
            needed[vocabulary] = counts[::-1]
            for batch, some, place in zip(reversed(made), ids, places, strict=True):
                if batch:
                    new = place[1:].split([len(x) for x in some])
                    batch.fields[:, held] = new[0].view(len(batch.label), len(held))
                    for name, x in zip(named, new[1:], strict=True):
                        batch.lists[name] = x.view_as(batch.lists[name])
        return (
            tuple(made),
            {name: rows[vocabulary] for name, (_, vocabulary) in self.tables.items()},
            {name: needed[vocabulary] for name, (_, vocabulary) in self.tables.items()},
        )

    def _first_seen(
        self, vocabulary: str, parts: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor], list[int]]:
        """Return the ids of parts as they first come, where each one is, and how many by each part's end.

        Sorting them takes longer.
        """
        ids, sizes = torch.cat(list(parts)), [len(part) for part in parts]
        key = (vocabulary, ids.device)
        if key not in self._seen:
            self._seen[key] = torch.full((self._rows[vocabulary],), -1, device=ids.device)
        seen = self._seen[key]
        if ids.device.type == "cpu":
            found = torch.empty(len(ids), dtype=torch.long)
            ends = np.cumsum(sizes)
            _number(ids.numpy(), ends, seen.numpy(), found.numpy())
            return found[: ends[-1]], ids.split(sizes), ends.tolist()
        at = torch.arange(len(ids), device=ids.device)
        wide = ids.long()
        seen.index_fill_(0, wide, len(ids)).scatter_reduce_(0, wide, at, "amin")
        first = seen.index_select(0, wide)
        new = first == at
        number = new.cumsum(0)
        places = (number - 1).index_select(0, first).int()
        last = torch.tensor(sizes, device=ids.device).cumsum(0) - 1
        return wide[new], places.split(sizes), number.index_select(0, last).tolist()


@compiled
def _number(ids, ends, seen, found):  # type: ignore[no-untyped-def]
    """Write the ids as they first come into `found`, their place there over each, and over `ends` how many.

    seen: (rows,), -1 everywhere, as afterwards again.
    """
    count = at = 0
    for part in range(len(ends)):
        while at < ends[part]:
            own = ids[at]
            if seen[own] < 0:
                seen[own], found[count] = count, own
                count += 1
            ids[at] = seen[own]
            at += 1
        ends[part] = count
    for i in range(count):
        seen[found[i]] = -1

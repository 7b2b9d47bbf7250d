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
        rows: dict[str, Tensor] = {}
        needed: dict[str, list[int]] = {}
        for vocabulary in self._rows:
            held = [j for j, v in enumerate(columns) if v == vocabulary]
            named = [name for name, v in {**of.lists, **of.beside}.items() if v == vocabulary]
            places: list[list[Tensor]] = []
            for batch in reversed(made):
                places.append([])
                if batch:
                    batch.lists.update({name: batch.lists[name].clone() for name in named})
                    places[-1] += [batch.fields[:, j] for j in held]
                    places[-1] += [batch.lists[name].view(-1) for name in named]
            rows[vocabulary], counts = self._numbered(vocabulary, places)
            needed[vocabulary] = counts[::-1]
        return (
            tuple(made),
            {name: rows[vocabulary] for name, (_, vocabulary) in self.tables.items()},
            {name: needed[vocabulary] for name, (_, vocabulary) in self.tables.items()},
        )

    def _numbered(
        self, vocabulary: str, places: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, list[int]]:
        """Write over ids (n,) of batches which one it is of those that come; 0 comes first.

        Returns the ids as they first come, and how many have come with each batch. Sorting takes longer.
        """
        device = next((x.device for some in places for x in some), torch.device("cpu"))
        key = (vocabulary, device)
        if key not in self._seen:
            self._seen[key] = torch.full((self._rows[vocabulary],), -1, device=device)
        seen, counts = self._seen[key], []
        if device.type == "cpu":
            found, by_id = np.zeros(len(seen), np.int64), seen.numpy()
            count, by_id[0] = 1, 0
            for some in places:
                for ids in some:
                    count = _number(ids.numpy(), by_id, found, count)
                    if count < 0:
                        raise IndexError(f"{vocabulary}: an id beyond its {len(seen)} rows")
                counts.append(int(count))
            by_id[found[:count]] = -1
            return torch.from_numpy(found[:count].copy()), counts
        joined = torch.cat([seen.new_zeros(1), *(ids for some in places for ids in some)])
        at = torch.arange(len(joined), device=device)
        seen.index_fill_(0, joined, len(joined)).scatter_reduce_(0, joined, at, "amin")
        first = seen.index_select(0, joined)
        new = first == at
        number = new.cumsum(0)
        numbers, end = (number - 1).index_select(0, first), 1
        ends = []
        for some in places:
            for ids in some:
                ids.copy_(numbers[end : end + len(ids)])
                end += len(ids)
            ends.append(end - 1)
        counts = number.index_select(0, torch.tensor(ends, device=device)).tolist()
        return joined[new], counts


@compiled
def _number(ids, seen, found, count):  # type: ignore[no-untyped-def]
    """Write over ids (n,) where each is in `found`, behind whose first `count` new ones go; return how many.

    seen: (rows,) the place of each id in `found`, -1 of those that are not in it.
    Returns -1 for an id that is none of the rows.
    """
    for i in range(len(ids)):
        own = ids[i]
        if own < 0 or own >= len(seen):
            return -1
        if seen[own] < 0:
            seen[own], found[count] = count, own
            count += 1
        ids[i] = seen[own]
    return count

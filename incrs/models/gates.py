"""Furniture of the models room: `Gates`, what the embedding of every value is multiplied by.

A value is an id in a column: a field or a list. One that a field and a list have in common counts in
each for itself. The scenario's own embedding and the numbers are never gated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from incrs.period import Batch


class Multipliers(NamedTuple):
    """What the embeddings of B rows are multiplied by: fields (B, F); lists, name -> (B, L)."""

    fields: Tensor
    lists: dict[str, Tensor]


class Gates(nn.Module):
    """Fixed gates: in scenario s a value's embedding counts `scale` times where it is kept, else not.

    fields, lists: name -> vocabulary, as a `Batch` has them.  scenarios: S.
    kept: buffers (rows, S + 1) uint8, one a column, a row for each id as in the tables; the last
    column is the gate that the scenarios share. At first everything is kept.
    fresh: (columns, S + 1), the gates of an id that comes later.  scale: a number.
    They are buffers, so whoever trains or generates parameters leaves them alone, and all weights that
    are saved, served or remembered have their own.
    """

    scale: Tensor
    fresh: Tensor

    def __init__(self, fields: Mapping[str, str], lists: Mapping[str, str], scenarios: int) -> None:
        super().__init__()
        self.fields, self.lists = list(fields), list(lists)
        self.scenarios, self.sharing = scenarios, False
        self.columns = {**{f"field.{k}": v for k, v in fields.items()}}
        self.columns |= {f"list.{k}": v for k, v in lists.items()}
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("fresh", torch.ones(len(self.columns), scenarios + 1).byte())
        for at in range(len(self.columns)):
            self.register_buffer(f"kept{at}", torch.ones(1, scenarios + 1).byte())

    def buffers_by_row(self) -> dict[str, str]:
        """Return the name of each buffer with a row for each id -> its vocabulary."""
        return {f"kept{at}": v for at, v in enumerate(self.columns.values())}

    def kept(self, at: int) -> Tensor:
        """Return the gates of a column, (rows, S + 1)."""
        return self.get_buffer(f"kept{at}")

    def initial(self, name: str, ids: Tensor, rows: int) -> Tensor:
        """Return the gates that ids (n,) come with in the buffer `name`: (n, S + 1)."""
        return self.fresh[int(name.removeprefix("kept"))].cpu().expand(len(ids), -1)

    def forward(self, batch: Batch, like: Tensor) -> Multipliers:
        """Return the multipliers of B rows, of the type of `like`."""
        where = batch.scenario
        if self.sharing:
            where = torch.full_like(where, self.scenarios)
        scale = self.scale.to(like.dtype)
        fields = [self._of(at, batch.fields[:, at], where) for at in range(len(self.fields))]
        found = torch.stack(fields, 1) if fields else where.new_zeros(len(where), 0)
        lists = {
            name: self._of(at, batch.lists[name], where[:, None]).to(like.dtype) * scale
            for at, name in enumerate(self.lists, len(self.fields))
        }
        return Multipliers(found.to(like.dtype) * scale, lists)

    def _of(self, at: int, ids: Tensor, where: Tensor) -> Tensor:
        kept = self.kept(at)
        return kept.view(-1)[ids.long() * kept.shape[1] + where]


def gates_of(backbone: nn.Module) -> Gates:
    """Return the gates of a backbone that has some."""
    return next(module for module in backbone.modules() if isinstance(module, Gates))


@contextmanager
def through_shared(gates: Any) -> Iterator[None]:
    """Score through the gates that scenarios share while inside."""
    gates.sharing = True
    try:
        yield
    finally:
        gates.sharing = False

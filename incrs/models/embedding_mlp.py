"""Embedding & MLP: embeddings through dense layers, the base model of ASMG (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Output
from incrs.models.gates import Multipliers
from incrs.models.layers import (
    MLP,
    Embeddings,
    dense,
    look_up,
    pool,
    pool_nested,
    randomness,
)
from incrs.period import Batch

HISTORY = "history"


class NestedEmbeddings(Embeddings):
    """Embeddings in the paper's order: the user, the history, the item, then all else as `Embeddings`.

    An item is its own embedding and, for each of its categories' columns, the mean of theirs; the
    history is the mean of its items. So an item without categories counts, as zeros, and one that is
    unknown does not. The categories' columns are those with a list `history.<column>`.
    """

    def __init__(
        self,
        schema: Schema,
        size: int,
        seed: int,
        scenario_field: bool = False,
        initialisation: str = "small",
    ) -> None:
        super().__init__(schema, size, seed, scenario_field, initialisation)
        if schema.user is None or schema.item is None or HISTORY not in schema.lists:
            raise Mistake(
                "model.nested=true reads a user, an item and a history: set data.user, data.item and "
                "data.history, or model.nested=false"
            )
        self.of_history = schema.of_history()
        self._user, self._item = schema.user, schema.item
        inside = {self._user, self._item, HISTORY, *self.of_history, *self.of_history.values()}
        self._rest = [name for name in (*self.fields, *self.lists) if name not in inside]
        self._columns = {name: schema.column(name) for name in self.fields}

    def forward(self, batch: Batch) -> Tensor:
        """Return the input (B, width)."""
        gates = None if self.gates is None else self.gates(batch, next(iter(self.tables.values())))
        history, of = batch.lists[HISTORY], partial(self._of, batch, gates)
        past = [of(HISTORY)]
        for name in self.of_history:
            table, ids = self.table(self.lists[name]), batch.lists[name]
            own = None if gates is None else gates.lists[name]
            past.append(pool_nested(table, ids, history, self.sparse, own))
        item = [of(name) for name in (self._item, *self.of_history.values())]
        rest = [of(name) for name in self._rest]
        parts = [of(self._user), *past, *item, *rest, batch.numbers]
        if self.scenario is not None:
            parts.append(look_up(self.scenario, batch.scenario))
        return torch.cat(parts, 1)

    def _of(self, batch: Batch, gates: Multipliers | None, name: str) -> Tensor:
        """Return the embedding of a field, or the mean of a list's: (B, size)."""
        if name in self.fields:
            column = self._columns[name]
            rows = look_up(self.table(self.fields[name]), batch.fields[:, column], self.sparse)
            return rows if gates is None else rows * gates.fields[:, column : column + 1]
        own = None if gates is None else gates.lists[name]
        return pool(self.table(self.lists[name]), batch.lists[name], self.sparse, own)


class EmbeddingMLP(Backbone):
    """Embeddings (B, width) -> ReLU layers `hidden` -> logit; no dropout, batch norm or L2.

    The paper's layers are a half and a quarter as wide as the input (24 -> 12 -> 6 -> 1, and 40 -> 20 ->
    10 -> 1 where items have categories). Its model has no scenario field: its log has one scenario. Here
    `scenario_field` adds one, since a log of several scenarios is otherwise scored without saying where
    the row was shown.
    initialisation: `small` (tables N(0, .01^2), dense Xavier, biases 0) or `glorot` (the paper's
    program: Glorot uniform for everything, a bias of length n from U(-sqrt(3/n), sqrt(3/n))).
    nested: the input is that of `NestedEmbeddings`, the paper's, rather than that of `Embeddings`, in
    which the categories of the history's items are one list more.

    shared: the last hidden layer (B, hidden[-1]), as every row goes through all of it.
    specific: (B, 0), as no scenario has anything of its own.
    """

    shared: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        hidden: Sequence[int] = (64, 32),
        scenario_field: bool = True,
        initialisation: str = "small",
        nested: bool = False,
    ) -> None:
        super().__init__()
        random = randomness(seed)
        kind = NestedEmbeddings if nested else Embeddings
        embedding = kind(schema, embedding_size, seed, scenario_field, initialisation)
        width = [embedding.width, *hidden][-1]
        layers = MLP(embedding.width, hidden, random)
        self.embedding = embedding
        self.shared = nn.ModuleDict({"hidden": layers, "logit": dense(width, 1, random)})
        self.specific = nn.Identity()
        if initialisation == "glorot":
            for name, bias in self.shared.named_parameters():
                if name.endswith("bias"):
                    limit = (3 / len(bias)) ** 0.5
                    nn.init.uniform_(bias, -limit, limit, generator=random)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        hidden = self.shared["hidden"](self.embedding(batch))  # (B, H)
        logit = self.shared["logit"](hidden).squeeze(1)
        if not representations:
            return Output(logit)
        return Output(logit, hidden, hidden[:, :0])

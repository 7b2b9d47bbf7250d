"""The contract of the models room.

THIS ROOM holds backbones: plain networks that give a row of the log a click logit.
YOU WRITE a `Backbone` whose parameters live under `embedding`, `shared` and `specific`, with a
`forward` that returns an `Output`; one file, one yaml in `conf/model/`, one test. What it keeps of
single ids lies in `Tables`.
YOU GET every updater, every log, tables that grow with the log, resume and scoring; `layers.py` has
embeddings and towers.
YOU MAY NOT meet Lightning, Hydra or an updater, keep anything between two calls but parameters and
batch-norm statistics, or leave a parameter without gradient when a scenario is absent from a batch.
Ranking works as it is: `score` puts each candidate into the row. A backbone that can do so for less,
as one that multiplies a user's vector by an item's, overrides it. One whose user's vector comes from
the history can be asked for the next item: it is a `SequenceBackbone` too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs import together
from incrs.models.gates import Gates
from incrs.period import Batch

PAIRS = 1 << 14
"""`Backbone.score` puts so many rows with a candidate through the network at once."""


class Output(NamedTuple):
    """What a backbone says of B rows.

    logit: (B,).
    shared: (B, H), what the rows of every scenario go through; None unless asked for.
    specific: (B, K), what only the row's own scenario computed; K = 0 where a backbone has no such
    part; None unless asked for.
    """

    logit: Tensor
    shared: Tensor | None = None
    specific: Tensor | None = None


class Items(NamedTuple):
    """C candidates for each of B rows, as positions in a catalogue of I items.

    at: (B, C) int64 in [0, I); 0, the unknown item, pads a row that has fewer candidates.
    fields: (I, K) int32, the catalogue's values, as a `Batch` has them, of the item's own field (the
    first column) and of the fields that follow the item.  columns: which K columns of `Batch.fields`.
    lists: name -> (I, L) int32, of the lists that follow the item.
    numbers: (I, M) float32, of the numbers that follow it.  numeric: which M columns of `Batch.numbers`.
    """

    at: Tensor
    fields: Tensor
    columns: tuple[int, ...]
    lists: dict[str, Tensor]
    numbers: Tensor
    numeric: tuple[int, ...]

    @property
    def ids(self) -> Tensor:
        """(B, C) int32: the candidates as values of the item's own field, rows of its table."""
        return self.fields[:, 0].contiguous()[self.at]

    def inside(self, batch: Batch, row: Tensor, item: Tensor) -> Batch:
        """Return the rows `row` (n,) of a batch with the items `item` (n,) of the catalogue in them."""
        rows = batch.take(row)
        rows.fields[:, list(self.columns)] = self.fields[item]
        rows.numbers[:, list(self.numeric)] = self.numbers[item].to(rows.numbers.dtype)
        return rows._replace(lists=rows.lists | {name: x[item] for name, x in self.lists.items()})


class Tables(nn.Module, ABC):
    """Parameters with a row for each id of a vocabulary; the rows come and go with the ids.

    names: vocabulary -> its key in `tables`.  tables: key -> (rows, ...); row 0 is the unknown's.
    fields, lists: name -> vocabulary, of all that a `Batch` holds; fields in its columns' order.
    sparse: True where the tables' gradients hold the rows of the batch alone, for an optimizer that
    updates no others.
    beside: name -> vocabulary, of lists of ids that a task adds to a batch; they are no part of a row.
    whole: vocabularies of which a step may need any row, not only those that its batch holds.
    """

    names: dict[str, str]
    tables: nn.ParameterDict
    fields: dict[str, str]
    lists: dict[str, str]
    sparse: bool = False
    beside: Mapping[str, str] = {}
    whole: Sequence[str] = ()

    @abstractmethod
    def initial(self, vocabulary: str, ids: Tensor, rows: int) -> Tensor:
        """Return the initial rows of `ids` (n,) in a table of `rows` rows: (n, ...).

        A row depends on the seed, the vocabulary and its id, and on nothing random besides.
        """


class Backbone(nn.Module, ABC):
    """A network from rows to click logits, under `embedding`, `shared` and `specific`."""

    embedding: nn.Module
    shared: nn.Module
    specific: nn.Module

    def tables(self) -> dict[str, tuple[Tables, str]]:
        """Return the name of each parameter that is a table -> the `Tables` it is in, its vocabulary."""
        return {
            f"{prefix}.tables.{key}": (module, vocabulary)
            for prefix, module in self.named_modules()
            if isinstance(module, Tables)
            for vocabulary, key in module.names.items()
        }

    def gates(self) -> dict[str, tuple[Gates, str]]:
        """Return the name of each buffer with a row for each id -> the `Gates` it is in, its vocabulary."""
        return {
            f"{prefix}.{name}": (module, vocabulary)
            for prefix, module in self.named_modules()
            if isinstance(module, Gates)
            for name, vocabulary in module.buffers_by_row().items()
        }

    @abstractmethod
    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows; fill `Output.shared` and `.specific` only where `representations`."""

    def score(self, batch: Batch, items: Items) -> Tensor:
        """Return (B, C), the logit of every row with each candidate in its item's place.

        Where `items.at` is 0 the number means nothing.
        """
        count = items.at.shape[1]
        where = torch.arange(items.at.numel(), device=items.at.device)
        logits = [
            self(items.inside(batch, part // count, items.at.view(-1)[part])).logit
            for part in where.split(PAIRS)
        ]
        return torch.cat(logits).view(-1, count)

    def loss(self, batch: Batch, output: Output) -> Tensor:
        """Return the training loss, a scalar: mean binary cross-entropy over the rows.

        Where several processes train together: this one's share of it, see `together`.
        """
        return together.mean(F.binary_cross_entropy_with_logits, output.logit, batch.label)


@runtime_checkable
class SequenceBackbone(Protocol):
    """What a `Backbone` has beside, where it judges an item by a user's vector times the item's.

    `encode(batch) @ catalogue(items).T` are the scores of the items for the rows.
    """

    def encode(self, batch: Batch) -> Tensor:
        """Return (B, D), a vector of each row's history; the row's own item, scenario, label are not read."""

    def catalogue(self, items: Tensor) -> Tensor:
        """Return (I, D), the vectors of items given as ids (I,) of the item's own field; 0 is the unknown."""


@runtime_checkable
class OwnLoss(Protocol):
    """What a `SequenceBackbone` has beside, where the next item is learnt by a loss of its own.

    negatives: how many items it wants beside a row's own.
    """

    negatives: int

    def losses(self, batch: Batch, drawn: Tensor) -> Tensor:
        """Return (B,), the loss of each row.

        drawn: (B, n) items, drawn uniformly; 0 = none.  The last column of `batch.outcome` says whether
        the row is the last of its user in what is trained on, those before it what the user did.
        """

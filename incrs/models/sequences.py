"""Furniture of backbones that read a history: its vectors, attention, dilated convolutions, the logit.

A history is given newest first, so "the last position" of the papers is position 0 here, and its padding
is behind it. Padding neither attends nor is attended to: what an encoder says of a history does not
depend on how much of it is padding, and of an empty one it says zeros, or what it says without items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import PAIRS, Items, Output
from incrs.models.gates import Multipliers
from incrs.models.layers import MLP, Embeddings, check_widths, dense, look_up, pool
from incrs.period import Batch

HISTORY = "history"
CATALOGUE = 32
"""A catalogue of at most so many times as many items as a row has candidates is scored whole."""
BLOCK = 1 << 23
"""`products` makes at most so many numbers at once."""
EPS = 1e-8
"""Of layer norms; embeddings start at .01, so 1e-5 would shrink what they normalise."""


def closed(history: Tensor) -> Tensor:
    """Move the items of histories (B, L) to the front, in their order; 0, wherever it is, behind them.

    An item that is unknown, and so 0 in the midst of a history, leaves no gap.
    """
    held, length = history != 0, history.shape[1]
    place = torch.where(held, held.cumsum(1) - 1, length)
    return history.new_zeros(len(history), length + 1).scatter(1, place, history)[:, :length]


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, heads: int) -> Tensor:
    """Return softmax(q k' / sqrt(d)) v for each of `heads` parts of the width, joined: (B, Q, D).

    query: (B, Q, D).  key, value: (B, K, D).  seen: (B, Q, K) bool, what a query sees; nothing gives zeros.
    d: the width of a part, D / heads.
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    # Not every device has a number for a query that sees nothing: it sees all, and says nothing of it.
    blind = ~seen.any(2, keepdim=True)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=(seen | blind).unsqueeze(1))
    return mixed.transpose(1, 2).flatten(2).masked_fill(blind, 0)


def not_later(held: Tensor) -> Tensor:
    """Return what each position sees: itself and those before it, of what is held (B, L): (B, L, L)."""
    length = held.shape[1]
    older = torch.ones(length, length, dtype=torch.bool, device=held.device).triu()
    return older & held.unsqueeze(1) & held.unsqueeze(2)


def products(users: Tensor, vectors: Callable[[Tensor], Tensor], ids: Tensor, at: Tensor) -> Tensor:
    """Return the products of users' vectors (B, E) with those of their candidates: (B, C).

    vectors: (n,) ids -> (n, E).  ids: (I,), the catalogue's.  at: (B, C), candidates in the catalogue.
    """
    count, size = at.shape[1], users.shape[1]
    whole = len(ids) <= CATALOGUE * count
    step = max(1, BLOCK // max(1, len(ids) if whole else count * size))
    parts = zip(users.split(step), at.split(step), strict=True)
    if whole:
        every = vectors(ids)
        return torch.cat([(user @ every.T).gather(1, where) for user, where in parts])
    return torch.cat(
        [
            torch.bmm(vectors(ids[where]), user.unsqueeze(2)).squeeze(2)  # (b, C, E), (b, E, 1)
            for user, where in parts
        ]
    )


class PastEmbeddings(Embeddings):
    """Embeddings of what a row has beside its history, and the vectors of the history's items apart.

    model: the backbone's name, for the error.
    only: the fields that have tables, the item's among them, where no other is ever asked for; None
    for all fields and lists, and the input that they make.
    Raises Mistake for a log without histories.
    """

    def __init__(
        self,
        schema: Schema,
        size: int,
        seed: int,
        model: str,
        scenario_field: bool = False,
        only: Sequence[str | None] | None = None,
    ) -> None:
        if schema.item is None or HISTORY not in schema.lists:
            raise Mistake(
                f"model={model} reads the items that a user met before, and the log has none: set "
                "data.history=20, the most that a row holds of them, and data.user and data.item"
            )
        used = schema
        if only is not None:
            fields = {name: v for name, v in schema.fields.items() if name in only}
            lists = {HISTORY: schema.lists[HISTORY]}
            used = replace(schema, fields=fields, lists=lists, numbers=[])
            scenario_field = False
        super().__init__(used, size, seed, scenario_field)
        self.fields = dict(schema.fields)
        self.lists = {name: field.vocabulary for name, field in schema.lists.items()}
        self.length = schema.lists[HISTORY].length
        self.item, self.of_history = schema.item, schema.of_history()
        self.column = schema.column(schema.item)
        self._others = [n for n in self.lists if n not in (HISTORY, *self.of_history)]
        self._places = {name: i for i, name in enumerate((*self.fields, *self._others))}
        self.width = size * (len(self._places) + scenario_field) + len(schema.numbers)

    def forward(self, batch: Batch) -> Tensor:
        """Return the input (B, width) in the order of `Embeddings`, without the history."""
        gates, parts = self.multipliers(batch), self.field_rows(batch.fields)
        if gates is not None:
            parts = [torch.cat(parts, 1) * gates.fields.repeat_interleave(self.size, 1)]
        for name in self._others:
            table, ids = self.table(self.lists[name]), batch.lists[name]
            parts.append(pool(table, ids, self.sparse, gates and gates.lists[name]))
        parts.append(batch.numbers)
        if self.scenario is not None:
            parts.append(look_up(self.scenario, batch.scenario))
        return torch.cat(parts, 1)

    def multipliers(self, batch: Batch) -> Multipliers | None:
        """Return what a selector's gates multiply the embeddings by; None without gates."""
        return None if self.gates is None else self.gates(batch, self.table(self.fields[self.item]))

    def part(self, inputs: Tensor, name: str) -> Tensor:
        """Return the embedding of a field or a list in an input (B, width): (B, size)."""
        start = self.size * self._places[name]
        return inputs[:, start : start + self.size]

    def items(self, ids: Tensor) -> Tensor:
        """Return the vectors of items of any shape, as ids of the item's own field: (*ids.shape, size)."""
        return look_up(self.table(self.fields[self.item]), ids, self.sparse)

    def past(self, batch: Batch, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the vectors of the `length` newest items (B, L, size), and which are held (B, L) bool.

        Newest first, without gaps; padding is zeros.
        """
        ids = closed(batch.lists[HISTORY])[:, :length]
        held = ids != 0
        rows = look_up(self.table(self.lists[HISTORY]), ids, self.sparse, padding=0)
        return rows * held.unsqueeze(2), held


class Dilated(nn.Module):
    """NextItNet's blocks of dilated causal convolutions, and what they say of the newest item.

    (Yuan et al., WSDM 2019.) For each d of `dilations` x (B, L, D) becomes x +
    relu(norm(conv_2d(relu(norm(conv_d(x)))))), the paper's residual block (b). A convolution reads
    `kernel` positions, the own one and the ones d, 2d, .. before it; what is before the first item is
    zeros. Only what the newest position depends on is computed.
    """

    def __init__(
        self, size: int, length: int, kernel: int, dilations: Sequence[int], random: torch.Generator
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.steps = [dilation * factor for dilation in dilations for factor in (1, 2)]
        # The positions that each layer is asked for; a position's own is among those that it reads.
        self.wanted = [[0]]
        for step in reversed(self.steps[1:]):
            read = {position for tap in self.taps(self.wanted[0], step) for position in tap}
            self.wanted.insert(0, sorted(position for position in read if position < length))
        layers = range(len(self.steps))
        self.convolutions = nn.ModuleList(dense(kernel * size, size, random) for _ in layers)
        self.norms = nn.ModuleList(nn.LayerNorm(size, EPS) for _ in layers)

    def taps(self, positions: Sequence[int], step: int) -> list[list[int]]:
        """Return what a convolution reads for positions: a list per tap; some may lie outside."""
        return [[position + k * step for position in positions] for k in range(self.kernel)]

    def forward(self, rows: Tensor, held: Tensor) -> Tensor:
        """Return what is said of the newest item, (B, D), after rows (B, L, D), held (B, L)."""
        x = dict(enumerate(rows.unbind(1)))  # position -> (B, D)
        here = dict(enumerate(held.to(rows.dtype).unsqueeze(2).unbind(1)))
        nothing, block = torch.zeros_like(rows[:, 0]), x
        layers = zip(self.steps, self.wanted, self.convolutions, self.norms, strict=True)
        for layer, (step, wanted, convolution, norm) in enumerate(layers):
            windows = [
                torch.stack([x.get(position, nothing) for position in tap])
                for tap in self.taps(wanted, step)
            ]
            y = F.relu(norm(convolution(torch.cat(windows, 2))))  # (P, B, D)
            y = y * torch.stack([here[position] for position in wanted])
            x = dict(zip(wanted, y.unbind(), strict=True))
            if layer % 2:
                x = block = {position: block[position] + said for position, said in x.items()}
        return x[0]


class Reader(nn.Module):
    """What all rows go through: an encoder, history -> user's vector u, and a tower behind it.

    The logit is <u, e> + tower([u, x]), e the item's vector and x all that a row has beside its history,
    the item and the scenario among it; <u, e> alone where `tower` is None.
    """

    def __init__(
        self,
        encoder: nn.Module,
        embedding: PastEmbeddings,
        tower: Sequence[int] | None,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder, self.tower = encoder, nn.ModuleList()
        if tower is not None:
            check_widths("tower", tower)
            widths = [embedding.size + embedding.width, *tower]
            self.tower.extend([MLP(widths[0], tower, random), dense(widths[-1], 1, random)])

    def forward(
        self, user: Tensor, batch: Batch, embedding: PastEmbeddings, representations: bool
    ) -> Output:
        """Score B rows, whose users' vectors are (B, size).

        Their `shared` is what the logit is made of: u * e, and the tower's last hidden layer.
        """
        if not self.tower:
            parts = [user * embedding.items(batch.fields[:, embedding.column])]
            logit = parts[0].sum(1)
        else:
            hidden, last = self.tower
            x = embedding(batch)
            parts = [user * embedding.part(x, embedding.item), hidden(torch.cat([user, x], 1))]
            logit = parts[0].sum(1) + last(parts[1]).squeeze(1)
        if not representations:
            return Output(logit)
        return Output(logit, torch.cat(parts, 1), user[:, :0])

    def score(self, user: Tensor, batch: Batch, embedding: PastEmbeddings, items: Items) -> Tensor:
        """Return (B, C), the logit of every row with each candidate: u is one for all candidates."""
        scores = products(user, embedding.items, items.fields[:, 0], items.at)
        if not self.tower:
            return scores
        hidden, last = self.tower
        past = (HISTORY, *embedding.of_history)
        rest = batch._replace(lists={n: ids for n, ids in batch.lists.items() if n not in past})
        count, found = items.at.shape[1], []
        for pairs in torch.arange(items.at.numel(), device=user.device).split(PAIRS):
            rows = pairs // count
            x = embedding(items.inside(rest, rows, items.at.view(-1)[pairs]))
            found.append(last(hidden(torch.cat([user[rows], x], 1))).squeeze(1))
        return scores + torch.cat(found).view(-1, count)

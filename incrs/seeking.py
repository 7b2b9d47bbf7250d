"""`Seeker`: a backbone that is asked which item comes next, and where items stand in the catalogue.

A backbone with `encode` and `catalogue` makes a vector of each user and multiplies it by all items'; any
other one is given each item in the row's place, as for ranking.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs import together
from incrs.data.base import Schema
from incrs.models.base import Backbone, Items, Output, OwnLoss, SequenceBackbone
from incrs.period import Batch

DRAWN = "drawn"
"""The list of items that were drawn for a row; `drawn.<column>` is what follows these."""
NUMBERS = "drawn.:numbers"
SEEN = "drawn.:seen"
"""The list of one number: items from it on have not been seen yet, though they have rows."""
CELLS = 1 << 21
"""So many scores are made at once when a whole catalogue is judged."""


def sampled_loss(scores: Tensor, there: Tensor) -> Tensor:
    """Return (B,), the cross-entropy of the first of 1 + n scores (B, 1 + n); there: which count, bool."""
    return scores.masked_fill(~there, -torch.inf).logsumexp(1) - scores[:, 0]


def full_loss(users: Tensor, items: Tensor, target: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return (B,), the cross-entropy of each target among all items but the first, the unknown.

    users: (B, D).  items: (I, D).  target: (B,) in [0, I); that of the unknown means nothing.
    seen: (), items from it on do not count, but for the target itself; None: all do.
    """
    scores, own = users @ items[1:].T, (target - 1).clamp(min=0).long()
    if seen is not None:
        beyond = torch.arange(1, len(items), device=scores.device) >= seen
        mine = scores.gather(1, own.unsqueeze(1))
        scores = scores.masked_fill(beyond, -torch.inf).scatter(1, own.unsqueeze(1), mine)
    return F.cross_entropy(scores, own, reduction="none")


def standing(users: Tensor, items: Tensor, target: Tensor) -> Tensor:
    """Return (B, 2) int64: how many items score above each target, and how many others as high as it.

    users: (B, D).  items: (I, D), of the ids 1 .. I.  target: (B,) ids; below everything where it is 0.
    Both are -1 where a vector is no number.
    """
    found = []
    broken = ~(users.isfinite().all(1) & items.isfinite().all())
    for rows in torch.arange(len(users), device=users.device).split(max(1, CELLS // len(items))):
        scores = users[rows] @ items.T
        found.append(_counted(scores, (target[rows].long() - 1).clamp(min=0)))
    places = torch.cat(found) if found else users.new_zeros(0, 2).long()
    lost = torch.tensor([len(items), 0], device=users.device)
    places = torch.where((target == 0).unsqueeze(1), lost, places)
    return places.masked_fill(broken.unsqueeze(1), -1)


def _counted(scores: Tensor, own: Tensor) -> Tensor:
    """Return (B, 2) how many scores are above and level with the one at `own` (B,) of each row."""
    mine = scores.gather(1, own.unsqueeze(1))
    # Bytes are summed several times as fast as truth values.
    above, as_high = (
        there.view(torch.int8).sum(1, dtype=torch.int32).long()
        for there in (scores > mine, scores >= mine)
    )
    return torch.stack([above, as_high - above - 1], 1)


class Sought(NamedTuple):
    """A batch whose items are looked for among all there are.

    seen: rows of the item's table from this one on have not been seen; None: all rows have.
    items: of a backbone that is given each item in the row's place, all of them; else None.
    """

    batch: Batch
    seen: int | None
    items: Items | None


class Seeker(Backbone):
    """A backbone whose loss is how likely it finds each row's item to be the next.

    inner: the backbone; its parameters keep their names.  full: True judges the item among all that the
    table has, False among those drawn for the row; a backbone with a loss of its own has that.

    Its logit is minus the row's loss, where items were drawn or all count; else the inner one's. The
    representations are the inner one's for the rows with their own items: of a sequence backbone the
    user's vector is what all rows share.
    """

    def __init__(self, inner: Backbone, schema: Schema, full: bool) -> None:
        super().__init__()
        self.embedding, self.shared, self.specific = inner.embedding, inner.shared, inner.specific
        self._inner = (inner,)  # in a tuple: its parameters are registered above
        item = str(schema.item)
        self.column, self.vocabulary = schema.column(item), schema.fields[item]
        self.own_loss = isinstance(inner, OwnLoss)
        self.sequence = isinstance(inner, SequenceBackbone)
        self.full = full and not self.own_loss
        follow = schema.of_item or ()
        self.follow = [name for name in schema.fields if name in follow and name != item]
        self.columns = [self.column, *map(schema.column, self.follow)]
        self.lists = [name for name in schema.lists if name in follow]
        self.numeric = [j for j, name in enumerate(schema.numbers) if name in follow]
        beside = {DRAWN: self.vocabulary}
        if not self.sequence:
            beside |= {f"{DRAWN}.{name}": schema.fields[name] for name in self.follow}
            beside |= {f"{DRAWN}.{name}": schema.lists[name].vocabulary for name in self.lists}
        for table, _ in inner.tables().values():
            table.beside = {} if self.full else beside
            table.whole = [self.vocabulary] if self.full else []

    @property
    def inner(self) -> Backbone:
        """The backbone that is asked."""
        return self._inner[0]

    def train(self, mode: bool = True) -> Seeker:
        """Set the mode of the inner backbone, too."""
        self.inner.training = mode
        super().train(mode)
        return self

    def items(self) -> Tensor:
        """Return (rows,), every row of the item's table."""
        table = next(
            of.tables[of.names[v]] for of, v in self.inner.tables().values() if v == self.vocabulary
        )
        return torch.arange(len(table), device=table.device)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Return minus the losses of B rows as their logit; see the class."""
        drawn = batch.lists.get(DRAWN)
        if not self.sequence:
            return self._by_pairs(batch, drawn, representations)
        assert isinstance(self.inner, SequenceBackbone)
        if isinstance(self.inner, OwnLoss) and drawn is not None:
            logit = -self.inner.losses(batch, drawn)
            if not representations:
                return Output(logit)
            users = self.inner.encode(batch)
        else:
            users = self.inner.encode(batch)
            logit = self._by_product(batch, users, self.inner, drawn)
        return Output(logit, users, users[:, :0]) if representations else Output(logit)

    def _by_product(
        self, batch: Batch, users: Tensor, inner: SequenceBackbone, drawn: Tensor | None
    ) -> Tensor:
        target = batch.fields[:, self.column]
        if self.full:
            seen = batch.lists.get(SEEN)
            seen = None if seen is None or not len(seen) else seen.max()
            return -full_loss(users, inner.catalogue(self.items()), target, seen)
        ids = target.unsqueeze(1) if drawn is None else torch.cat([target.unsqueeze(1), drawn], 1)
        vectors = inner.catalogue(ids.flatten()).unflatten(0, ids.shape)
        scores = torch.bmm(vectors, users.unsqueeze(2)).squeeze(2)
        return scores[:, 0] if drawn is None else -sampled_loss(scores, _there(ids))

    def _by_pairs(self, batch: Batch, drawn: Tensor | None, representations: bool) -> Output:
        if drawn is None:
            return self.inner(batch, representations)
        count, size = drawn.shape
        plain = {name: x for name, x in batch.lists.items() if not name.startswith(DRAWN)}
        row = torch.arange(count, device=drawn.device).repeat_interleave(size + 1)
        rows = batch._replace(lists=plain, outcome=None).take(row)
        fields = [drawn, *(batch.lists[f"{DRAWN}.{name}"] for name in self.follow)]
        each = (count, size + 1)
        rows.fields.unflatten(0, each)[:, 1:, self.columns] = torch.stack(fields, 2)
        for name in self.lists:
            values = batch.lists[f"{DRAWN}.{name}"].unflatten(1, (size, -1))
            rows.lists[name].unflatten(0, each)[:, 1:] = values
        if self.numeric:
            values = batch.lists[NUMBERS].unflatten(1, (size, -1))
            rows.numbers.unflatten(0, each)[:, 1:, self.numeric] = values.to(rows.numbers.dtype)
        output = self.inner(rows, representations)
        ids = torch.cat([batch.fields[:, self.column].unsqueeze(1), drawn], 1)
        logit = -sampled_loss(output.logit.unflatten(0, each), _there(ids))
        if not representations:
            return Output(logit)
        shared, specific = (x.unflatten(0, each)[:, 0] for x in (output.shared, output.specific))
        return Output(logit, shared, specific)

    def loss(self, batch: Batch, output: Output) -> Tensor:
        """Return the mean of the losses of the rows whose item has a row in the table."""
        known = (batch.fields[:, self.column] > 0).to(output.logit.dtype)
        (count,) = together.summed(known.sum())
        return -(output.logit * known).sum() / count.clamp(min=1)

    def places(self, sought: Sought) -> Tensor:
        """Return (B, 2), see `standing`, of the rows' items among all that there are."""
        batch, seen, items = sought
        target = batch.fields[:, self.column]
        if self.sequence:
            assert isinstance(self.inner, SequenceBackbone)
            vectors = self.inner.catalogue(self.items()[1:seen])
            target = target if seen is None else target.masked_fill(target >= seen, 0)
            return standing(self.inner.encode(batch), vectors, target)
        assert items is not None
        return self._places_by_pairs(batch, items, target)

    def _places_by_pairs(self, batch: Batch, items: Items, target: Tensor) -> Tensor:
        ids = items.fields[:, 0]
        own = torch.zeros(int(ids.max()) + 1, dtype=torch.int64, device=ids.device)
        own[ids.long()] = torch.arange(len(ids), device=ids.device)
        known = (target > 0) & (target < len(own))
        own = own[target.clamp(max=len(own) - 1).long()]
        every = torch.arange(len(ids), device=ids.device)
        found = []
        for rows in torch.arange(len(target), device=ids.device).split(max(1, CELLS // len(ids))):
            asked = items._replace(at=every.repeat(len(rows), 1))
            scores = self.inner.score(batch.take(rows), asked)
            places = _counted(scores, own[rows])
            found.append(places.masked_fill(~scores.isfinite().all(1, keepdim=True), -1))
        lost = torch.tensor([len(ids), 0], device=ids.device)
        missed = ~known.unsqueeze(1) & (torch.cat(found) >= 0)
        return torch.where(missed, lost, torch.cat(found))


def _there(ids: Tensor) -> Tensor:
    """Return which of a row's items (B, 1 + n) count: its own, and those drawn that are others."""
    own = torch.zeros_like(ids, dtype=torch.bool)
    own[:, 0] = True
    return own | ((ids != 0) & (ids != ids[:, :1]))


class Places(nn.Module):
    """A seeker whose forward is its `places`, so that weights can be put in its place."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, sought: Sought) -> Tensor:
        """See `Seeker.places`."""
        assert isinstance(self.backbone, Seeker)
        return self.backbone.places(sought)

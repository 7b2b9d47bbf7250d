"""The task of finding the next item: HR@K and NDCG@K of every positive of the next period, among all items.

Rows are positives. D_t trains a `Seeker`, which then says where each item of D_{t+1} stands in the
catalogue of what has been seen by then: items taken before are not left out, the unknown is, and one
that is new counts as missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from incrs import metrics
from incrs.catalogue import Catalogue
from incrs.data.base import Schema, Source
from incrs.data.stream import BatchLoader, PeriodStream
from incrs.errors import Mistake
from incrs.models.base import Backbone, Items, OwnLoss, SequenceBackbone
from incrs.period import Batch, Period, Stored
from incrs.results import POOLED, Row, Run, new_and_known
from incrs.roster import Roster
from incrs.seeking import DRAWN, NUMBERS, SEEN, Seeker, Sought
from incrs.updaters.base import Updater

USERS = 2048
"""Rows whose items are sought at once."""
ROUNDS = 4
"""An item that may not be drawn for a row is drawn anew so often; what is left after that is left out."""


class NextItem:
    """The task of finding the next item.

    loss: `sampled` judges a row's item among itself and `negatives` others, drawn uniformly from those
    seen so far, by softmax; `full` among all of those, for backbones that make a vector of each user.
    A backbone with a loss of its own keeps it.  negatives: at least 1.
    cutoffs: K of HR@K and NDCG@K, each at least 1.
    """

    def __init__(
        self, loss: str = "sampled", negatives: int = 100, cutoffs: Sequence[int] = (5, 10, 15, 20)
    ) -> None:
        if loss not in ("full", "sampled"):
            raise Mistake(f"task.loss={loss}: give full or sampled")
        if type(negatives) is not int or negatives < 1:
            raise Mistake(f"task.negatives={negatives}: give a whole number from 1")
        if not cutoffs or min(cutoffs) < 1 or len(set(cutoffs)) < len(cutoffs):
            raise Mistake(
                f"task.cutoffs={list(cutoffs)}: give one or more whole numbers from 1, each once, "
                "such as [5,10,20]"
            )
        self.full, self.negatives, self.cutoffs = loss == "full", negatives, sorted(cutoffs)

    def check(self, schema: Schema, updaters: Mapping[str, Updater]) -> None:
        """Raise Mistake where a log names no items, or an updater has no use for them."""
        if schema.item is None:
            raise Mistake(
                "task=next_item looks for items, but the log has no data.item: name the column there, "
                "or choose task=click"
            )
        if refused := [name for name, updater in updaters.items() if updater.wants_clicks]:
            raise Mistake(
                f"updater={refused[0]} keeps probabilities of clicks, and task=next_item has none: choose "
                "another updater, or task=click or task=ranking"
            )

    def seeker(self, inner: Backbone, schema: Schema) -> Seeker:
        """Return the backbone that is trained.  Raises Mistake where the two do not go together."""
        sequence = isinstance(inner, SequenceBackbone)
        if self.full and not sequence:
            raise Mistake(
                "task.loss=full is for models that make one vector of each user, such as sasrec or "
                "gru4rec: choose task.loss=sampled for one that judges every item by itself"
            )
        if not sequence and schema.of_item is None:
            raise Mistake(
                "task=next_item: the log was prepared by an earlier version, which did not keep what "
                "columns follow the item: prepare it anew, in another folder (data.store=FOLDER) or after "
                "deleting the old one"
            )
        return Seeker(inner, schema, self.full)


def positives(rows: Batch, column: int) -> Batch:
    """Return the rows of label 1 that have an item.  column: the item's."""
    return rows.take((rows.label == 1) & (rows.fields[:, column] > 0))


class Positives(Source):
    """A prepared source's positives that have an item, and nothing else of it."""

    def __init__(self, source: Source) -> None:
        self.name, self.schema, self.roles = source.name, source.schema, source.roles
        self.fingerprints = source.fingerprints
        self._source, self._column = source, source.schema.column(str(source.schema.item))

    def everything(self, t: int) -> Period:
        """Load period t, with all its rows."""
        return self._source.read(t)

    def read(self, t: int) -> Period:
        """Load the positives of period t."""
        period = self.everything(t)
        content = period.content
        if isinstance(content, Batch):
            return replace(period, content=positives(content, self._column), truth=None)
        sizes = [len(positives(rows, self._column).label) for rows in period.parts()]
        stored = Stored(sizes, lambda i: positives(content.read(i), self._column), content.buffer)
        return replace(period, content=stored, truth=None)


def last_of_each(user: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether no later row has the row's user (n,); each 0 is another user."""
    _, behind = np.unique(user[::-1], return_index=True)
    last = user == 0
    last[len(user) - 1 - behind] = True
    return last


class Supply:
    """What the rows of a seeker have beside: drawn items, and whether a user has no later row.

    task, seeker: see there.  roster: which items there are.  read: returns all rows of a period, which
    is asked for once it has come: what items look like is learnt from those that are no positives, too.
    """

    def __init__(
        self,
        task: NextItem,
        seeker: Seeker,
        schema: Schema,
        roster: Roster,
        read: Callable[[int], Period],
    ) -> None:
        self.columns: Sequence[int] = seeker.columns
        self._seeker, self._roster, self._read = seeker, roster, read
        self._user = None if schema.user is None else schema.column(schema.user)
        inner = seeker.inner
        self._own = isinstance(inner, OwnLoss)
        self._count = inner.negatives if isinstance(inner, OwnLoss) else task.negatives
        self._count = 0 if seeker.full else self._count
        self._catalogue = None if seeker.sequence else Catalogue(schema)
        self._items: Items | None = None
        self._known = 0

    def catch_up(self, periods: int) -> None:
        """Take note of what items look like in the first periods of the log, that many."""
        for t in range(self._known, periods):
            if self._catalogue is not None:
                self._catalogue.see(self._read(t))
            self._known += 1
        self._items = None

    def items(self) -> Items | None:
        """Return the items that have rows, by their ids, of a backbone that is given each in turn."""
        if self._catalogue is not None and self._items is None:
            self._items = self._catalogue.items(torch.empty(0), self._roster.translate)
        return self._items

    def inputs(self) -> list[object]:
        """Return what the drawn items depend on but the draws."""
        items = self.items()
        return [self.seen, None if items is None else items._asdict()]

    @property
    def seen(self) -> int | None:
        """The rows of the item's table from here on have not been seen; None where all have."""
        return self._roster.known[self._seeker.vocabulary] if self._roster.fixed else None

    def marked(self, period: Period) -> Period:
        """Return the period whose outcome has one column more: no later row is the user's."""
        self._items = None
        if not self._own:
            return period
        column = self._user
        users = [
            torch.zeros_like(rows.label) if column is None else rows.fields[:, column]
            for rows in period.parts()
        ]
        last = torch.from_numpy(last_of_each(torch.cat(users).numpy())).to(torch.int8)

        def with_last(rows: Batch, start: int) -> Batch:
            own = last[start : start + len(rows.label)].unsqueeze(1)
            parts = [own] if rows.outcome is None else [rows.outcome, own]
            return rows._replace(outcome=torch.cat(parts, 1))

        content = period.content
        if isinstance(content, Batch):
            return replace(period, content=with_last(content, 0))
        starts = np.cumsum([0, *content.sizes]).tolist()
        stored = content._replace(read=lambda i: with_last(content.read(i), starts[i]))
        return replace(period, content=stored)

    def drawn(self, rows: Batch, count: int, own: slice, random: torch.Generator) -> Batch:
        """Return a batch's rows `own` of `count` with items that were drawn for each."""
        lists = dict(rows.lists)
        if self.seen is not None:
            lists[SEEN] = torch.full((len(rows.label), 1), self.seen, dtype=torch.int32)
        if self._count:
            ids = self._ids(count, own, rows, random)
            items = self.items()
            if items is None:
                lists[DRAWN] = ids
            else:
                lists |= self._columns(items, self._by_row()[ids.long()])
        return rows._replace(lists=lists)

    def _ids(self, count: int, own: slice, rows: Batch, random: torch.Generator) -> Tensor:
        """Return (B, n) int32 rows of the item's table, 0 where none was found."""
        high = self.seen or len(self._roster.ids[self._seeker.vocabulary])
        target = rows.fields[:, [self._seeker.column]]
        taken = torch.cat([target, rows.lists["history"]], 1) if self._own else target
        found = torch.zeros(len(target), self._count, dtype=torch.int32)
        if high < 2:
            return found
        for _ in range(ROUNDS):
            new = torch.randint(1, high, (count, self._count), generator=random, dtype=torch.int32)[
                own
            ]
            free = (new.unsqueeze(2) != taken.unsqueeze(1)).all(2)
            found = torch.where((found == 0) & free, new, found)
        return found

    def _by_row(self) -> Tensor:
        """Return (rows,) the place in the catalogue of every row of the item's table."""
        assert self._items is not None
        ids = self._roster.ids[self._seeker.vocabulary]
        return ids.clamp(max=len(self._items.fields) - 1)

    def _columns(self, items: Items, at: Tensor) -> dict[str, Tensor]:
        """Return the lists that hold the items at (B, n), and what follows them."""
        seeker = self._seeker
        names = [DRAWN, *(f"{DRAWN}.{name}" for name in seeker.follow)]
        found = {name: items.fields[:, k].contiguous()[at] for k, name in enumerate(names)}
        for name in seeker.lists:
            found[f"{DRAWN}.{name}"] = items.lists[name][at].flatten(1)
        if seeker.numeric:
            found[NUMBERS] = items.numbers[at].flatten(1)
        return found


class Seeking:
    """Says for a run where the items of a period stand.  stream: of the log's positives."""

    def __init__(self, task: NextItem, supply: Supply, stream: PeriodStream) -> None:
        self.task, self.supply, self._stream = task, supply, stream
        stream.supply = supply

    def loader(self, following: Period) -> SoughtLoader:
        """Return the rows of D_{t+1} with the items that theirs is looked for among."""
        return SoughtLoader(self._stream, self.supply, following)


class SoughtLoader:
    """Batches of a period's rows in their order, with the items that theirs is looked for among."""

    def __init__(self, stream: PeriodStream, supply: Supply, period: Period) -> None:
        size = min(stream.batch_size, USERS)
        self._rows = BatchLoader(period, size, translate=stream.roster.translate)
        self.period, self.positions = period, self._rows.positions
        self._seen, items = supply.seen, supply.items()
        self._items = items and _with_rows(items)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sought]:
        for batch in self._rows:
            yield Sought(batch, self._seen, self._items)


def _with_rows(items: Items) -> Items:
    """Return the items that have a row in the table, each in one place."""
    there = items.fields[:, 0] > 0
    lists = {name: ids[there] for name, ids in items.lists.items()}
    return items._replace(fields=items.fields[there], lists=lists, numbers=items.numbers[there])


def measure(
    run: Run,
    schema: Schema,
    period: Period,
    places: np.ndarray,
    known: Mapping[str, int],
    cutoffs: Sequence[int],
) -> list[Row]:
    """Return hr_K and ndcg_K, in percent, of a period's rows: pooled first, then by scenario.

    places: (n, 2) how many items are above and level with each row's.  known: as of `results.measure`.
    Of the pooled rows also collapsed, 1 where all items tie or are not finite, and both numbers of rows
    with new and with known users, items and both.
    """
    who = {"users": schema.user, "items": schema.item}
    columns = {kind: schema.column(field) for kind, field in who.items() if field is not None}
    parts = [(rows.scenario, rows.fields[:, list(columns.values())]) for rows in period.parts()]
    scenario, ids = (torch.cat(part).numpy() for part in zip(*parts, strict=True))

    def of(where: np.ndarray) -> dict[str, metrics.Measured]:
        above, level = places[where].T
        found = {}
        for name, metric in (("hr", metrics.recall), ("ndcg", metrics.ndcg)):
            for k in cutoffs:
                value, rows, count = metric(above, level, k)
                value = None if value is None else 100 * value
                found[f"{name}_{k}"] = metrics.Measured(value, rows, count)
        return found

    everything = np.ones(len(scenario), bool)
    found = {POOLED: of(everything)}
    level = places[:, 1]
    dead = bool(len(places)) and (places.min() < 0 or (level.min() > 0 and not places[:, 0].any()))
    found[POOLED]["collapsed"] = metrics.Measured(float(dead), len(places), len(places))
    first = {kind: known[schema.fields[str(who[kind])]] for kind in columns}
    id_of = dict(zip(columns, ids.T, strict=True))
    for kind, where in new_and_known(id_of, first).items():
        found[POOLED] |= {f"{metric}_{kind}": value for metric, value in of(where).items()}
    found |= {name: of(scenario == s) for s, name in enumerate(schema.scenarios)}
    return [
        Row(*run, period.index, str(period.role), name, metric, *measured)
        for name, some in found.items()
        for metric, measured in some.items()
    ]

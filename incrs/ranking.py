"""Ranking: where every positive of the next period stands among items that its user had not taken.

The protocol of SML (Zhang et al., SIGIR 2020). The candidates of a positive are drawn once for a seed
and a period, whatever the model and the updaters: see `candidates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from incrs.candidates import CELLS, Asked, Pairs, Taken, draw
from incrs.catalogue import Catalogue
from incrs.data.base import Schema
from incrs.data.stream import BatchLoader, PeriodStream
from incrs.errors import Mistake
from incrs.models.base import Items
from incrs.period import Batch, Period, Stored

MOST = 2048
"""Positives ranked at once, at most."""


class Clicks:
    """The task of telling clicks from other rows: AUC and log loss, nothing is ranked."""


class Ranking:
    """The task of ranking a positive before items that its user had not taken.

    candidates: how many are drawn for each positive, at least 1, or `all` for every item that has
    appeared; where there are fewer, all there are.  cutoffs: K of Recall@K and NDCG@K, each at least 1.
    """

    def __init__(self, candidates: int | str = 999, cutoffs: Sequence[int] = (5, 10, 20)):
        if candidates != "all" and (type(candidates) is not int or candidates < 1):
            raise Mistake(f"task.candidates={candidates}: give a whole number from 1, or all")
        if not cutoffs or min(cutoffs) < 1 or len(set(cutoffs)) < len(cutoffs):
            raise Mistake(
                f"task.cutoffs={list(cutoffs)}: give one or more whole numbers from 1, each once, "
                "such as [5,10,20]"
            )
        self.count = None if candidates == "all" else int(candidates)
        self.cutoffs = sorted(cutoffs)

    def check(self, schema: Schema) -> None:
        """Raise Mistake where a log does not say who takes what."""
        missing = [f"data.{name}" for name in ("user", "item") if getattr(schema, name) is None]
        if missing:
            raise Mistake(
                f"task=ranking ranks items for users, but the log has no {' and no '.join(missing)}: "
                "name the column there, or choose task=click"
            )
        if schema.of_item is None:
            raise Mistake(
                "task=ranking: the log was prepared by an earlier version, which did not keep what columns "
                "follow the item: prepare it anew, in another folder (data.store=FOLDER) or after deleting "
                "the old one"
            )


class Ranked(NamedTuple):
    """A batch of positives with their candidates, the positive's own item in the first column.

    twin: (I,) int64, equal for items of the catalogue that nothing tells apart.
    """

    batch: Batch
    items: Items
    twin: Tensor


def places(score: Tensor, ranked: Ranked) -> Tensor:
    """Return (B, 2) int64: how many candidates score above the positive, and how many as high as it.

    score: (B, C), the positive's in the first column. A candidate that nothing tells from the positive
    ties with it, whatever rounding says. Both are -1 where a score is no number.
    """
    at = ranked.items.at
    there, twin = at > 0, ranked.twin[at]
    same = twin == twin[:, :1]
    above = ((score > score[:, :1]) & ~same & there).sum(1)
    level = (((score == score[:, :1]) | same) & there).sum(1) - 1
    broken = (score.isnan() & there).any(1)
    return torch.stack([above, level], 1).masked_fill(broken.unsqueeze(1), -1)


class CandidateLoader:
    """Batches of a period's positives, each row with its candidates; a slice of each to every process.

    rows: of the positives that have an item, in their order.
    """

    def __init__(
        self,
        rows: BatchLoader,
        items: Items,
        asked: Asked,
        taken: Taken,
        new: Pairs,
        seeds: tuple[int, int],
        count: int | None,
    ):
        self.period, self.positions = rows.period, rows.positions
        self._rows, self._items = rows, items
        self._asked, self._taken, self._new = asked, taken, new
        self._seeds, self._count = seeds, count
        self._twin = twins(items)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Ranked]:
        own, done, size = self.positions().numpy(), 0, self._rows.size
        for block, batch in enumerate(self._rows):
            where = own[done : done + len(batch.label)]
            done += len(where)
            asked = Asked(*(column[where] for column in self._asked))
            refused = self._taken.of(asked, self._new)
            drawn = draw(
                self._seeds, block, size, where - block * size, asked, refused, self._count
            )
            at = np.concatenate([asked.item[:, None], drawn], 1)
            yield Ranked(batch, self._items._replace(at=torch.from_numpy(at)), self._twin)


def twins(items: Items) -> Tensor:
    """Return (I,) int64, equal for items that nothing tells apart: those served as unknown, if alike."""
    found = torch.arange(len(items.fields))
    unknown = (items.fields[:, 0] == 0).nonzero().flatten()
    columns = [items.fields, *items.lists.values(), items.numbers]
    alike = torch.cat([x[unknown].flatten(1).double() for x in columns], 1).unique(
        dim=0, return_inverse=True
    )[1]
    found[unknown] = -1 - alike
    return found


class Ranker:
    """Gives the positives of a period their candidates, by the log's rows up to them alone.

    task: what is asked.  stream: of the log.  seed: of the run.
    """

    def __init__(self, task: Ranking, stream: PeriodStream, seed: int):
        task.check(stream.schema)
        self.task, self._stream, self._seed = task, stream, seed
        self._taken, self._catalogue, self._periods = Taken(), Catalogue(stream.schema), 0

    def catch_up(self, history: Sequence[Period]) -> None:
        """Take note of those of D_0 .. D_t that are not known yet."""
        for t in range(self._periods, len(history)):
            user, item, _ = self._interactions(history[t])
            self._taken.add(user, item)
            self._catalogue.see(history[t])
            self._periods += 1

    def loader(self, following: Period) -> CandidateLoader:
        """Return the positives of D_{t+1} with their candidates; those without an item are left out."""
        asked, new = self._taken.ask(*self._interactions(following))
        count = self.task.count
        most = max(int(asked.seen.max(initial=1)), 1) if count is None else count
        size = min(max(CELLS // most, 1), MOST)
        positives = self._positives(following)
        rows = BatchLoader(positives, size, translate=self._stream.roster.translate)
        catalogue = self._catalogue.with_new_of(following)
        items = catalogue.items(torch.empty(0), self._stream.roster.translate)
        seeds = (self._seed, following.index)
        return CandidateLoader(rows, items, asked, self._taken, new, seeds, count)

    def _interactions(self, period: Period) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user, item (n,) int64 and whether it is a positive, of the rows that were not sampled."""
        schema, found = self._stream.schema, []
        columns = [schema.column(str(schema.user)), schema.column(str(schema.item))]
        for rows in period.parts():
            real = rows.label == 1 if schema.sampled else torch.ones(len(rows.label)).bool()
            ids = rows.fields[:, columns].long()
            found.append(torch.cat([ids, (rows.label == 1).long()[:, None]], 1)[real])
        user, item, positive = torch.cat(found).T.contiguous().numpy()
        return user, item, positive == 1

    def _positives(self, period: Period) -> Period:
        """Return the period with the rows alone that are ranked."""
        column = self._catalogue.columns[0]

        def wanted(rows: Batch) -> Batch:
            return rows.take((rows.label == 1) & (rows.fields[:, column] > 0))

        content = period.content
        if isinstance(content, Batch):
            return replace(period, content=wanted(content), truth=None)
        sizes = [len(wanted(rows).label) for rows in period.parts()]
        stored = Stored(sizes, lambda i: wanted(content.read(i)), content.buffer)
        return replace(period, content=stored, truth=None)

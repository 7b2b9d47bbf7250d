"""SPMF: past rows that the model ranks low, from a reservoir (Wang et al., SIGIR 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incrs.errors import Mistake
from incrs.models.base import Backbone
from incrs.module import ScenarioModule
from incrs.period import Batch, Period, Role, joined
from incrs.updaters.base import Updater

BLOCK = 1 << 14
"""The reservoir is scored so many rows at a time."""
PURPOSE = 2
"""Names the random numbers of the reservoir, apart from the period's others."""


def rank_weights(logit: Tensor) -> Tensor:
    """Return exp(rank / n) of every row, (n,) float64; rank 1 has the highest logit, rank n the lowest."""
    n = len(logit)
    rank = torch.empty(n, dtype=torch.float64)
    rank[logit.argsort(descending=True, stable=True)] = torch.arange(1.0, n + 1, dtype=rank.dtype)
    return (rank / n).exp()


def draw(weight: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Draw `count` of n rows one after the other, none twice, each in proportion to its weight (n,).

    Returns positions; all n where there are no more than `count`. The largest u^(1/w) are such a draw
    (Efraimidis and Spirakis, 2006).
    """
    u = torch.rand(len(weight), generator=random, dtype=torch.float64)
    return (u.log() / weight).topk(min(count, len(weight))).indices


def slots(capacity: int, seen: int, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return where a reservoir puts which of the `count` rows that come after `seen` others.

    The row after i others takes place i while there is room. Later it enters with probability
    capacity / (i + 1), in a place drawn uniformly, whose row leaves: then every row so far is held with
    the same probability (Algorithm R). Of the rows that come to one place in turn the last stays.
    Returns (places, rows), (m,) each, no place twice.
    """
    number = torch.arange(seen, seen + count)
    drawn = torch.rand(count, generator=random, dtype=torch.float64)
    place = torch.where(number < capacity, number, (drawn * (number + 1)).long())
    (entering,) = torch.nonzero(place < capacity, as_tuple=True)
    last = torch.full((min(capacity, seen + count),), -1)
    last.scatter_reduce_(0, place[entering], entering, "amax")
    (places,) = torch.nonzero(last >= 0, as_tuple=True)
    return places, last[places]


class Reservoir:
    """At most `capacity` rows, a uniform sample of the `seen` rows that came.

    columns: name -> (capacity, ...), of which the first `held` are in use; see `flat`.
    """

    def __init__(self, capacity: int, seen: int = 0, columns: Mapping[str, Tensor] | None = None):
        self.capacity, self.seen = capacity, seen
        self.columns = {name: self._room(column) for name, column in (columns or {}).items()}

    def _room(self, column: Tensor) -> Tensor:
        room = column.new_zeros(self.capacity, *column.shape[1:])
        room[: len(column)] = column[: self.capacity]
        return room

    @property
    def held(self) -> int:
        """The number of rows."""
        return min(self.capacity, self.seen)

    def add(self, rows: Batch, random: torch.Generator) -> None:
        """Let rows come in their order."""
        count = len(rows.label)
        places, source = slots(self.capacity, self.seen, count, random)
        for name, column in flat(rows).items():
            if name not in self.columns:
                self.columns[name] = self._room(column[:0])
            self.columns[name][places] = column[source]
        self.seen += count

    def rows(self, where: Tensor | slice) -> Batch:
        """Return the rows at places `where`, copied where those are a tensor."""
        lists = {n.removeprefix("list."): x for n, x in self.columns.items() if n[:5] == "list."}
        return Batch(
            self.columns["fields"][where],
            {name: x[where] for name, x in lists.items()},
            self.columns["numbers"][where],
            self.columns["scenario"][where],
            self.columns["label"][where],
        )


def flat(rows: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch by name; a list's begins with `list.`."""
    lists = {f"list.{name}": ids for name, ids in rows.lists.items()}
    return (
        {"fields": rows.fields, "numbers": rows.numbers}
        | lists
        | {
            "scenario": rows.scenario,
            "label": rows.label,
        }
    )


def row_maps(ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return vocabulary -> the row of each id, int32, 0 = none; the last entry stands for later ids.

    ids: vocabulary -> (rows,), the id behind each row.
    """
    maps = {}
    for name, held in ids.items():
        maps[name] = torch.zeros(int(held.max()) + 2, dtype=torch.int32)
        maps[name][held] = torch.arange(len(held), dtype=torch.int32)
    return maps


def translated(rows: Batch, backbone: Backbone, maps: Mapping[str, Tensor]) -> Batch:
    """Return the batch with rows of the backbone's tables in place of the log's ids."""

    def rows_of(vocabulary: str, ids: Tensor) -> Tensor:
        if vocabulary not in maps:
            return ids
        return maps[vocabulary][ids.clamp(max=len(maps[vocabulary]) - 1).long()]

    fields, lists = rows.fields.clone(), dict(rows.lists)
    for of, _ in list(backbone.tables().values())[:1]:
        for j, vocabulary in enumerate(of.fields.values()):
            fields[:, j] = rows_of(vocabulary, fields[:, j])
        lists |= {name: rows_of(v, lists[name]) for name, v in of.lists.items()}
    return rows._replace(fields=fields, lists=lists)


class SPMF(Updater):
    """Trains on D_t and on past rows of a reservoir, of the positives rather those that score low.

    As ASMG's experiments have it (Peng et al., RecSys 2021). There are two reservoirs, one of
    positives and one of negatives, each a uniform sample of all such rows before D_t. The model of
    t-1 scores the positives; `ratio` times as many of them as D_t has are drawn, each in proportion to
    exp(rank / n), so the lowest is e times as likely as the highest, and as many negatives uniformly,
    both without replacement. Then the rows of D_t come to the reservoirs.

    fraction: of the warm-up's rows, of either label, in (0, 1]: the size of the reservoirs, which
    stays what it is however long the log becomes.
    rows: instead of `fraction`, the size of both together, at least 2, shared as the labels share the
    warm-up.  ratio: above 0.

    All rows are shuffled together; ASMG's program trains on the old ones first.
    """

    def __init__(self, fraction: float = 0.3, rows: int | None = None, ratio: float = 0.5):
        if not 0 < fraction <= 1:
            raise Mistake(f"updater.spmf.fraction={fraction}: give a number above 0, at most 1")
        if rows is not None and (type(rows) is not int or rows < 2):
            raise Mistake(
                f"updater.spmf.rows={rows}: give a whole number from 2, or null for fraction"
            )
        if not ratio > 0:
            raise Mistake(f"updater.spmf.ratio={ratio}: give a number above 0")
        self.fraction, self.size, self.ratio = fraction, rows, ratio
        self.reservoirs: list[Reservoir] = []  # of the negatives, of the positives

    def training_period(
        self, module: ScenarioModule, history: Sequence[Period], period: Period
    ) -> Period:
        """Return D_t with rows of the reservoirs, which then take D_t in; the warm-up as it is."""
        seed = np.random.SeedSequence([torch.initial_seed(), PURPOSE]).generate_state(1)[0]
        random = torch.Generator().manual_seed(int(seed))
        positives = sum(int(part.label.sum()) for part in period.parts())
        enriched = period
        if period.role is Role.PRETRAIN:
            counts = (len(period) - positives, positives)
            share = self.fraction if self.size is None else self.size / max(1, len(period))
            self.reservoirs = [Reservoir(round(share * count)) for count in counts]
        else:
            old = self.drawn(module, int(self.ratio * positives), random)
            if len(old.label):
                past = Period(period.index, period.name, period.role, old)
                enriched = Period.concat([past, period])
        for part in period.parts():
            for label, reservoir in enumerate(self.reservoirs):
                reservoir.add(part.take(part.label == label), random)
        return enriched

    def drawn(self, module: ScenarioModule, count: int, random: torch.Generator) -> Batch:
        """Return `count` positives and as many negatives of the reservoirs, or as many as there are."""
        negatives, positives = self.reservoirs
        logit = logits(module, positives) if count else torch.zeros(positives.held)
        weight = rank_weights(logit)
        return joined(
            [
                positives.rows(draw(weight, count, random)),
                negatives.rows(torch.randperm(negatives.held, generator=random)[:count]),
            ]
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next period depends on, flat."""
        state: dict[str, Any] = {}
        for label, reservoir in enumerate(self.reservoirs):
            state[f"{label}.capacity"], state[f"{label}.seen"] = reservoir.capacity, reservoir.seen
            for name, column in reservoir.columns.items():
                state[f"{label}.rows.{name}"] = column[: reservoir.held]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.reservoirs = []
        for label in (0, 1) if state_dict else ():
            at = f"{label}.rows."
            columns = {n.removeprefix(at): x for n, x in state_dict.items() if n.startswith(at)}
            capacity, seen = state_dict[f"{label}.capacity"], state_dict[f"{label}.seen"]
            self.reservoirs.append(Reservoir(capacity, seen, columns))


@torch.no_grad()
def logits(module: ScenarioModule, reservoir: Reservoir) -> Tensor:
    """Return the logits of a reservoir's rows through the weights of now, in evaluation mode, (held,).

    Every one of several processes scores all rows, so that they draw the same.
    """
    backbone, maps = module.backbone, row_maps(module.ids)
    training = backbone.training
    backbone.eval()
    found = []
    for start in range(0, reservoir.held, BLOCK):
        rows = reservoir.rows(slice(start, min(start + BLOCK, reservoir.held)))
        batch = translated(rows, backbone, maps)
        moved = module.transfer_batch_to_device(batch, module.device, 0)
        found.append(backbone(moved).logit.float().cpu())
    backbone.train(training)
    return torch.cat(found) if found else torch.zeros(0)

"""CFS: columns that go with the label and not with each other (Hall, PhD thesis, Waikato 1999)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from incrs import together
from incrs.period import Batch
from incrs.selectors.base import Selector, Values, everywhere, whole

Ints = NDArray[np.int64]


def entropy(values: Ints) -> float:
    """Return the entropy of what is counted in values (n,), in bits."""
    counts = np.unique(values, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def uncertainty(x: Ints, y: Ints) -> float:
    """Return the symmetrical uncertainty of x and y, (n,) each: 0 independent, 1 the same."""
    alone = entropy(x) + entropy(y)
    both = entropy(x * (int(y.max()) + 1) + y)
    return 2 * (alone - both) / alone if alone > 0 else 0.0


def merit(
    with_label: NDArray[np.float64], between: NDArray[np.float64], chosen: list[int]
) -> float:
    """Return k r_cf / sqrt(k + k (k - 1) r_ff) of the columns chosen, r being means."""
    k = len(chosen)
    pairs = between[np.ix_(chosen, chosen)].sum() - between[chosen, chosen].sum()
    return float(with_label[chosen].sum() / np.sqrt(k + pairs))


def forward_selection(
    with_label: NDArray[np.float64], between: NDArray[np.float64], patience: int
) -> list[int]:
    """Return the best set met, adding the best column each time until `patience` in a row do not help."""
    chosen: list[int] = []
    best: tuple[float, list[int]] = (0.0, [])
    stale = 0
    while len(chosen) < len(with_label) and stale < patience:
        rest = [j for j in range(len(with_label)) if j not in chosen]
        scores = [merit(with_label, between, [*chosen, j]) for j in rest]
        chosen = [*chosen, rest[int(np.argmax(scores))]]
        stale = 0 if max(scores) > best[0] else stale + 1
        if not stale:
            best = (max(scores), list(chosen))
    return best[1]


def of_all(rows: Tensor) -> Tensor:
    """Return the rows (B, C) of a step in all processes, in the batch's order."""
    if together.alone():
        return rows
    counts = rows.new_zeros(together.processes())
    counts[together.rank()] = len(rows)
    (counts,) = together.summed(counts)
    start = int(counts[: together.rank()].sum())
    whole = rows.new_zeros(int(counts.sum()), rows.shape[1])
    whole[start : start + len(rows)] = rows
    (whole,) = together.summed(whole)
    return whole


class CFS(Selector):
    """Keeps the columns of the greatest merit, the same in all scenarios, by counting alone.

    Correlation is symmetrical uncertainty, of a column with the label and of columns with each other.
    A list counts by its first id. Rows are looked at as they come in the search's epoch, the first
    `rows` of them. Hall's search is best first with backtracking; here columns are added one by one,
    and so many as his five that do not help end it.
    """

    whole_columns = True

    def __init__(self, every: int | None = None, rows: int = 100_000, patience: int = 5):
        super().__init__("cfs", 1, 0, every, 1.0)
        whole("rows", rows, 1)
        whole("patience", patience, 1)
        self.rows, self.patience = rows, patience

    def begin(self, values: Values) -> None:
        """Start with no row seen."""
        self._values = (values,)
        self._seen: list[Tensor] = []

    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return 1: nothing is gated while rows are looked at."""
        return torch.ones_like(places, dtype=torch.float32)

    def penalty(self, batch: Batch) -> None:
        """Take down the rows of a step; there is nothing to add."""
        if sum(map(len, self._seen)) < self.rows:
            (values,) = self._values
            lists = [batch.lists[name][:, :1] for name in values.columns[values.fields :]]
            label = batch.label[:, None].int()
            columns = [batch.fields.int(), *(x.int() for x in lists), label]
            self._seen.append(of_all(torch.cat(columns, 1)).cpu())

    def fixed(self) -> Tensor:
        """Return the values of the columns of the greatest merit."""
        (values,) = self._values
        rows = torch.cat(self._seen)[: self.rows].long().numpy()
        *columns, label = np.ascontiguousarray(rows.T)
        with_label = np.array([uncertainty(x, label) for x in columns])
        between = np.array(
            [
                [uncertainty(x, y) if i < j else 0.0 for j, y in enumerate(columns)]
                for i, x in enumerate(columns)
            ]
        )
        kept = torch.zeros(len(columns), dtype=torch.bool)
        kept[forward_selection(with_label, between + between.T, self.patience)] = True
        return everywhere(kept[values.column], values.scenarios)

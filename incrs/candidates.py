"""Which items a positive is ranked against: some that its user had not taken by then, drawn once.

Users and items are int ids, 0 = unknown; items are numbered by first appearance, so those that have
appeared by some row are the ids 1 .. the largest so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
CELLS = 1 << 18
"""About so many candidates are drawn, and scored, at once."""
CANDIDATES = 2
"""Names the random numbers of candidates, apart from those of training (see runner.seed_of)."""


class Asked(NamedTuple):
    """The positives of a period that have an item, in the rows' order, each (n,).

    row: position among the rows that count.  seen: the largest item id up to that row.
    """

    user: Ints
    item: Ints
    row: Ints
    seen: Ints


class Taken:
    """The pairs of user and item so far; it grows period by period."""

    def __init__(self) -> None:
        self._pairs = np.empty(0, np.int64)  # user << 32 | item, rising
        self.items = 0  # the largest item id

    def add(self, user: Ints, item: Ints) -> None:
        """Take note of a period's interactions, (n,) each."""
        pairs, _ = _pairs(user, item)
        self._pairs = _merged(self._pairs, pairs)
        self.items = max(self.items, int(item.max(initial=0)))

    def ask(self, user: Ints, item: Ints, positive: NDArray[np.bool_]) -> tuple[Asked, Pairs]:
        """Return what of a period's interactions (n,) is to be ranked, and what they add to the past."""
        seen = np.maximum(np.maximum.accumulate(item), self.items)
        row = np.flatnonzero(positive & (item > 0))
        return Asked(user[row], item[row], row, seen[row]), _pairs(user, item)

    def of(self, asked: Asked, new: Pairs) -> tuple[Ints, Ints]:
        """Return (T,) which of the asked, rising, and (T,) an item it may not be ranked against, rising.

        These are the items that the user took up to the row, its own among them.
        """
        before, one = _spans(self._pairs, asked.user)
        now, other = _spans(new.pairs, asked.user)
        early = new.first[now] <= asked.row[other]
        own = np.arange(len(asked.item)) << 32 | asked.item
        found = _merged(
            one << 32 | self._pairs[before] & _LOW,
            other[early] << 32 | new.pairs[now[early]] & _LOW,
            own,
        )
        return found >> 32, found & _LOW


class Pairs(NamedTuple):
    """The pairs of user and item of a period, rising (m,), and the row that each first came in (m,)."""

    pairs: Ints
    first: Ints


_LOW = (1 << 32) - 1


def _pairs(user: Ints, item: Ints) -> Pairs:
    known = np.flatnonzero((user > 0) & (item > 0))
    pairs, first = np.unique(user[known] << 32 | item[known], return_index=True)
    return Pairs(pairs, known[first])


def _merged(*runs: Ints) -> Ints:
    """Return the values, from 0, of several rising arrays, rising and each once."""
    merged = np.sort(np.concatenate(runs), kind="stable")  # which makes use of the runs
    return merged[np.diff(merged, prepend=-1) > 0]


def _spans(pairs: Ints, user: Ints) -> tuple[Ints, Ints]:
    """Return (T,) the positions of every user's pairs, and (T,) whose of `user` (n,) they are."""
    start = np.searchsorted(pairs, user << 32)
    count = np.searchsorted(pairs, user + 1 << 32) - start
    owner = np.repeat(np.arange(len(user)), count)
    return np.arange(count.sum()) + (start - count.cumsum() + count)[owner], owner


SPARE = 64
"""Numbers that are drawn for a row in place of those that came twice, at once."""
_TWICE = np.iinfo(np.int32).max


def distinct(streams: Sequence[np.random.Generator], below: Ints, count: int) -> NDArray[np.int32]:
    """Draw `count` distinct whole numbers from 0 to below[i] - 1 for each i: (n, count), -1 = too few.

    streams: two.  below: (n,).  Row i depends on the streams, n, i, count and below[i] alone: every draw
    is for n rows, and rows of few numbers and of many have a stream each.
    """
    size = len(below)
    found = np.full((len(below), count), -1, np.int32)
    short = np.flatnonzero((below > 0) & (below <= 4 * count))
    if len(short):  # the rows with the smallest of as many random keys
        keys = streams[0].random((size, 4 * count))[short, : max(count, int(below[short].max()))]
        keys[np.arange(keys.shape[1]) >= below[short, None]] = 2
        order = np.argpartition(keys, count - 1, axis=1)[:, :count]
        found[short] = np.where(np.take_along_axis(keys, order, 1) < 1, order, -1)
    pending = np.flatnonzero(below > 4 * count)
    if len(pending):
        drawn = streams[1].random((size, count))[pending] * below[pending, None]
        found[pending] = _once_each(drawn.astype(np.int32))
    while len(pending := pending[found[pending, -1] == _TWICE]):  # draw again what came twice
        drawn = streams[1].random((size, min(count, SPARE)))[pending] * below[pending, None]
        rows = found[pending]
        tail = rows[:, -drawn.shape[1] :]
        tail[:] = np.where(tail == _TWICE, drawn.astype(np.int32), tail)
        found[pending] = _once_each(rows)
    return found


def _once_each(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rows (n, C) rising, with `_TWICE` behind in place of what was there already."""
    rows = np.sort(rows, axis=1)
    again = rows[:, 1:] == rows[:, :-1]
    some = again.any(1)
    rows[:, 1:][again] = _TWICE
    rows[some] = np.sort(rows[some], axis=1)
    return rows


def free(rank: Ints, owner: Ints, taken: Ints) -> Ints:
    """Return the rank-th, from 0, of the ids 1, 2, ... that a row has not taken: (n, C).

    rank: (n, C).  owner, taken: (T,) each, as `Taken.of` returns them.
    """
    start = np.searchsorted(owner, np.arange(len(rank)))
    before = taken - 1 - (np.arange(len(taken)) - start[owner])  # free ids below each taken one
    passed = np.searchsorted(
        owner << 32 | before, np.arange(len(rank))[:, None] << 32 | rank, "right"
    )
    return rank + 1 + passed - start[:, None]


def draw(
    seeds: Sequence[int],
    block: int,
    size: int,
    place: Ints,
    asked: Asked,
    taken: tuple[Ints, Ints],
    count: int | None,
) -> Ints:
    """Return the candidates of some rows of a block: (n, C) item ids, 0 = none.

    seeds: name the period.  block: the number of the block, of at most `size` rows.  place: (n,) of the
    rows in it.  asked, taken: of those rows, see `Taken.of`.  count: how many to draw for each, None for
    all there are. What a row gets depends on the seeds, its place, its user's past and what has appeared.
    """
    left = asked.seen - np.bincount(taken[0], minlength=len(asked.item))
    if count is None:
        rank = np.tile(np.arange(left.max(initial=0)), (len(left), 1))
        rank[rank >= left[:, None]] = -1
    else:
        streams = np.random.SeedSequence([*seeds, CANDIDATES, block]).spawn(2)
        below = np.zeros(size, np.int64)
        below[place] = left
        rank = distinct([np.random.default_rng(one) for one in streams], below, count)[place]
        rank = rank[:, (rank >= 0).any(0)]
    return np.where(rank >= 0, free(np.maximum(rank, 0), *taken), 0)

"""The cut of a log into periods: a name for each row's period, and the order of the names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import md5
from math import isnan

import numpy as np
import polars as pl
from numpy.typing import NDArray

from incrs.data.scan import DAY, ROW, TIME, local_time

Ints = NDArray[np.int64]
Slices = Callable[[], Iterable[tuple[Ints, Ints]]]
BINS = 1 << 19  # of times counted in one pass


def by_day() -> pl.Expr:
    """Name rows by their day, e.g. `2022-05-02`; days without rows are no periods."""
    return pl.col(DAY).dt.strftime("%Y-%m-%d")


def by_hours(edges: Sequence[int], timezone: str) -> pl.Expr:
    """Name rows by local day and span of hours, e.g. `2017-01-05 10h` for [10, next edge).

    edges: strictly increasing hours in [0, 24), the first 0; the last span ends at midnight.
    """
    clock = local_time(timezone)
    start = pl.lit(edges[0])
    for edge in edges[1:]:
        start = pl.when(clock.dt.hour() >= edge).then(pl.lit(edge)).otherwise(start)
    hour = start.cast(pl.String).str.zfill(2)
    return pl.format("{} {}h", clock.dt.strftime("%Y-%m-%d"), hour)


def by_count(slices: Slices, count: int) -> Callable[[pl.DataFrame], pl.Series]:
    """Return what names rows 1 .. count, floor(n / count) to each period, and null for the rest.

    slices: gives the (n,) times and the (n,) rising row numbers of every row, some rows at once. The
    order is time, then row.
    """
    size = sum(len(time) for time, _ in slices()) // count
    ends = last_rows(slices, np.arange(size - 1, size * count, size)) if size else [(0, 0)][:0]
    times, rows = np.array(ends, np.int64).reshape(-1, 2).T

    def names(frame: pl.DataFrame) -> pl.Series:
        time, row = frame[TIME].to_numpy(), frame[ROW].to_numpy()
        passed = np.searchsorted(times, time)  # ends before the row
        for tie in np.unique(passed[np.isin(time, times)]):
            same = np.flatnonzero(time == times[tie])
            passed[same] += np.searchsorted(rows[times == times[tie]], row[same])
        numbers = pl.Series(passed + 1)
        return numbers.set(numbers > len(times), None).cast(pl.String)

    return names


def by_chance(
    scenarios: Iterable[pl.Series], shares: Sequence[float], seed: int
) -> Callable[[pl.Series], pl.Series]:
    """Return what names rows 1 .. len(shares), drawn: each period has its share of every scenario's rows.

    scenarios: of every row as text, some rows at once. What is returned is given the same ones in the
    same order.  shares: of the periods, 1 in all.  A byte or two of each row are in memory.
    """
    sizes: Counter[str | None] = Counter()
    for part in scenarios:
        sizes.update(dict(part.value_counts().iter_rows()))
    drawn: dict[str | None, NDArray[np.int16]] = {}
    for name, size in sizes.items():
        borders = np.rint(np.cumsum(shares) * size)
        borders[-1] = size
        ranks = np.searchsorted(borders, np.arange(size), side="right").astype(np.int16)
        key = int.from_bytes(md5((name or "").encode()).digest()[:8])
        drawn[name] = np.random.default_rng([seed, key]).permutation(ranks)
    given: Counter[str | None] = Counter()

    def names(part: pl.Series) -> pl.Series:
        found = np.zeros(len(part), np.int16)
        for name in part.unique():
            here = part.eq_missing(pl.Series([name], dtype=pl.String)).to_numpy()
            count = int(here.sum())
            found[here] = drawn[name][given[name] : given[name] + count]
            given[name] += count
        return pl.Series(found + 1).cast(pl.String)

    return names


def last_rows(slices: Slices, ranks: Ints) -> list[tuple[int, int]]:
    """Return the time and the number of the rows at `ranks` (rising, from 0), by time, then row.

    Counts times in bins, then in ever smaller bins around the ranks: exact, and no slice is kept.
    """
    first = min(int(time.min()) for time, _ in slices() if len(time))
    width = max(int(time.max()) for time, _ in slices() if len(time)) - first + 1
    low, left = np.full(len(ranks), first), np.array(ranks)  # rows before the rank, within the bin
    while width > 1:
        start, which = np.unique(low, return_inverse=True)  # spans [start, start + width), apart
        bins = max(2, BINS // len(start))
        step = -(-width // bins)
        found = np.zeros((len(start), bins), np.int64)
        for time, _ in slices():
            spans = np.searchsorted(start, time, side="right") - 1
            near = (spans >= 0) & (time - start[spans] < width)
            places = spans[near] * bins + (time[near] - start[spans[near]]) // step
            found += np.bincount(places, minlength=found.size).reshape(found.shape)
        found = np.pad(found.cumsum(1), ((0, 0), (1, 0)))
        for k, span in enumerate(which):
            place = np.searchsorted(found[span], left[k], side="right") - 1
            left[k] -= found[span, place]
            low[k] = start[span] + place * step
        width = step
    start, which = np.unique(low, return_inverse=True)
    row, seen = np.zeros(len(ranks), np.int64), np.zeros(len(start), np.int64)
    for time, rows in slices():
        for k, moment in enumerate(start):
            tied = rows[time == moment]
            here = np.flatnonzero((which == k) & (left >= seen[k]) & (left < seen[k] + len(tied)))
            row[here] = tied[left[here] - seen[k]]
            seen[k] += len(tied)
    return list(zip(low.tolist(), row.tolist(), strict=True))


def ordered(names: Sequence[str]) -> list[str]:
    """Sort period names: as numbers when all of them are, else as text."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    if any(map(isnan, numbers.values())):
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name], name))

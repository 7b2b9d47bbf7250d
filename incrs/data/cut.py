"""The cut of a log into periods: a name for each row's period, and the order of the names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from incrs.data.scan import DAY, ROW, TIME, local_time


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


def by_count(rows: pl.DataFrame, count: int) -> pl.Expr:
    """Name rows 1 .. count so that each period has floor(n / count) of them; the rest are null.

    rows: TIME and ROW of every row; the order is time, then row.
    """
    time, row = rows[TIME].to_numpy(), rows[ROW].to_numpy()
    order = np.lexsort((row, time))
    size = len(order) // count
    if size == 0:
        return pl.lit(None, pl.String)
    ends = order[size - 1 : size * count : size]  # the last row of each period
    passed = pl.lit(1)
    for end in ends:
        after = (pl.col(TIME) > time[end]) | (
            (pl.col(TIME) == time[end]) & (pl.col(ROW) > row[end])
        )
        passed = passed + after.cast(pl.Int32)
    return pl.when(passed <= count).then(passed).cast(pl.String)


def ordered(names: Sequence[str]) -> list[str]:
    """Sort period names: as numbers when all of them are, else as text."""
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)

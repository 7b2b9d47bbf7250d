"""The filters of papers' protocols: the users and items with the most rows of the whole log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import polars as pl

from incrs.data.declaration import counted
from incrs.data.scan import TIME
from incrs.errors import Mistake


def filtered(
    filters: Sequence[dict[str, Any]], files: Sequence[Path]
) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return what leaves of a frame the rows that all filters keep.

    filters: {top: column, n: 50000} keeps the rows of the n values with the most rows, of equals the
    earlier ones; {at_least: column, n: 20} those of values with n rows or more; {sample: column, n: 10000}
    those of n values, as if drawn: which ones hangs on the values alone. Each counts what the
    one before it left; rows without a value go.  files: Parquet files of all rows, which are streamed:
    memory grows with the values.  Raises Mistake when one leaves no row.
    """
    kept: list[pl.DataFrame] = []

    def keep(rows: pl.LazyFrame) -> pl.LazyFrame:
        for values in kept:
            rows = rows.join(values.lazy(), on=values.columns, how="semi", maintain_order="left")
        return rows

    for one in filters:
        column, n = counted(one), int(one["n"])
        rows = keep(pl.scan_parquet(list(files), glob=False)).drop_nulls(column)
        found = rows.group_by(column).agg(pl.len().alias("__rows__"), pl.col(TIME).min())
        counts = found.collect(engine="streaming")
        if "top" in one:
            order = ["__rows__", TIME, column]
            counts = counts.sort(order, descending=[True, False, False]).head(n)
        elif "sample" in one:
            drawn = sorted(counts[column], key=lambda value: md5(value.encode()).digest())[:n]
            counts = pl.DataFrame({column: drawn}, schema={column: pl.String})
        else:
            counts = counts.filter(pl.col("__rows__") >= n)
        if not len(counts):
            raise Mistake(
                f"data.filters: {dict(one)} leaves no row: lower its n, or those before it"
            )
        kept.append(counts.select(column))
    return lambda frame: keep(frame.lazy()).collect()

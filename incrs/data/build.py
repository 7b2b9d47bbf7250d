"""A declared log into a prepared store: raw files -> staged rows -> one file a period -> ids.

Files are streamed twice; after that one period at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import track

from incrs.data.base import ListField, Schema
from incrs.data.columns import missing_column, resolve
from incrs.data.cut import by_count, by_day, by_hours, ordered
from incrs.data.declaration import HISTORY, Declaration
from incrs.data.encode import Encoder
from incrs.data.scan import (
    DAY,
    LABEL,
    ROW,
    SCENARIO,
    TIME,
    local_time,
    open_file,
    parse_label,
    parse_time,
    text,
)
from incrs.data.store import write_period, write_rest
from incrs.errors import Mistake

PERIOD = "__period__"
FOREVER = np.iinfo(np.int64).max


def build(
    log: Declaration,
    files: Sequence[Path],
    side_files: Sequence[Sequence[Path]],
    sources: Sequence[Mapping[str, Any]],
    new: Path,
    room: Path,
) -> None:
    """Write the prepared store of `log` into `new`, with temporary files in `room`."""
    own, side_tables = resolve(log, files, side_files)
    try:
        _stage(log, files, own).sink_parquet(room / "log.parquet")
    except pl.exceptions.PolarsError as error:
        every = ", ".join(file.name for file in files)
        raise Mistake(f"{every} cannot be read: {str(error).splitlines()[0]}") from error
    rows = pl.scan_parquet(room / "log.parquet")
    _check_rows(log, files, rows)
    rows, scenarios = _scenarios(log, rows)
    names, starts = _split(log, rows, room / "periods")
    keep_from = [*np.minimum.accumulate(starts[::-1])[::-1][1:].tolist(), FOREVER]

    encoder = Encoder(
        fields=log.single_fields,
        lists=log.multivalued,
        length=log.multivalued_length,
        numbers=log.numeric,
        transform=log.numeric_transform,
        side_tables=side_tables,
        null_values=log.null_values,
        user=log.user,
        item=log.item,
        history=log.history,
        negatives=log.negatives,
        seed=log.negatives_seed,
        candidates=_all_items(log, room / "periods") if log.negatives_from == "all" else None,
    )
    console = Console(stderr=True)
    periods = []
    for t, name in track(
        list(enumerate(names)),
        description=f"preparing {log.name}",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        raw = pl.read_parquet(room / "periods" / f"{PERIOD}={t}").sort(TIME, ROW)
        encoded = encoder.encode(t, raw, keep_from[t])
        entry = write_period(new, t, name, encoded, log.single_fields, log.numeric)
        periods.append(entry | {"known": {v: len(ids) for v, ids in encoder.vocabularies.items()}})

    lists = {name: ListField(name, log.multivalued_length) for name in log.multivalued}
    if log.history and log.item:
        lists = {HISTORY: ListField(log.item, log.history), **lists}
    schema = Schema(
        vocabularies={name: len(ids) for name, ids in encoder.vocabularies.items()},
        fields={name: name for name in log.single_fields},
        lists=lists,
        numbers=list(log.numeric),
        scenarios=scenarios,
        user=log.user,
        item=log.item,
    )
    write_rest(new, schema, sources, periods, encoder.vocabularies)


def _stage(log: Declaration, files: Sequence[Path], own: Sequence[str]) -> pl.LazyFrame:
    """Return the rows of all files between start and end: own columns as text, time, day, label."""
    parts = []
    for file in files:
        lazy = open_file(file, log.separator)
        schema = lazy.collect_schema()
        for column in own:
            if column not in schema:
                raise missing_column(column, "data.files", [file], schema.names())
        label = parse_label(log.label, log.label_threshold) if log.label else pl.lit(1.0)
        time = parse_time(log.time, schema[log.time], log.time_unit, log.timezone)
        columns = [text(column, log.null_values) for column in own]
        parts.append(lazy.select(*columns, time.alias(TIME), label.alias(LABEL)))
    rows = pl.concat(parts).with_row_index(ROW)
    clock = local_time(log.timezone)
    day = clock.dt.date()
    if log.day:
        moment = pl.col(log.day).str.strip_chars().str.to_datetime(log.day_format, strict=False)
        day = moment.dt.date()
    rows = rows.with_columns(day.alias(DAY))
    # a day that did not parse stays, to be complained about
    if log.start:
        rows = rows.filter((pl.col(DAY) >= date.fromisoformat(str(log.start))).fill_null(True))
    if log.end:
        rows = rows.filter((pl.col(DAY) <= date.fromisoformat(str(log.end))).fill_null(True))
    parts_of_day = {"hour": clock.dt.hour(), "weekday": clock.dt.weekday()}
    return rows.with_columns(
        parts_of_day[name].cast(pl.String).alias(name) for name in log.time_fields
    )


def _check_rows(log: Declaration, files: Sequence[Path], rows: pl.LazyFrame) -> None:
    """Raise Mistake when there is no row, or one whose time, day or label does not read."""
    bad_time, bad_day = pl.col(TIME).is_null(), pl.col(DAY).is_null()
    bad_label = ~pl.col(LABEL).is_in([0.0, 1.0]).fill_null(False)
    found = rows.select(
        pl.len().alias("rows"),
        bad_time.sum().alias("time"),
        bad_day.sum().alias("day"),
        bad_label.sum().alias("label"),
    )
    counts = found.collect(engine="streaming").row(0, named=True)
    if counts["rows"] == 0:
        names = ", ".join(file.name for file in files)
        span = f" from data.start={log.start} to data.end={log.end}" if log.start or log.end else ""
        raise Mistake(f"{names}: the log has no row{span}")
    if counts["time"]:
        value = _examples(log, files, log.time, bad_time)
        raise Mistake(
            f"data.time: {counts['time']} values of column {log.time!r} do not read as {log.time_unit}, "
            f"such as {value}: change data.time_unit (s, ms, us, ns, iso or a pattern like %Y%m%d)"
        )
    if counts["day"]:
        raise Mistake(
            f"data.day: {counts['day']} values of column {log.day!r} do not read as {log.day_format}: "
            "change data.day_format"
        )
    if counts["label"]:
        value = _examples(log, files, log.label or "", bad_label)
        raise Mistake(
            f"data.label: column {log.label!r} must hold 0 or 1 but {counts['label']} rows hold others, "
            f"such as {value}: for a rating set data.label_threshold"
        )


def _examples(log: Declaration, files: Sequence[Path], column: str, bad: pl.Expr) -> str:
    """Return up to three raw values of a column whose rows are bad."""
    parsed = _stage(log, files, list(dict.fromkeys([column, *([log.day] if log.day else [])])))
    values = parsed.filter(bad).select(column).unique(maintain_order=True).head(3).collect()
    return ", ".join("an empty value" if value is None else repr(value) for value in values[column])


def _scenarios(log: Declaration, rows: pl.LazyFrame) -> tuple[pl.LazyFrame, list[str]]:
    """Return the rows of the scenarios kept, with their index, and the scenarios' names."""
    if log.scenario is None:
        return rows.with_columns(pl.lit(0, pl.Int32).alias(SCENARIO)), ["all"]
    first = pl.col(ROW).filter(pl.col(TIME) == pl.col(TIME).min()).min()
    seen = rows.group_by(log.scenario).agg(pl.col(TIME).min(), first, pl.len()).collect()
    values = seen.sort(TIME, ROW).drop_nulls(log.scenario)[log.scenario].to_list()
    names = values if log.scenarios is None else [str(value) for value in log.scenarios]
    for name in names:
        if name not in values:
            raise Mistake(
                f"data.scenarios: column {log.scenario!r} has no value {name!r}; "
                f"it has {', '.join(values[:20])}{' ...' if len(values) > 20 else ''}"
            )
    rest = None
    pooled = seen.filter(~pl.col(log.scenario).is_in(names).fill_null(False)).height > 0
    if log.scenario_rest == "pool" and pooled:
        rest = len(names)
    index = pl.col(log.scenario).replace_strict(
        names, list(range(len(names))), default=rest, return_dtype=pl.Int32
    )
    rows = rows.with_columns(index.alias(SCENARIO)).filter(pl.col(SCENARIO).is_not_null())
    return rows, names if rest is None else [*names, "other"]


def _split(log: Declaration, rows: pl.LazyFrame, folder: Path) -> tuple[list[str], list[int]]:
    """Write the rows of each period to a folder; return the names and first times of the periods."""
    if log.period == "day":
        name = by_day()
    elif log.period == "hours":
        name = by_hours(list(log.period_hours or []), log.timezone)
    elif log.period == "count":
        order = rows.select(TIME, ROW).collect(engine="streaming")
        name = by_count(order, log.period_count or 1)
    else:
        name = pl.col(log.period_column or "")
    rows = rows.with_columns(name.alias(PERIOD)).filter(pl.col(PERIOD).is_not_null())
    first = rows.group_by(PERIOD).agg(pl.col(TIME).min()).collect(engine="streaming")
    starts = dict(first.iter_rows())
    names = ordered(list(starts))
    log.assign(len(names))  # complains before the work rather than after it
    index = pl.col(PERIOD).replace_strict(names, list(range(len(names))), return_dtype=pl.Int32)
    rows.with_columns(index.alias(PERIOD)).sink_parquet(
        pl.PartitionBy(folder, key=PERIOD, include_key=False), mkdir=True
    )
    return names, [starts[name] for name in names]


def _all_items(log: Declaration, folder: Path) -> pl.Series:
    """Return every item of the log in order of appearance."""
    item = log.item or ""
    first = pl.col(ROW).filter(pl.col(TIME) == pl.col(TIME).min()).min()
    rows = pl.scan_parquet(folder, hive_partitioning=False).drop_nulls(item)
    seen = rows.group_by(item).agg(pl.col(TIME).min(), first)
    return seen.sort(TIME, ROW).collect(engine="streaming")[item]

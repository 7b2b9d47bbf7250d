"""Raw files into rows: own columns as text, time, day, label; which scenarios' rows are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import polars as pl

from incrs.data.columns import EarlyTable, SideTable
from incrs.data.declaration import Declaration
from incrs.data.layouts import Layout
from incrs.data.raw import reading
from incrs.data.scan import (
    DAY,
    LABEL,
    ROW,
    SCENARIO,
    TIME,
    local_time,
    parse_label,
    parse_time,
    text,
)
from incrs.data.store import Store
from incrs.errors import Mistake

OTHER = "other"  # the scenario of pooled values


def read_rows(
    log: Declaration, files: Sequence[Path], own: Sequence[str], early: Sequence[EarlyTable] = ()
) -> Iterator[tuple[Path, pl.DataFrame]]:
    """Yield the rows between start and end that are kept: own columns as text, time, day, label, row number.

    early: tables that are joined with them at once.
    Raises Mistake when a file has no row, or one whose time, day or label does not read.
    """
    seen, kept = 0, 0
    for file in files:
        before, bad = seen, BadRows(log, file)
        layout = Layout(log.file_columns, file)
        tables = [one.of_file(file) for one in early]
        for piece in layout.pieces(log.separator, log.format, own):
            with reading(file):
                frame = _parsed(log, piece, own, seen, tables)
            seen += len(piece)
            kept += len(frame)
            bad.count(frame)
            yield file, frame
        if seen == before:
            raise Mistake(f"{file} has no row, only a header: take it away, or give the whole file")
        bad.complain()
    if kept == 0:
        names = ", ".join(file.name for file in files)
        span = f" from data.start={log.start} to data.end={log.end}" if log.start or log.end else ""
        kind = f" that data.keep={log.keep} and data.required={list(log.required)} keep"
        raise Mistake(
            f"{names}: the log has no row{span}{kind if log.keep or log.required else ''}"
        )


def _parsed(
    log: Declaration,
    piece: pl.DataFrame,
    own: Sequence[str],
    seen: int,
    tables: Sequence[SideTable],
) -> pl.DataFrame:
    label = parse_label(log.label, log.label_threshold) if log.label else pl.lit(1.0)
    time = pl.lit(0, pl.Int64)
    if log.time:
        dtype = piece.schema[log.time]
        time = parse_time(log.time, dtype, log.time_unit, log.timezone, log.time_year)
    number = pl.int_range(seen, seen + len(piece), dtype=pl.Int64)
    rows = piece.select(
        *(text(column, log.null_values) for column in own),
        time.alias(TIME),
        label.alias(LABEL),
        number.alias(ROW),
    )
    for table in tables:
        rows = rows.join(table.frame, on=table.key, how="left", maintain_order="left")
    for column, values in log.keep.items():
        rows = rows.filter(pl.col(column).is_in([_spelt(value) for value in values]))
    rows = rows.drop_nulls(list(log.required)) if log.required else rows
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


def _spelt(value: object) -> str:
    """Return a value of a yaml as a file holds it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class BadRows:
    """Counts a file's rows whose time, day or label does not read, and keeps some examples."""

    def __init__(self, log: Declaration, file: Path) -> None:
        self.log, self.file = log, file
        bad_label = ~pl.col(LABEL).is_in([0.0, 1.0]).fill_null(False)
        self.tests = [
            ("time", log.time, pl.col(TIME).is_null()),
            ("day", log.day, pl.col(DAY).is_null()),
            ("label", log.label, bad_label),
        ]
        self.counts = {"time": 0, "day": 0, "label": 0}
        self.examples: dict[str, dict[str | None, None]] = {name: {} for name in self.counts}

    def count(self, rows: pl.DataFrame) -> None:
        """Add the bad rows of a piece."""
        for what, column, test in self.tests:
            bad = rows.filter(test)
            self.counts[what] += len(bad)
            if len(bad) and column and len(self.examples[what]) < 3:
                distinct = bad[column].unique(maintain_order=True).head(3)
                self.examples[what] |= dict.fromkeys(distinct)

    def complain(self) -> None:
        """Raise Mistake when a row was bad."""
        log, name = self.log, self.file.name
        if count := self.counts["time"]:
            raise Mistake(
                f"data.time: {count} values of column {log.time!r} in {name} do not read as "
                f"{log.time_unit}, such as {self._such_as('time')}: change data.time_unit (s, ms, us, "
                "ns, iso or a pattern like %Y%m%d) or mend the file"
            )
        if log.day and (count := self.counts["day"]):
            raise Mistake(
                f"data.day: {count} values of column {log.day!r} in {name} do not read as "
                f"{log.day_format}, such as {self._such_as('day')}: change data.day_format or mend the "
                "file"
            )
        if log.label and (count := self.counts["label"]):
            raise Mistake(
                f"data.label: column {log.label!r} must hold 0 or 1 but {count} rows of {name} hold "
                f"others, such as {self._such_as('label')}: for a rating set data.label_threshold"
            )

    def _such_as(self, what: str) -> str:
        values = list(self.examples[what])[:3]
        return ", ".join("an empty value" if value is None else repr(value) for value in values)


@dataclass
class Scenarios:
    """Which rows are kept for their scenario, and what the scenarios are called."""

    log: Declaration
    old: Store | None
    first: dict[str, tuple[int, int]] = field(default_factory=dict)  # value -> time, row

    def keep(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows whose scenario is kept; remember which values were seen."""
        log = self.log
        if log.scenario is None:
            return rows
        ranked = rows.select(log.scenario, TIME, ROW).drop_nulls().sort(TIME, ROW)
        for value, time, row in ranked.unique(log.scenario, keep="first").iter_rows():
            self.first[value] = min(self.first.get(value, (time, row)), (time, row))
        if log.scenario_rest == "pool":
            return rows
        if log.scenarios is None:
            return rows.drop_nulls(log.scenario)
        return rows.filter(pl.col(log.scenario).is_in([str(value) for value in log.scenarios]))

    def names(self) -> list[str]:
        """Return the scenarios' names, once all rows were seen.

        Raises Mistake when a listed one is in no row, or one comes that the store does not know.
        """
        log, seen = self.log, sorted(self.first, key=lambda value: self.first[value])
        if log.scenario is None:
            return ["all"]
        names = seen if log.scenarios is None else [str(value) for value in log.scenarios]
        if self.old is None:
            for name in names:
                if name not in seen:
                    raise Mistake(
                        f"data.scenarios: column {log.scenario!r} has no value {name!r}; "
                        f"it has {', '.join(seen[:20])}{' ...' if len(seen) > 20 else ''}"
                    )
        elif log.scenarios is None:
            names = list(self.old.schema.scenarios)
            strange = [value for value in seen if value not in names]
            if strange:
                raise Mistake(
                    f"data.scenario: column {log.scenario!r} of the new files has the value "
                    f"{strange[0]!r}, which was in no period before (those had {', '.join(names)}): list "
                    "the values to keep in data.scenarios, so that others are dropped, or pooled with "
                    "data.scenario_rest=pool"
                )
        return [*names, OTHER] if log.scenario_rest == "pool" else names


def scenario_index(log: Declaration, names: Sequence[str]) -> pl.Expr:
    """Return the number of each row's scenario."""
    if log.scenario is None:
        return pl.lit(0, pl.Int32).alias(SCENARIO)
    pooled = log.scenario_rest == "pool"
    listed = names[:-1] if pooled else names
    index = pl.col(log.scenario).replace_strict(
        listed,
        list(range(len(listed))),
        default=len(listed) if pooled else None,
        return_dtype=pl.Int32,
    )
    return index.alias(SCENARIO)

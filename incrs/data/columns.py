"""Where each declared column comes from: the log itself or one of its side tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from incrs.data.declaration import Declaration, counted
from incrs.data.layouts import Layout
from incrs.data.raw import columns_of, pieces, reading
from incrs.data.scan import beside, text
from incrs.errors import Mistake

EARLY = ("scenario", "period_column", "keep", "required", "filters")
"""Options that say which rows there are: their columns are joined as soon as a row is read."""


@dataclass(frozen=True)
class SideTable:
    """A table joined by key: `key` is the log's column; `frame` holds it and the columns it adds."""

    key: str
    frame: pl.DataFrame

    def of(self, keys: pl.Series) -> pl.DataFrame:
        """Return the table's row for each key, in the keys' order; a missing key gives nulls."""
        asked = pl.DataFrame({self.key: keys})
        return asked.join(self.frame, on=self.key, how="left", maintain_order="left")

    def only(self, columns: Sequence[str]) -> SideTable:
        """Return the table with some of its columns."""
        return SideTable(self.key, self.frame.select(self.key, *columns))


class EarlyTable(NamedTuple):
    """A table that is joined when rows are read.

    columns: what it adds.  of_file: gives the table for one of the log's files.  stays: whether a
    period's rows keep the columns, since each file has a table of its own; else they are there to say
    which rows there are, and those that are fields are joined again, with the period.
    """

    columns: list[str]
    of_file: Callable[[Path], SideTable]
    stays: bool


class Resolved(NamedTuple):
    """Where the columns come from: the log itself, tables joined by period, tables joined by file."""

    own: list[str]
    side_tables: list[SideTable]
    early: list[EarlyTable]


def resolve(
    log: Declaration, files: Sequence[Path], side_files: Sequence[Sequence[Path]]
) -> Resolved:
    """Return the columns read from the log itself, and the side tables with the others.

    Raises Mistake when a column is nowhere, or in two places.
    """
    paired = [isinstance(join["file"], dict) for join in log.joins]
    side_files = [
        [beside(files[0], join["file"])] if own_table else paths
        for join, own_table, paths in zip(log.joins, paired, side_files, strict=True)
    ]
    named = (log.time, log.day, log.label, log.scenario, log.period_column, log.user, log.item)
    wanted = [*(name for name in named if name), *log.categorical, *log.multivalued, *log.numeric]
    wanted += [*log.keep, *log.required, *log.behaviours]
    here = Layout(log.file_columns, files[0]).names(log.separator, log.format, wanted)
    offers: list[list[str]] = []
    for join, paths in zip(log.joins, side_files, strict=True):
        listed = join.get("columns")
        header = join.get("header") or ()
        names = columns_of(paths[0], log.separator, None, listed or [], header)
        for column in listed or []:
            if column not in names:
                raise missing_column(column, "data.joins", paths, names)
        key = join.get("file_key") or join["key"]
        offers.append([name for name in listed or names if name != key])

    asked: dict[str, Iterable[str | None]] = {
        "time": [log.time],
        "day": [log.day],
        "label": [log.label],
        "scenario": [log.scenario],
        "period_column": [log.period_column if log.period == "column" else None],
        "user": [log.user],
        "item": [log.item],
        "joins": [join["key"] for join in log.joins],
        "keep": log.keep,
        "required": log.required,
        "filters": [counted(one) for one in log.filters],
        "item_columns": log.item_columns,
        "behaviours": log.behaviours,
    }
    joinable: dict[str, Iterable[str | None]] = {
        "categorical": log.categorical,
        "multivalued": log.multivalued,
        "numeric": log.numeric,
    }
    own: list[str] = []
    taken: list[list[str]] = [[] for _ in offers]
    first: list[list[str]] = [[] for _ in offers]
    for option, columns in (asked | joinable).items():
        here_alone = option not in (*joinable, *EARLY)
        for column in columns:
            if column is None or column in own:
                continue
            homes = [i for i, offer in enumerate(offers) if column in offer]
            if here_alone:
                homes = [i for i in homes if option == "item_columns" and paired[i]]
            if option not in joinable and column in here:
                homes = []
            if len(homes) + (column in here) > 1:
                held = [side_files[i][0].name for i in homes]
                held += [files[0].name] if column in here else []
                raise Mistake(
                    f"data.{option}: column {column!r} is in {' and '.join(held)}: say which one is meant "
                    "with `columns:` in data.joins"
                )
            if homes:
                early = option in EARLY or paired[homes[0]]
                (first if early else taken)[homes[0]].append(column)
            elif column in here:
                own.append(column)
            else:
                everything = [*here, *(name for offer in offers for name in offer)]
                tables: Sequence[Path] = [files[0], *(paths[0] for paths in side_files)]
                tables, everything = (files[:1], here) if here_alone else (tables, everything)
                raise missing_column(column, f"data.{option}", tables, everything)
    resolved = Resolved(own, [], [])
    for join, paths, at_once, later in zip(log.joins, side_files, first, taken, strict=True):
        at_once = list(dict.fromkeys(at_once))
        if isinstance(join["file"], dict):
            read: Callable[[Path], SideTable] = partial(_beside, log, join, at_once)
        elif at_once or later:
            table = _read(log, join, paths, list(dict.fromkeys([*at_once, *later])))
            read = partial(_constant, table.only(at_once))
            resolved.side_tables.extend([table.only(later)] if later else [])
        if at_once:
            resolved.early.append(EarlyTable(at_once, read, isinstance(join["file"], dict)))
    return resolved


def _beside(log: Declaration, join: dict[str, Any], columns: list[str], file: Path) -> SideTable:
    return _read(log, join, [beside(file, join["file"])], columns)


def _constant(table: SideTable, file: Path) -> SideTable:
    return table


def _read(
    log: Declaration, join: dict[str, Any], files: Sequence[Path], columns: Sequence[str]
) -> SideTable:
    key, header = join["key"], join.get("header") or ()
    options = (log.separator, log.null_values, header)
    return read_side_table(files, "data.joins", key, join.get("file_key") or key, columns, *options)


def own_item_columns(log: Declaration, own: Sequence[str]) -> list[str]:
    """Return the columns of the log itself, of all of `own`, that belong to the row's item."""
    named = dict.fromkeys([*log.item_columns, *log.history_of])
    return [column for column in named if column in own]


def columns_of_item(log: Declaration, side_tables: Sequence[SideTable]) -> list[str]:
    """Return the columns that follow the item: those said to, and those joined by it."""
    joined = [name for one in side_tables if one.key == log.item for name in one.frame.columns]
    return list(
        dict.fromkeys(c for c in (*log.item_columns, *log.history_of, *joined) if c != log.item)
    )


def missing_column(
    column: str, where: str, files: Iterable[Path], columns: Sequence[str]
) -> Mistake:
    """Return the Mistake that names the column, the setting, the files and what they do hold."""
    near = get_close_matches(column, columns, n=3)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    names = ", ".join(file.name for file in files)
    return Mistake(
        f"{where}: there is no column {column!r} in {names};{hint} columns: {', '.join(columns)}"
    )


def read_side_table(
    files: Sequence[Path],
    where: str,
    key: str,
    file_key: str,
    columns: Sequence[str],
    separator: str,
    null_values: Sequence[str],
    header: Sequence[str] = (),
) -> SideTable:
    """Read `columns` of a side table as text; rows without a key are left out.

    header: the column's names, where its files name none.
    Raises Mistake when a column is missing or a key comes twice.
    """
    parts = []
    for file in files:
        wanted = list(dict.fromkeys([file_key, *columns]))
        names = columns_of(file, separator, None, wanted, header)
        for column in wanted:
            if column not in names:
                raise missing_column(column, where, [file], names)
        for piece in pieces(file, separator, wanted, None, header):
            with reading(file):  # a value that is no text in any way
                parts.append(piece.select(text(column, null_values) for column in wanted))
    nothing = pl.DataFrame(schema=dict.fromkeys([file_key, *columns], pl.String))
    frame = pl.concat([nothing, *parts], rechunk=True).drop_nulls(file_key)
    twice = frame.filter(pl.col(file_key).is_duplicated())
    if len(twice):
        raise Mistake(
            f"{where}: the key {file_key!r} of {files[0].name} must name one row, but "
            f"{twice[file_key][0]!r} comes {(twice[file_key] == twice[file_key][0]).sum()} times"
        )
    return SideTable(key, frame.rename({file_key: key}))

"""A declared log's new files into new periods of its store: raw files -> rows by period -> ids.

Files are read piece by piece, each row goes to its period's folder, and then one period at a time is
in memory: what grows is the ids. A first preparation is one that goes on from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from incrs.data.base import Schema
from incrs.data.columns import columns_of_item, missing_column, own_item_columns, resolve
from incrs.data.cut import by_chance, by_count, by_day, by_hours, ordered
from incrs.data.declaration import Declaration
from incrs.data.encode import Encoder
from incrs.data.filters import filtered
from incrs.data.layouts import Layout
from incrs.data.rows import Scenarios, read_rows, scenario_index
from incrs.data.scan import ROW, TIME
from incrs.data.store import Store, write_period, write_rest
from incrs.errors import Mistake

PERIOD = "__period__"


def build(
    log: Declaration,
    files: Sequence[Path],
    side_files: Sequence[Sequence[Path]],
    old: Store | None,
    new: Path,
    room: Path,
) -> list[Mapping[str, Any]]:
    """Write what the rows of `files` add to the store `old` into `new`; return all periods' entries.

    room: a folder for temporary files.  Raises Mistake when the files do not fit the declaration or
    what is written already.
    """
    own, side_tables, early = resolve(log, files, side_files)
    for file in files:
        there = Layout(log.file_columns, file).names(log.separator, log.format, own)
        for column in own:
            if column not in there:
                raise missing_column(column, "data.files", [file], there)
    scenarios = Scenarios(log, old)
    read = read_rows(log, files, own, early)
    kept = ((file, scenarios.keep(frame)) for file, frame in read)
    passing = [column for one in early if not one.stays for column in one.columns]
    held = [*own, *(column for one in early if one.stays for column in one.columns)]
    parts = _split(log, kept, room)
    scenario_names = scenarios.names()
    names = ordered(list(parts))
    _check_periods(log, files, names, parts, old)

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
        history_of=log.history_of,
        item_columns=own_item_columns(log, held),
        negatives=log.negatives,
        seed=log.negatives_seed,
        candidates=_all_items(log, parts, held) if log.negatives_from == "all" else None,
        behaviours=log.behaviours,
        events=log.events,
        scenarios=scenario_names,
        missing=dict.fromkeys(log.categorical, log.missing) if log.missing is not None else None,
    )
    periods = list(old.periods) if old else []
    if old:
        known = {name: old.vocabulary(name)["value"] for name in encoder.vocabularies}
        encoder.restore(known, old.state(encoder.state()))
    console = Console(stderr=True)
    for name in track(
        names,
        description=f"preparing {log.name}",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        raw = _in_order(pl.concat(pl.read_parquet(file) for file in parts[name].files))
        raw = raw.with_columns(scenario_index(log, scenario_names)).drop(passing)
        rows = encoder.encode(len(periods), raw)
        columns = (log.single_fields, log.numeric, log.behaviours)
        entry = write_period(new, len(periods), name, rows, *columns)
        sizes = {each: len(ids) for each, ids in encoder.vocabularies.items()}
        periods.append(entry | {"known": sizes})
        for file in parts[name].files:
            file.unlink()

    schema = Schema(
        vocabularies={name: len(ids) for name, ids in encoder.vocabularies.items()},
        fields={name: name for name in log.single_fields},
        lists=log.list_fields(),
        numbers=list(log.numeric),
        scenarios=scenario_names,
        user=log.user,
        item=log.item,
        of_item=columns_of_item(log, side_tables),
        sampled=log.negatives > 0,
        behaviours=list(log.behaviours),
    )
    write_rest(new, schema, periods, encoder.vocabularies, encoder.state())
    return periods


def _in_order(raw: pl.DataFrame) -> pl.DataFrame:
    """Return the rows by time, then number; those that are so already are not copied."""
    later, next_row = (np.diff(raw[name].to_numpy()) for name in (TIME, ROW))
    if bool(((later > 0) | ((later == 0) & (next_row > 0))).all()):
        return raw
    return raw.sort(TIME, ROW)


class _Part(NamedTuple):
    """The rows of one period: the folder and files they lie in, the raw files they came from."""

    folder: Path
    files: list[Path]
    sources: list[Path]


def _split(
    log: Declaration, frames: Iterable[tuple[Path, pl.DataFrame]], room: Path
) -> dict[str, _Part]:
    """Write the rows of each period to files of its own, in the rows' order; return them by name."""
    name = pl.col(log.period_column or "")
    counted: Callable[[pl.DataFrame], pl.Series] | None = None
    if log.period == "day":
        name = by_day()
    elif log.period == "hours":
        name = by_hours(list(log.period_hours or []), log.timezone)
    if log.filters or log.period in ("count", "random"):
        stored = _stored(frames, room / "rows")
        if log.filters:
            stored = _filtered(log, stored, room / "kept")
        frames = ((source, pl.read_parquet(file)) for source, file in stored)
        if log.period == "count":
            counted = by_count(lambda: (_order(file) for _, file in stored), log.period_count or 1)
        elif log.period == "random":
            whole = (_scenarios(log, pl.read_parquet(file)) for _, file in stored)
            drawn = by_chance(whole, log.period_shares or [], log.period_seed)

            def counted(frame: pl.DataFrame) -> pl.Series:
                return drawn(_scenarios(log, frame))

    parts: dict[str, _Part] = {}
    for source, frame in frames:
        column = counted(frame) if counted else name
        named = frame.with_columns(column.alias(PERIOD)).drop_nulls(PERIOD)
        for (period,), rows in named.partition_by(PERIOD, as_dict=True, include_key=False).items():
            part = parts.setdefault(str(period), _Part(room / str(len(parts)), [], []))
            part.folder.mkdir(exist_ok=True)
            file = part.folder / f"{len(part.files)}.parquet"
            rows.write_parquet(file, compression="lz4")
            part.files.append(file)
            if source not in part.sources:
                part.sources.append(source)
    return parts


def _stored(frames: Iterable[tuple[Path, pl.DataFrame]], folder: Path) -> list[tuple[Path, Path]]:
    """Write the rows to files below `folder`; return for each its raw file and its own."""
    folder.mkdir()
    stored: list[tuple[Path, Path]] = []
    for source, frame in frames:
        file = folder / f"{len(stored)}.parquet"
        frame.write_parquet(file, compression="lz4")
        stored.append((source, file))
    return stored


def _filtered(
    log: Declaration, stored: Sequence[tuple[Path, Path]], folder: Path
) -> list[tuple[Path, Path]]:
    """Write the rows that the filters keep to files below `folder`; the old files go."""
    keep = filtered(log.filters, [file for _, file in stored])

    def kept() -> Iterator[tuple[Path, pl.DataFrame]]:
        for source, file in stored:
            yield source, keep(pl.read_parquet(file))
            file.unlink()

    return _stored(kept(), folder)


def _scenarios(log: Declaration, frame: pl.DataFrame) -> pl.Series:
    if log.scenario is None:
        return pl.repeat(None, len(frame), dtype=pl.String, eager=True)
    return frame[log.scenario]


def _order(file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = pl.read_parquet(file, columns=[TIME, ROW])
    return rows[TIME].to_numpy(), rows[ROW].to_numpy()


def _check_periods(
    log: Declaration,
    files: Sequence[Path],
    names: Sequence[str],
    parts: Mapping[str, _Part],
    old: Store | None,
) -> None:
    """Raise Mistake when there are too few periods, or one that is not behind those written."""
    done = [period["name"] for period in old.periods] if old else []
    if old and not names:
        raise Mistake(
            f"{', '.join(file.name for file in files)}: no row of these new files is kept (see data.start, "
            "data.end, data.scenarios, data.period): take them away, or give files with rows"
        )
    late = [name for name in names if name in done or ordered([*done, name]) != [*done, name]]
    if old and late:
        sources = ", ".join(source.name for source in parts[late[0]].sources)
        raise Mistake(
            f"period {late[0]} of {sources} does not come after {done[-1]}, the last one prepared, and a "
            f"written period is never rewritten: take those rows away, or delete the folder {old.folder} "
            "to prepare the log anew"
        )
    log.assign(len(done) + len(names))  # complains before the work rather than after it


def _all_items(log: Declaration, parts: Mapping[str, _Part], own: Sequence[str]) -> pl.DataFrame:
    """Return every item of the log in order of appearance, with its own columns at the first."""
    item = log.item or ""
    columns = [item, *own_item_columns(log, own)]
    seen = pl.DataFrame(schema=dict.fromkeys(columns, pl.String) | {TIME: pl.Int64, ROW: pl.Int64})
    for part in parts.values():
        for file in part.files:
            rows = pl.read_parquet(file, columns=seen.columns).drop_nulls(item)
            both = pl.concat([seen, rows.select(seen.columns)]).sort(TIME, ROW)
            seen = both.unique(item, keep="first", maintain_order=True)
    return seen.select(columns)

"""Raw values into time, label and text, and the finding of raw files.

Every value stays text until it is encoded, so that a CSV and a Parquet file of the same log give the
same ids. Columns between double underscores are this reader's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from incrs.errors import Mistake

ROW, TIME, LABEL, SCENARIO, DAY = "__row__", "__time__", "__label__", "__scenario__", "__day__"
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
FIRST, LAST = -62_135_510_400_000_000, 253_402_214_400_000_000  # the years 1 to 9999, but for a day
TEXT = (".csv", ".json", ".jsonl", ".ndjson")
KINDS = (*TEXT, *(f"{kind}.gz" for kind in TEXT), ".parquet")


def find_files(
    root: Path, globs: Sequence[str], where: str, advice: str, any_name: bool = False
) -> list[Path]:
    """Return the files below `root` that match one of the globs, sorted by name.

    where: the setting that holds the globs, for the message.  advice: where the log can be had.
    any_name: whether files of every name count, not those alone whose name ends as a kind of file does.
    Raises Mistake when the folder is missing or a glob matches no file of a kind that is read.
    """
    if not root.is_dir():
        raise Mistake(f"data.path={root} is not a folder.{' ' if advice else ''}{advice}")
    found: set[Path] = set()
    for glob in globs:
        try:
            files = {f for f in root.glob(glob) if f.is_file()}
            files = {f for f in files if any_name or f.name.endswith(KINDS)}
        except (ValueError, NotImplementedError) as error:
            raise Mistake(
                f"{where}: {glob!r} is no pattern of files in a folder, such as *.csv"
            ) from error
        if not files:
            kinds = "" if any_name else f" ({', '.join(KINDS)})"
            raise Mistake(
                f"{where}: no file{kinds} in {root} matches {glob!r}.{' ' if advice else ''}{advice}"
            )
        found |= files
    return sorted(found)


def beside(file: Path, names: Mapping[str, str]) -> Path:
    """Return the table of one of the log's files: of its name, but for one part of it.

    names: that part -> what is in its place.  Raises Mistake when the name does not have it.
    """
    ((part, other),) = names.items()
    if part not in file.name:
        raise Mistake(
            f"data.joins: file={dict(names)} finds the table of each of the log's files by its name, but "
            f"{file.name} has no {part!r} in it"
        )
    try:
        return file.with_name(file.name.replace(part, other, 1))
    except ValueError as error:
        raise Mistake(
            f"data.joins: file={dict(names)} makes no file's name of {file.name}: give parts of names"
        ) from error


def find_beside(files: Sequence[Path], names: Mapping[str, str], advice: str) -> list[Path]:
    """Return the tables of those of the files that have one by their name.

    Raises Mistake when one is missing.
    """
    tables = {file: beside(file, names) for file in files if next(iter(names)) in file.name}
    for file, table in tables.items():
        if not table.is_file():
            raise Mistake(
                f"data.joins: {file.name} has no table {table.name} beside it in {file.parent}."
                f"{' ' if advice else ''}{advice}"
            )
    return sorted(tables.values())


def text(column: str, null_values: Sequence[str]) -> pl.Expr:
    """Return the column as text, with every spelling of `unknown` turned into null."""
    value = pl.col(column).cast(pl.String)
    return pl.when(~value.is_in(list(null_values))).then(value).alias(column)


def parse_time(
    column: str, dtype: pl.DataType, unit: str, timezone: str, year: int | None = None
) -> pl.Expr:
    """Return the column as int64 microseconds since 1970 UTC; null where it does not parse.

    So is what is not in the years 1 to 9999: such times are no times, but another unit or damage.

    unit: s | ms | us | ns, `iso` (with or without fraction and offset), or a strftime pattern, which
    may lack the `year`: of %m%d the first 0 may lack, too. A time
    without an offset is local to `timezone`; one that the clocks skip counts as an hour later, one
    they repeat as the earlier.
    """
    return _sane(_parsed_time(column, dtype, unit, timezone, year), 1)


def _sane(time: pl.Expr, per_unit: int | float) -> pl.Expr:
    """Return times, of `per_unit` microseconds each, with null for those not in FIRST to LAST."""
    return pl.when(time.is_between(FIRST / per_unit, LAST / per_unit)).then(time)


def _parsed_time(
    column: str, dtype: pl.DataType, unit: str, timezone: str, year: int | None
) -> pl.Expr:
    value = pl.col(column)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return value.dt.cast_time_unit("us").cast(pl.Int64)
    if dtype.is_temporal():
        return _utc(value.cast(pl.Datetime("us")), timezone)
    if unit in PER_SECOND:
        per_second = PER_SECOND[unit]
        whole = _sane(value.cast(pl.Int64, strict=False), 10**6 / per_second)
        if per_second > 10**6:
            exact = whole // (per_second // 10**6)
        else:
            exact = whole * (10**6 // per_second)
        broken = (value.cast(pl.Float64, strict=False) * (10**6 / per_second)).round()
        broken = pl.when(broken.is_finite()).then(broken).cast(pl.Int64, strict=False)
        return broken if dtype.is_float() else pl.coalesce(exact, broken)
    words = value.cast(pl.String).str.strip_chars()
    if year is not None:
        words = words.str.zfill(4) if unit == "%m%d" else words
        words, unit = pl.format("{} {}", pl.lit(f"{year:04d}"), words), f"%Y {unit}"
    if unit != "iso":
        if "%z" in unit or "%:z" in unit:
            aware = words.str.to_datetime(unit, time_unit="us", strict=False)
            return aware.dt.convert_time_zone("UTC").cast(pl.Int64)
        return _utc(words.str.to_datetime(unit, time_unit="us", strict=False), timezone)
    words = words.str.replace(" ", "T", literal=True).str.replace("Z$", "+00:00")
    pattern = "%Y-%m-%dT%H:%M:%S%.f"
    aware = words.str.to_datetime(pattern + "%:z", time_unit="us", strict=False)
    naive = words.str.to_datetime(pattern, time_unit="us", strict=False)
    dates = words.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)
    return pl.coalesce(aware.cast(pl.Int64), _utc(pl.coalesce(naive, dates), timezone))


def _utc(naive: pl.Expr, timezone: str) -> pl.Expr:
    def placed(moment: pl.Expr) -> pl.Expr:
        return moment.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")

    both = pl.coalesce(placed(naive), placed(naive.dt.offset_by("1h")))
    return both.cast(pl.Int64)


def parse_label(column: str, threshold: float | None) -> pl.Expr:
    """Return the label as float64: the number itself, or whether it is at or above `threshold`."""
    words = pl.col(column).cast(pl.String).str.to_lowercase().replace({"true": "1", "false": "0"})
    number = words.cast(pl.Float64, strict=False)
    return number if threshold is None else (number >= threshold).cast(pl.Float64)


def local_time(timezone: str) -> pl.Expr:
    """Return the rows' time on the clocks of `timezone`."""
    return pl.col(TIME).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(timezone)
